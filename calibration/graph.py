"""An ONNX network as calibration sees it: who makes a tensor, who takes it, and whose range it shares.

Only the graph is read here; nothing of it is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from runtimes.errors import GraphError, first_line
from runtimes.reading import read_model
from runtimes.screening import tensors

#: Operators with weights, whose arithmetic INT8 speeds up.
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
#: Operators whose output holds values of their first input, and zeros at most: one range serves both tensors.
SHARING = frozenset({"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Pad"})
#: Operators that a file has only when it is quantised already.
QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
     "DynamicQuantizeLinear", "QGemm", "QLinearAdd"}
)  # fmt: skip

_HALF = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
# Their outputs depend on the input's shape, which is no activation: nothing made of it has a range.
_OF_SHAPES = frozenset({"Shape", "Size"})

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Network:
    """A float ONNX model with one input.

    Attributes:
        model: The model; never changed.
        sha256: Of the file's bytes, followed by those of weights that it keeps in other files; 64 hex digits.
    """

    model: onnx.ModelProto
    sha256: str

    @cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        """All nodes, in the order in which they are computed."""
        return tuple(self.model.graph.node)

    @cached_property
    def initializers(self) -> Mapping[str, Array]:
        """Constants by name, those of ``Constant`` nodes among them."""
        found = {item.name: numpy_helper.to_array(item) for item in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and (value := _constant(node)) is not None:
                found[node.output[0]] = value
        return found

    @cached_property
    def producers(self) -> Mapping[str, onnx.NodeProto]:
        """The node that makes each tensor; inputs and initializers have none."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[onnx.NodeProto, ...]]:
        """The nodes that take each tensor, each once."""
        found: dict[str, dict[int, onnx.NodeProto]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                found.setdefault(name, {})[index] = node
        return {name: tuple(nodes.values()) for name, nodes in found.items()}

    @property
    def input(self) -> str:
        """Name of the input."""
        return _inputs(self.model)[0].name

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the outputs."""
        return frozenset(item.name for item in self.model.graph.output)

    @cached_property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next((item.version for item in self.model.opset_import if item.domain in ("", "ai.onnx")), 0)

    def is_activation(self, name: str) -> bool:
        """Whether a tensor depends on the values of the input, not only on its shape."""
        return name in self._activations

    def source(self, name: str) -> str:
        """The tensor whose range ``name`` has: itself, or the one that operators of :data:`SHARING` took."""
        while (node := self.producers.get(name)) is not None and self._shares(node):
            name = node.input[0]
        return name

    def only_feeds_relu(self, name: str) -> bool:
        """Whether nothing sees a tensor but one ``Relu``, which a kernel computes together with what made it."""
        taken = self.consumers.get(name, ())
        return name not in self.outputs and [node.op_type for node in taken] == ["Relu"]

    def non_negative(self, name: str) -> bool:
        """Whether a tensor cannot be negative, whatever the images are."""
        node = self.producers.get(name)
        if node is None:
            return False
        if node.op_type in ("Relu", "Sigmoid", "Softmax"):
            return True
        passed_on = self._shares(node) or node.op_type in (
            "GlobalAveragePool",
            "AveragePool",
            "ReduceMean",
            "GlobalMaxPool",
        )
        return passed_on and self.non_negative(node.input[0])

    @cached_property
    def observed(self) -> tuple[str, ...]:
        """The tensors that some target quantises and that have a range of their own, in order of computation.

        Left out are the outputs of the network, tensors that only a Relu sees, and tensors that share a range.
        """
        names = [self.input, *(name for node in self.nodes for name in node.output)]
        wanted = {
            self.source(name)
            for node in self.nodes
            for name in (*node.input, *node.output)
            if name in self._activations and name not in self.outputs and not self.only_feeds_relu(name)
        }
        return tuple(name for name in names if name in wanted and name in self._float_tensors)

    @cached_property
    def observed_set(self) -> frozenset[str]:
        """:attr:`observed`, for looking up."""
        return frozenset(self.observed)

    def _shares(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Pad" or attribute(node, "mode", b"constant") != b"constant":
            return node.op_type in SHARING
        # A constant other than zero could lie outside the range; zero never does.
        value = node.input[2] if len(node.input) > 2 else ""
        if not value:
            return not attribute(node, "value", 0.0)  # before opset 11 it was an attribute
        return value in self.initializers and not self.initializers[value].any()

    @cached_property
    def _activations(self) -> frozenset[str]:
        found = {self.input}
        for node in self.nodes:
            if node.op_type not in _OF_SHAPES and found.intersection(node.input):
                found.update(name for name in node.output if name)
        return frozenset(found)

    @cached_property
    def _float_tensors(self) -> frozenset[str]:
        inferred = with_shapes(self.model)
        known = {
            item.name: item.type.tensor_type.elem_type
            for item in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        return frozenset(n for n in self._activations if known.get(n, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT)


def read_network(path: Path) -> Network:
    """A float ONNX file, checked for what calibration needs.

    Raises:
        GraphError: The file cannot be read, is quantised already, is not FP32, has another number of inputs than
            one, or its nodes are not in the order of computation.
    """
    model, digest = read_model(path, "make one with resnet-export onnx")
    _check(model, str(path))
    return Network(model, digest)


def _check(model: onnx.ModelProto, name: str) -> None:
    present = sorted({node.op_type for node in model.graph.node} & QUANTISED)
    if present:
        raise GraphError(
            f"{name} is quantised already (it has {', '.join(present)}): give the FP32 file it was made from"
        )
    inputs = _inputs(model)
    if len(inputs) != 1:
        named = ", ".join(item.name for item in inputs) or "none"
        raise GraphError(f"{name} has {len(inputs)} inputs ({named}), expected one batch of images")
    kind = inputs[0].type.tensor_type
    halves = any(item.data_type in _HALF for item in tensors(model))
    if kind.elem_type != onnx.TensorProto.FLOAT or halves:
        raise GraphError(f"{name} is not FP32: calibrate the FP32 file, and give precisions to the target")
    if len(kind.shape.dim) != 4:
        raise GraphError(f"{name} takes {len(kind.shape.dim)} dimensions, expected images [N,C,H,W]")
    _check_order(model.graph, name)


def _check_order(graph: onnx.GraphProto, name: str) -> None:
    """ONNX demands it, ONNX Runtime does not: unsorted nodes would make activations look like constants here."""
    constants = (*graph.initializer, *(item.values for item in graph.sparse_initializer))
    known = {"", *(item.name for item in chain(graph.input, constants))}
    for node in graph.node:
        missing = [item for item in node.input if item not in known]
        if missing:
            raise GraphError(
                f"{name}: node {node.name or node.op_type} takes {missing[0]}, which nothing before it makes: "
                f"save the model with its nodes in the order of computation"
            )
        known.update(node.output)


def _constant(node: onnx.NodeProto) -> Array | None:
    """What a ``Constant`` node holds: a tensor, numbers, or a number; ``None`` for text and sparse tensors."""
    for item in node.attribute:
        if item.name == "value":
            return numpy_helper.to_array(item.t)
        if item.name in ("value_float", "value_floats"):
            return np.array(onnx.helper.get_attribute_value(item), np.float32)
        if item.name in ("value_int", "value_ints"):
            return np.array(onnx.helper.get_attribute_value(item), np.int64)
    return None


def with_shapes(model: onnx.ModelProto, *, data_prop: bool = False) -> onnx.GraphProto:
    """The graph of a model, with the types and shapes of the tensors inside as far as they can be known.

    Args:
        model: Left as it is.
        data_prop: Whether shapes that the graph computes are followed too.

    Raises:
        GraphError: An operator is of a set that the model does not import.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=data_prop).graph
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"the shapes inside the model cannot be inferred: {first_line(error)}") from error


def _inputs(model: onnx.ModelProto) -> Sequence[onnx.ValueInfoProto]:
    constants = {item.name for item in model.graph.initializer}
    return [item for item in model.graph.input if item.name not in constants]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Value of an attribute, or ``default`` where the node does not have it."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def input_size(network: Network) -> tuple[int | None, int, int | None, int | None]:
    """Batch, channels, height and width of the input; ``None`` where they are free.

    Raises:
        GraphError: The number of channels is not fixed.
    """
    dims = _inputs(network.model)[0].type.tensor_type.shape.dim
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]
    if sizes[1] is None:
        raise GraphError("the number of input channels is free: export the model with a fixed one")
    return sizes[0], sizes[1], sizes[2], sizes[3]


def reached(nodes: Sequence[onnx.NodeProto], outputs: frozenset[str]) -> list[onnx.NodeProto]:
    """The nodes that an output depends on, in their order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
