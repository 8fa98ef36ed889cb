"""A graph in which constants that were subtracted from tensors are put back where they came from.

``real = stored + offset``: a tensor of the old graph is a tensor of the new one and an offset. Nodes are added in the
order of computation, and each either passes its inputs' offsets on, takes them into its bias or fill value, or gets the
whole value: by the bias of the convolution before, or, where there is none, by an Add. Every rule is an equation::

    Conv, Gemm       W (x + a) + b = W x + (b + a sum W)         without padding inside the operator
    Pad              pad(x + a, v) = pad(x, v - a) + a
    Add              (x + a) + (y + b) = (x + y) + (a + b)
    pools, reshapes  f(x + a) = f(x) + a
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

#: Operators whose output holds values of their first input, or means of them.
PASSING: Final = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Squeeze",
     "Unsqueeze", "Identity", "Slice"}
)  # fmt: skip

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of an attribute, or ``default`` where the node does not have it."""
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


class Unfolding:
    """A new graph in the making.

    Attributes:
        values: Constants by name, of both graphs.
        fixed: Tensors of the new graph to which nothing may be added any more, as their range is known.
    """

    def __init__(self, model: onnx.ModelProto, uses: Mapping[str, int]) -> None:
        self._old = model
        self._readers = Counter(uses)  # of a tensor of the new graph, those of its aliases too
        self.values: dict[str, Array] = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and attribute(node, "value", None) is not None:
                self.values[node.output[0]] = numpy_helper.to_array(attribute(node, "value", None))
        self.fixed: set[str] = set()
        self._outputs = {item.name for item in model.graph.output}
        self._nodes: list[onnx.NodeProto] = []
        self._producers: dict[str, onnx.NodeProto] = {}
        self._places: dict[str, tuple[str, float]] = {}
        self._added: dict[str, Float64] = {}  # to the bias of a node, by its output
        self._made: dict[str, Array] = {}

    def place(self, name: str) -> tuple[str, float]:
        """Where a tensor of the old graph is in the new one, and its offset there."""
        return self._places.get(name, (name, 0.0))

    def alias(self, name: str, place: str, offset: float = 0.0) -> None:
        """Let a tensor of the old graph be another one plus an offset."""
        self._places[name] = (place, offset)
        if name != place:  # what made it is no node of the new graph; who reads it will read the other one
            self._readers[place] += self._readers[name] - 1

    def store(self, name: str, value: Array) -> None:
        """Add a constant to the new graph."""
        self.values[name] = self._made[name] = value

    def relu(self, source: str, constant: float, name: str) -> None:
        """``name = Relu(source + constant)``, which something reads that is to be an alias."""
        self._readers[name] += 1
        self._append(helper.make_node("Relu", [self._whole(source, constant)], [name], name))

    def add(self, node: onnx.NodeProto, shifts: bool) -> None:
        """Add a node of the old graph.

        Args:
            node: It stays as it is.
            shifts: Whether it is an Add of a number that is to become an offset.
        """
        if shifts:
            name, offset = self.place(node.input[0])
            self.alias(node.output[0], name, offset + float(self.values[node.input[1]].item()))
            return
        new = onnx.NodeProto()
        new.CopyFrom(node)
        offsets = [self.place(name)[1] for name in node.input]
        passed = self._passed(new, offsets) if any(offsets) and node.output[0] not in self._outputs else None
        if any(offsets) and passed is None and not self._takes(new, offsets):
            new.input[:] = [self._whole(name) for name in node.input]
        else:
            for index, name in enumerate(node.input):
                if new.input[index] == name:  # a Pad's fill value is a new one
                    new.input[index] = self.place(name)[0]
        if passed:
            self.alias(node.output[0], node.output[0], passed)
        self._append(new)

    def _append(self, node: onnx.NodeProto) -> None:
        self._nodes.append(node)
        self._producers.update((name, node) for name in node.output if name)

    def _passed(self, new: onnx.NodeProto, offsets: list[float]) -> float | None:
        """The offset of a node's output; ``None`` where the node cannot pass any on. A Pad gets another fill value."""
        kind = new.op_type
        if kind == "Add":
            return None if any(name in self.values for name in new.input) else sum(offsets)
        if kind == "Pad":
            return self._filled(new, offsets[0])
        counts_zeros = kind == "AveragePool" and attribute(new, "count_include_pad", 0) and attribute(new, "pads", [])
        return None if kind not in PASSING or counts_zeros else offsets[0]

    def _filled(self, new: onnx.NodeProto, offset: float) -> float | None:
        if attribute(new, "mode", b"constant") != b"constant" or len(new.input) < 2:
            return None
        given = new.input[2] if len(new.input) > 2 else ""
        if given and given not in self.values:
            return None
        value = np.array((self.values[given].item() if given else 0.0) - offset, np.float32)
        name = f"{new.output[0]}.fill"
        self.store(name, value)
        if len(new.input) > 2:
            new.input[2] = name
        else:
            new.input.append(name)
        return offset

    def _takes(self, new: onnx.NodeProto, offsets: list[float]) -> bool:
        """Whether a Conv or Gemm can put an offset of its data right in its bias; it is then done."""
        plain = new.op_type == "Gemm" or (
            new.op_type == "Conv"
            and not any(attribute(new, "pads", [0]))
            and attribute(new, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        )
        if not plain or any(offsets[1:]) or not self._is_biased(new):
            return False
        weight = self.values[new.input[1]].astype(np.float64)
        sums = weight.sum(axis=self._summed(new, weight.ndim))
        self._added[new.output[0]] = self._added.get(new.output[0], np.zeros(1)) + offsets[0] * sums
        return True

    def _is_biased(self, node: onnx.NodeProto | None) -> bool:
        """Whether a node has stored weights, and a bias for each output channel that is stored or none."""
        if node is None or node.op_type not in ("Conv", "Gemm") or node.input[1] not in self.values:
            return False
        scaled = any(attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta")) or attribute(node, "transA", 0)
        bias = node.input[2] if len(node.input) > 2 else ""
        return not scaled and (not bias or (bias in self.values and self.values[bias].ndim <= 1))

    def _summed(self, node: onnx.NodeProto, rank: int) -> tuple[int, ...]:
        """Dimensions of the weights that are not the output channels."""
        channels = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
        return tuple(dim for dim in range(rank) if dim != channels)

    def _whole(self, name: str, constant: float = 0.0) -> str:
        """Name of a tensor of the new graph with the value of an old one plus a constant."""
        new, offset = self.place(name)
        offset += constant
        if not offset:
            return new
        biased = self._biased_before(name) if new == name else ""
        if biased:
            self._added[biased] = self._added.get(biased, np.zeros(1)) + offset
            self._places.pop(name, None)
            return new
        result = f"{name}.plus.{offset:.9g}"
        if result not in self._producers:
            self.store(f"{result}.constant", np.array(offset, np.float32))
            self._append(helper.make_node("Add", [new, f"{result}.constant"], [result], result))
        return result

    def _biased_before(self, name: str) -> str:
        """Output of the Conv or Gemm that a constant for a tensor can go into; empty where others would see it too."""
        node = self._producers.get(name)
        if node is None or name in self.fixed or self._readers[name] != 1:
            return ""
        if node.op_type == "Add" and node.input[0] != node.input[1]:
            return next(filter(None, map(self._biased_before, node.input)), "")
        return name if self._is_biased(node) else ""

    def model(self) -> onnx.ModelProto:
        """The new model, of the nodes that an output depends on."""
        for name in sorted(self._outputs):
            if self.place(name) != (name, 0.0):
                self._append(helper.make_node("Identity", [self._whole(name)], [name], name))
        for node in self._nodes:
            if node.output[0] in self._added:
                self._bias(node)
        nodes = self._without_pads(_reached(self._nodes, self._outputs))
        used = {name for node in nodes for name in node.input} | self._outputs
        model = onnx.ModelProto()
        model.CopyFrom(self._old)
        graph = model.graph
        stored = {item.name for item in graph.initializer}
        given = [item for item in graph.input if item.name not in stored]
        kept = [item for item in graph.initializer if item.name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:], graph.input[:], graph.quantization_annotation[:]
        graph.input.extend(given)
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
        graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in self._made.items() if k in used)
        return model

    def _bias(self, node: onnx.NodeProto) -> None:
        output, weight = node.output[0], self.values[node.input[1]]
        given = node.input[2] if len(node.input) > 2 else ""
        before = self.values[given].astype(np.float64) if given else np.zeros(1)
        channels = (set(range(weight.ndim)) - set(self._summed(node, weight.ndim))).pop()
        values = np.broadcast_to(before + self._added[output], weight.shape[channels])
        self.store(f"{output}.bias.whole", values.astype(weight.dtype))
        del node.input[2:]
        node.input.append(f"{output}.bias.whole")

    def _without_pads(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Zeros around the data of a convolution as the convolution's own padding: a DLA has no Pad."""
        uses = Counter(name for node in nodes for name in node.input)
        producers = {node.output[0]: node for node in nodes}
        gone = set()
        for node in nodes:
            pad = producers.get(node.input[0]) if node.op_type == "Conv" else None
            around = self._around(pad) if pad is not None and uses[node.input[0]] == 1 else None
            if pad is None or around is None or any(attribute(node, "pads", [0])):
                continue
            if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or pad.output[0] in self._outputs:
                continue
            kept = [item for item in node.attribute if item.name not in ("pads", "auto_pad")]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("pads", around)])
            node.input[0] = pad.input[0]
            gone.add(pad.output[0])
        return [node for node in nodes if node.output[0] not in gone]

    def _around(self, pad: onnx.NodeProto) -> list[int] | None:
        """What a Pad with zeros puts around height and width; ``None`` for any other node."""
        if pad.op_type != "Pad" or attribute(pad, "mode", b"constant") != b"constant" or len(pad.input) < 2:
            return None
        fill = pad.input[2] if len(pad.input) > 2 else ""
        pads = self.values.get(pad.input[1])
        other = (fill and (fill not in self.values or self.values[fill].any())) or any(pad.input[3:])
        if other or pads is None or len(pads) < 6:
            return None
        begin, end = np.split(pads, 2)
        if begin[:2].any() or end[:2].any() or (pads < 0).any():
            return None
        return [int(each) for each in (*begin[2:], *end[2:])]


def _reached(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that an output depends on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
