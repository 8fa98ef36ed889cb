"""Which tensor of a judged file is which layer of the reference.

A node and a layer of one name belong together; so does the pair of Q/DQ that is called after a layer. Fusion and
quantisation leave out nodes, and so does a fault:

- A convolution whose BatchNorm was folded stands for the BatchNorm, whose output it gives.
- What a node reads in the place of a layer that the file lacks *stands in* for that layer. Behind a quantisation that
  clips like a ReLU these are the same values; where a ReLU or a sum was lost they are not, and the row of the missing
  layer shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import onnx

from calibration.graph import WEIGHTED, Network
from exporter.drift.reference import INPUT, TRANSPARENT, Layer
from runtimes.probes import Edge

_QUANTISED: Final = ".quantized"
# Nodes that quantisation puts between two layers, beside Q/DQ: paddings, constants that shift a zero, hidden fusions.
_CARRIERS: Final = frozenset({"Identity", "Cast", "LeakyRelu", "Pad", "Add", "Dropout"})


@dataclass(frozen=True)
class Point:
    """A tensor that is compared.

    Attributes:
        layer: Name in the report.
        op: Its operator.
        tensor: Its name in the judged file.
        key: The layer of the reference that it stands for.
    """

    layer: str
    op: str
    tensor: str
    key: str


@dataclass(frozen=True)
class Matching:
    """A judged file beside a reference.

    Attributes:
        points: In the order of computation of the judged file.
        edges: Inputs of its nodes that a layer of the reference is known for: the tensor that is read, and the layer.
    """

    points: tuple[Point, ...]
    edges: Mapping[Edge, tuple[str, str]]


def match(network: Network, layers: Mapping[str, Layer], others: Collection[str] = ()) -> Matching:
    """Find the layers of a reference in a judged file.

    Args:
        network: The judged file; it may be quantised.
        layers: Of the reference, by name.
        others: Nodes of the file that only happen to have the name of a layer.

    Returns:
        The points and the edges; no points but the input where no name is known to both.
    """
    return _Matcher(network, layers, frozenset(others)).matching()


def depths(network: Network, points: Collection[Point]) -> dict[str, int]:
    """Compared tensors on the longest way from the input to each, itself included; 0 for the input."""
    compared = {point.tensor for point in points}
    found = {network.input: 0}
    for node in network.nodes:
        before = max((found.get(name, 0) for name in node.input), default=0)
        found.update((name, before + (name in compared)) for name in node.output if name)
    return found


class _Matcher:
    def __init__(self, network: Network, layers: Mapping[str, Layer], others: frozenset[str]) -> None:
        self._network, self._layers, self._others = network, layers, others
        self._named: dict[str, onnx.NodeProto] = {}  # nodes that have a layer's name
        self._points: dict[str, Point] = {network.input: Point(INPUT, "Input", network.input, INPUT)}
        self._stand_ins: list[Point] = []
        self._redirected: dict[Edge, str] = {}
        self._places = {id(node): index for index, node in enumerate(network.nodes)}

    def matching(self) -> Matching:
        for node in self._network.nodes:
            if self._network.is_activation(node.output[0]):
                self._by_name(node)
        self._unfold()
        self._fold()
        for name, node in self._named.items():
            self._settle(self._layers[name], node)
        return Matching(tuple(self._in_order()), dict(self._edges()))

    def _by_name(self, node: onnx.NodeProto) -> None:
        name = node.name or node.output[0]
        if node.op_type == "QuantizeLinear":
            key = name.removesuffix(_QUANTISED)
            given = self._points.get(node.input[0])
            if key in self._others or (key not in self._layers and key != INPUT):
                key = given.key if given else ""
            if key:
                for reader in self._network.consumers.get(node.output[0], ()):
                    tensor = reader.output[0]
                    self._points[tensor] = Point(name, node.op_type, tensor, key)
        elif node.op_type not in TRANSPARENT and name in self._layers and name not in self._others:
            self._points[node.output[0]] = Point(name, node.op_type, node.output[0], name)
            self._named[name] = node

    def _unfold(self) -> None:
        """Where only the judged file has BatchNorms, their outputs are the reference's convolutions."""
        for node in self._network.nodes:
            before = self._points.get(node.input[0]) if node.input else None
            if node.op_type != "BatchNormalization" or before is None or node.output[0] in self._points:
                continue
            if before.op in WEIGHTED and not self._normalised(before.key):
                del self._points[before.tensor]
                self._points[node.output[0]] = replace(before, tensor=node.output[0])

    def _fold(self) -> None:
        """Where only the reference has BatchNorms, the file's convolutions give their outputs."""
        norms = {
            layer.inputs[0]: layer.name
            for layer in self._layers.values()
            if layer.op == "BatchNormalization" and layer.inputs and layer.name not in self._named
        }
        for tensor, point in self._points.items():
            maker = self._named.get(point.key)
            if maker is not None and maker.op_type in WEIGHTED and point.key in norms:
                self._points[tensor] = replace(point, key=norms[point.key])

    def _normalised(self, key: str) -> bool:
        return any(key in each.inputs and each.op == "BatchNormalization" for each in self._layers.values())

    def _settle(self, layer: Layer, node: onnx.NodeProto) -> None:
        """Find what stands for the layers that ``layer`` reads and the file does not have by name."""
        keys = {point.key for point in self._points.values()}
        places = [place for place, name in enumerate(node.input) if name and self._network.is_activation(name)]
        if len(places) != len(layer.inputs):
            return
        pairs = list(zip(places, layer.inputs, strict=True))
        if node.op_type == "Add":
            pairs = self._paired(node, places, layer.inputs)
        for place, key in pairs:
            if key not in keys:
                self._stand_in(node, place, self._layers[key])

    def _paired(self, node: onnx.NodeProto, places: list[int], inputs: tuple[str, ...]) -> list[tuple[int, str]]:
        """The sides of an addition, which may have changed places."""
        read = [self._key_of(node.input[place]) for place in places]
        crossed = len(inputs) == 2 and (read[0] == inputs[1] or read[1] == inputs[0])
        if crossed and read[0] != inputs[0] and read[1] != inputs[1]:
            return [(places[0], inputs[1]), (places[1], inputs[0])]
        return list(zip(places, inputs, strict=True))

    def _key_of(self, tensor: str) -> str | None:
        point = self._points.get(self._source(tensor))
        return point.key if point else None

    def _stand_in(self, node: onnx.NodeProto, place: int, missing: Layer) -> None:
        tensor = self._source(node.input[place])
        point = self._points.get(tensor)
        if point is None:
            maker = self._network.producers.get(tensor)
            if maker is not None and maker.op_type == "DequantizeLinear":
                maker = self._network.producers.get(maker.input[0])
            if maker is not None:
                self._points[tensor] = Point(maker.name or missing.name, maker.op_type, tensor, missing.name)
        elif point.op == "QuantizeLinear" and missing.op == "Relu":
            self._points[tensor] = replace(point, key=missing.name)
        elif tensor == node.input[place]:
            self._redirected[self._places[id(node)], place] = missing.name
            # A BatchNorm that is missing without its convolution was folded into one that is missing.
            norm = missing.op == "BatchNormalization"
            stand_in = Point(missing.inputs[0] if norm else missing.name, missing.op, tensor, missing.name)
            if stand_in not in self._stand_ins:
                self._stand_ins.append(stand_in)

    def _source(self, tensor: str) -> str:
        """The nearest compared tensor before the nodes that quantisation put between."""
        name = tensor
        while name not in self._points:
            node = self._network.producers.get(name)
            if node is None or node.op_type not in _CARRIERS or (node.name or name) in self._named:
                return tensor
            if sum(map(self._network.is_activation, node.input)) != 1:
                return tensor
            name = next(filter(self._network.is_activation, node.input))
        return name

    def _in_order(self) -> Iterator[Point]:
        for tensor in (self._network.input, *(name for node in self._network.nodes for name in node.output)):
            if tensor in self._points:
                yield self._points[tensor]
            yield from (point for point in self._stand_ins if point.tensor == tensor)

    def _edges(self) -> Iterator[tuple[Edge, tuple[str, str]]]:
        for index, node in enumerate(self._network.nodes):
            for place, tensor in enumerate(node.input):
                if tensor in self._points and tensor != self._network.input:
                    key = self._redirected.get((index, place), self._points[tensor].key)
                    yield (index, place), (tensor, key)
