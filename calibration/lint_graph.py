"""A quantised ONNX file as the linter sees it: which node quantises what, with which numbers, along which axis.

Nothing is taken from names: files of any maker are read alike. Only the graph is read here; nothing of it is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from calibration.graph import Array, Network, attribute

#: Operators that hand one tensor on as it is when they run.
HANDING_ON = frozenset({"Identity", "Dropout"})
#: Operators that an engine can run on the integers in place of the real numbers.
MOVING = HANDING_ON | {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"}
#: Operators with weights.
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
#: Operators that average over places.
AVERAGING = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})

_LINEAR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Linear:
    """A ``QuantizeLinear`` or ``DequantizeLinear``.

    Attributes:
        node: The node itself.
        scale: float, of rank 0 or with one value for each index along ``axis``; ``None`` where it is not a constant.
        zero: Of the same shape; ``None`` where the node has none, or it is not a constant.
        has_zero: Whether the node has a zero point, constant or not.
        dtype: Of the integers, as NumPy names it: ``uint8``, ``int8``, ``int32``; empty where it cannot be known.
        axis: As written, so that it may be negative.
    """

    node: onnx.NodeProto
    scale: Array | None
    zero: Array | None
    has_zero: bool
    dtype: str
    axis: int

    @property
    def quantises(self) -> bool:
        """Whether it makes the integers; the other kind takes them."""
        return bool(self.node.op_type == _LINEAR[0])

    @property
    def integers(self) -> str:
        """Name of the tensor of integers."""
        return str(self.node.output[0] if self.quantises else self.node.input[0])

    @property
    def reals(self) -> str:
        """Name of the tensor of real numbers."""
        return str(self.node.input[0] if self.quantises else self.node.output[0])

    @property
    def per_channel(self) -> bool:
        """Whether there is more than one scale."""
        return self.scale is not None and self.scale.size > 1

    @property
    def zeros(self) -> Array:
        """The zero points; one 0 where the node has none or they are not known."""
        return np.zeros(1, np.int64) if self.zero is None else self.zero.astype(np.int64).reshape(-1)

    def same_numbers(self, other: Linear) -> bool:
        """Whether integers are known to mean the same real numbers to both."""
        known = self.scale is not None and other.scale is not None
        return (known or self.node.input[1] == other.node.input[1]) and not self.differences(other)

    def differences(self, other: Linear) -> tuple[str, ...]:
        """In what both are known to differ: ``scale``, ``zero point``, ``type``, ``axis``."""
        longest = max(self.zeros.size, other.zeros.size)
        same_by_part = {
            # NaN is as bad in both, and no difference between them.
            "scale": self.scale is None
            or other.scale is None
            or np.array_equal(self.scale.ravel(), other.scale.ravel(), equal_nan=True),
            "zero point": np.array_equal(np.resize(self.zeros, longest), np.resize(other.zeros, longest)),
            "type": self.dtype == other.dtype,
            "axis": self.axis == other.axis or not self.per_channel,
        }
        return tuple(part for part, same in same_by_part.items() if not same)


@dataclass(frozen=True)
class Weight:
    """The quantised weights of one node.

    Attributes:
        linear: The ``DequantizeLinear`` that they come through.
        values: What the file stores, integers or reals; ``None`` where that is computed from other constants.
        axis: Along which the scales lie, counted as the node sees the tensor, from 0.
        wanted: The axis of the node's output channels.
        channels: How many of these there are; 0 where it is not known.
        behind_quantize: Whether the file stores real numbers, and a ``QuantizeLinear`` that makes the integers.
    """

    linear: Linear
    values: Array | None
    axis: int
    wanted: int
    channels: int
    behind_quantize: bool


def title(node: onnx.NodeProto) -> str:
    """What a person finds a node by: its name, or its first output."""
    return node.name or next(iter(node.output), "") or node.op_type


class QuantisedGraph:
    """The main graph of a model; graphs inside ``If`` and ``Loop`` are not looked into."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._network = Network(model, "")
        self.nodes = self._network.nodes
        self.producers = self._network.producers
        self.outputs = self._network.outputs
        self.opset = self._network.opset
        constants = {item.name for item in model.graph.initializer}
        self.inputs: Mapping[str, onnx.ValueInfoProto] = {
            item.name: item for item in model.graph.input if item.name not in constants
        }

    @cached_property
    def uses(self) -> Mapping[str, int]:
        """How many inputs of nodes each tensor goes to, and one more where it is an output of the graph."""
        return Counter([*(name for node in self.nodes for name in node.input if name), *self.outputs])

    def takers(self, name: str) -> tuple[onnx.NodeProto, ...]:
        """The nodes that take a tensor, each once."""
        return self._network.consumers.get(name, ())

    def constant(self, name: str) -> Array | None:
        """The values of a constant; ``None`` for what is computed."""
        while name not in self._network.initializers:
            node = self.producers.get(name)
            if node is None or node.op_type != "Identity":
                return None
            name = node.input[0]
        return self._network.initializers[name]

    @cached_property
    def constants(self) -> frozenset[str]:
        """Tensors that no input of the graph has a part in."""
        found = set(self._network.initializers) | {""}
        waiting = [node for node in self.nodes if node.input or node.op_type == "Constant"]
        while ready := [node for node in waiting if found.issuperset(node.input)]:
            waiting = [node for node in waiting if not found.issuperset(node.input)]
            found.update(name for node in ready for name in node.output)
        return frozenset(found)

    @cached_property
    def linears(self) -> Mapping[str, Linear]:
        """Every ``QuantizeLinear`` and ``DequantizeLinear``, by its output."""
        found = (self._linear(node) for node in self.nodes if node.op_type in _LINEAR)
        return {item.node.output[0]: item for item in found}

    @cached_property
    def activations(self) -> tuple[Linear, ...]:
        """Those of :attr:`linears` that a run computes, in the order of the file."""
        return tuple(item for item in self.linears.values() if item.node.input[0] not in self.constants)

    @cached_property
    def parameters(self) -> tuple[Linear, ...]:
        """Those of :attr:`linears` that weights and biases go through."""
        return tuple(item for item in self.linears.values() if item.node.input[0] in self.constants)

    @cached_property
    def distinct(self) -> tuple[Linear, ...]:
        """Of :attr:`linears` each Q, and each DQ that does not only repeat the numbers of its Q."""
        quantizes = {item.integers: item for item in self.linears.values() if item.quantises}
        return tuple(
            item
            for item in self.linears.values()
            if item.quantises or item.integers not in quantizes or not quantizes[item.integers].same_numbers(item)
        )

    def dequantized(self, name: str, through: frozenset[str] = HANDING_ON) -> Linear | None:
        """The ``DequantizeLinear`` that a tensor comes from, past operators of ``through``."""
        while (node := self.producers.get(name)) is not None and node.op_type in through:
            name = node.input[0]
        found = self.linears.get(name)
        return None if found is None or found.quantises else found

    def quantizes(self, name: str) -> Linear | None:
        """The ``QuantizeLinear`` that a tensor of integers comes from, past operators that only move them."""
        while (node := self.producers.get(name)) is not None and node.op_type in MOVING:
            name = node.input[0]
        found = self.linears.get(name)
        return found if found is not None and found.quantises else None

    def behind(self, name: str) -> Iterator[Linear]:
        """The ``QuantizeLinear`` and ``DequantizeLinear`` that take a tensor."""
        for node in self.takers(name):
            if node.op_type in _LINEAR and node.input[0] == name:
                yield self.linears[node.output[0]]

    @cached_property
    def weighted(self) -> tuple[onnx.NodeProto, ...]:
        """The nodes of :data:`WEIGHTED` whose second input is a constant of the model."""
        return tuple(n for n in self.nodes if n.op_type in WEIGHTED and n.input[1] in self.constants)

    @cached_property
    def sums(self) -> tuple[onnx.NodeProto, ...]:
        """The ``Add`` nodes that add two activations, as residual blocks do."""
        return tuple(n for n in self.nodes if n.op_type == "Add" and not self.constants.intersection(n.input))

    def weight(self, node: onnx.NodeProto) -> Weight | None:
        """The weights of a node of :data:`WEIGHTED`, or ``None`` where they are not quantised."""
        name, turns = node.input[1], []
        while (maker := self.producers.get(name)) is not None and maker.op_type in ("Identity", "Transpose"):
            if maker.op_type == "Transpose":
                turns.append(tuple(attribute(maker, "perm", ())))
            name = maker.input[0]
        linear = self.linears.get(name)
        if linear is None or linear.quantises or linear.integers not in self.constants:
            return None
        quantize = self.linears.get(linear.integers)
        values = self.constant(quantize.reals if quantize is not None else linear.integers)
        shape = () if values is None else values.shape
        axis = linear.axis % len(shape) if shape and -len(shape) <= linear.axis < len(shape) else linear.axis
        for turn in reversed(turns):
            order = turn or tuple(reversed(range(len(shape))))
            axis = order.index(axis) if axis in order else axis
            shape = tuple(shape[i] for i in order) if shape and len(order) == len(shape) else ()
        wanted = {"Conv": 0, "Gemm": 0 if attribute(node, "transB", 0) else 1}.get(node.op_type, len(shape) - 1)
        channels = shape[wanted] if 0 <= wanted < len(shape) else 0
        return Weight(linear, values, axis, wanted, channels, quantize is not None)

    def channels(self, node: onnx.NodeProto) -> tuple[int, int]:
        """Input and output channels of a convolution; zeros where its weights are computed."""
        weight = self.weight(node)
        values = self.constant(node.input[1]) if weight is None else weight.values
        if values is None or values.ndim < 3:
            return 0, 0
        return values.shape[1] * attribute(node, "group", 1), values.shape[0]

    def _linear(self, node: onnx.NodeProto) -> Linear:
        zero_name = node.input[2] if len(node.input) > 2 else ""
        zero = self.constant(zero_name) if zero_name else None
        if zero is not None:
            dtype = zero.dtype.name
        elif node.op_type == _LINEAR[0]:
            # What the operator makes where neither zero point nor attribute tells it.
            wanted = attribute(node, "output_dtype", 0) or onnx.TensorProto.UINT8
            dtype = onnx.helper.tensor_dtype_to_np_dtype(wanted).name
        else:
            dtype = self._integer_type(node.input[0])
        return Linear(node, self.constant(node.input[1]), zero, bool(zero_name), dtype, int(attribute(node, "axis", 1)))

    def _integer_type(self, name: str) -> str:
        while (node := self.producers.get(name)) is not None and node.op_type in MOVING:
            name = node.input[0]
        if (values := self.constant(name)) is not None:
            return str(values.dtype.name)
        if node is not None and node.op_type == _LINEAR[0]:
            return self._linear(node).dtype
        if name in self.inputs:
            kind = self.inputs[name].type.tensor_type.elem_type
            return str(onnx.helper.tensor_dtype_to_np_dtype(kind).name) if kind else ""
        return ""
