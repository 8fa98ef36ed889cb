"""The integers on both sides of a node, as ONNX Runtime's optimiser finds them on an x86 CPU.

It looks past operators that change nothing when they run, copies Q/DQ pairs across operators that only move values
(``QDQPropagation``), and turns int8 between a ``QuantizeLinear`` and its only ``DequantizeLinear`` into uint8
(``QDQS8ToU8Transformer``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from calibration.graph import attribute
from calibration.lint_graph import HANDING_ON, Linear, QuantisedGraph

#: What keeps a node from integer arithmetic; empty where nothing does.
Cause = Literal["", "input", "weight", "bias", "output", "relu", "types", "rank"]

#: What an integer kernel can do on its way out.
CLIPPING = frozenset({"Relu", "Clip"})
_LOWEST = {"int8": -128, "uint8": 0}
#: Types that integer kernels take.
BYTES = frozenset(_LOWEST)

# QDQPropagation copies a pair to the other side of these; Flatten is not among them.
_COPIED_ACROSS = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"})


@dataclass(frozen=True)
class Side:
    """Integers beside a node: through which node of the file, and as which type after the optimiser's conversion."""

    linear: Linear
    dtype: str


@dataclass(frozen=True)
class End:
    """What follows a node: the integers, or why there are none."""

    side: Side | None = None
    cause: Cause = ""
    detail: str = ""


def is_scalar(linear: Linear) -> bool:
    """Whether scale and zero point have rank 0, not 1 with one value."""
    return all(values is None or values.ndim == 0 for values in (linear.scale, linear.zero))


def past_padding(graph: QuantisedGraph, name: str) -> str:
    """A ``Pad`` with zeros becomes part of the one convolution that takes its output."""
    node = graph.producers.get(name)
    if node is None or node.op_type != "Pad" or graph.uses[name] != 1 or len(node.input) < 2:
        return name
    pads, value = graph.constant(node.input[1]), graph.constant(node.input[2]) if len(node.input) > 2 else None
    zero = len(node.input) < 3 or not node.input[2] or (value is not None and not value.any())
    if pads is None or not zero or attribute(node, "mode", b"constant") != b"constant" or (pads < 0).any():
        return name
    rank = pads.size // 2
    return name if pads[[0, 1, rank, rank + 1]].any() else str(node.input[0])


def before(graph: QuantisedGraph, name: str) -> Side | None:
    """The integers that a tensor is made of, just before the node that takes it."""
    moved = ""
    while (node := graph.producers.get(name)) is not None and node.op_type in _COPIED_ACROSS | HANDING_ON:
        if node.op_type in _COPIED_ACROSS:
            moved = moved or name
        name = node.input[0]
    linear = graph.linears.get(name)
    if linear is None or linear.quantises or (moved and (linear.scale is None or linear.per_channel)):
        return None
    if moved:
        alone = sum(node.op_type != "QuantizeLinear" for node in graph.takers(moved)) == 1
    else:
        quantize = graph.linears.get(linear.integers)
        alone = quantize is not None and quantize.quantises and _has_one_taker(graph, quantize)
    return Side(linear, _converted(linear, alone))


def stays_signed(graph: QuantisedGraph, quantize: Linear) -> bool:
    """Whether a ``QuantizeLinear`` to int8 is left as it is."""
    return quantize.dtype == "int8" and _converted(quantize, _has_one_taker(graph, quantize)) == "int8"


def _converted(linear: Linear, alone: bool) -> str:
    """int8 between a Q and its only DQ becomes uint8 where both have their zero point."""
    one_zero = linear.zero is not None and linear.zero.size == 1
    return "uint8" if linear.dtype == "int8" and alone and one_zero else linear.dtype


def _has_one_taker(graph: QuantisedGraph, quantize: Linear) -> bool:
    """A ``DequantizeLinear`` with several takers counts as several: the optimiser makes one for each."""
    if len(_twins(graph, quantize.node)) > 1:
        return False
    takers = [
        max(1, graph.uses[node.output[0]]) if node.op_type == "DequantizeLinear" else 2
        for node in graph.takers(quantize.integers)
    ]
    return sum(takers) + (quantize.integers in graph.outputs) == 1 and not quantize.per_channel


def _twins(graph: QuantisedGraph, quantize: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that are one with a ``QuantizeLinear`` once equal nodes are merged, itself among them."""
    takers = graph.takers(quantize.input[0])
    return [
        node
        for node in takers
        if (node.op_type, node.input, node.attribute) == (quantize.op_type, quantize.input, quantize.attribute)
    ]


def after(graph: QuantisedGraph, name: str) -> End:
    """The ``QuantizeLinear`` that a node's output goes to, past clipping that it does itself."""
    clips: list[onnx.NodeProto] = []
    moved = False
    while True:
        takers = graph.takers(name)
        if name in graph.outputs or not takers:
            return End(cause="output", detail="its output is one of the network instead of going to a QuantizeLinear")
        taker = takers[0]
        merged = len(_twins(graph, taker)) if taker.op_type == "QuantizeLinear" else 1
        if graph.uses[name] != merged:
            return End(
                cause="output", detail=f"its output goes to {graph.uses[name]} places, not to one QuantizeLinear"
            )
        if taker.op_type == "QuantizeLinear" and taker.input[0] == name:
            break
        if taker.op_type in CLIPPING and not moved:
            clips.append(taker)
        elif taker.op_type in _COPIED_ACROSS and taker.input[0] == name:
            moved = True
        elif taker.op_type not in HANDING_ON:
            return End(cause="output", detail=f"its output goes to {taker.op_type} without QuantizeLinear")
        name = taker.output[0]
    linear = graph.linears[taker.output[0]]
    if moved and (linear.scale is None or linear.per_channel):
        return End(cause="output", detail="its output is quantised behind other operators, not by one scale")
    for clip in clips:
        if not _does_nothing(graph, clip, linear):
            return End(cause="relu", detail=f"its {clip.op_type} stays between it and the QuantizeLinear")
    return End(Side(linear, _converted(linear, moved or _has_one_taker(graph, linear))))


def _does_nothing(graph: QuantisedGraph, clip: onnx.NodeProto, quantize: Linear) -> bool:
    """Whether ``QuantizeLinear`` cuts off at least what a ``Relu`` or ``Clip`` before it does."""
    lowest = _LOWEST.get(quantize.dtype)
    if lowest is None or quantize.per_channel or quantize.scale is None:
        return False
    zero = int(quantize.zeros[0])
    if clip.op_type == "Relu":
        return zero == lowest
    scale = float(quantize.scale.ravel()[0])
    bounds = []
    for index, key, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        name = clip.input[index] if len(clip.input) > index else ""
        value = graph.constant(name) if name else np.array(attribute(clip, key, default))
        if value is None:
            return False
        bounds.append(float(value.ravel()[0]) / scale)
    return np.rint(bounds[0]) + zero <= lowest and bool(np.rint(bounds[1]) + zero >= lowest + 255)
