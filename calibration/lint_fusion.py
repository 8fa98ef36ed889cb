"""What ONNX Runtime's optimiser will make of a Q/DQ file on an x86 CPU, and if not integer arithmetic, why not.

The optimiser replaces ``DequantizeLinear → Conv → QuantizeLinear`` by one ``QLinearConv``, and the like for ``Add``,
``Gemm``, ``MatMul`` and pools. Its conditions were read from its sources (``core/optimizer/qdq_transformer``,
``NodeGroupSelector`` and its heirs, ``WeightBiasQuantization``, ``QDQPropagation``, ``QDQS8ToU8Transformer``), and the
tests hold every one of them against the optimiser of the installed version.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from calibration.graph import attribute
from calibration.lint_graph import Linear, QuantisedGraph, Weight
from calibration.lint_sides import BYTES, CLIPPING, Cause, Side, after, before, is_scalar, past_padding

# How far the bias's scale may be from the product of the others (found by trial: 1.01 passes, 1.02 does not).
_RELATIVE, _ABSOLUTE = 1.1e-2, 1e-6


@dataclass(frozen=True)
class Fusion:
    """What becomes of one node.

    Attributes:
        cause: What stands in the way; empty where the node will compute with integers.
        detail: The same in words, to follow the node's name.
        helped: What the optimiser quantises by itself on the way: ``bias``, ``weight``.
    """

    cause: Cause = ""
    detail: str = ""
    helped: tuple[str, ...] = ()

    @property
    def integer(self) -> bool:
        """Whether the node will compute with integers."""
        return not self.cause


def fusion(graph: QuantisedGraph, node: onnx.NodeProto) -> Fusion:
    """What the optimiser makes of a ``Conv``, ``Add``, ``Gemm``, ``MatMul`` or a pool."""
    if node.op_type == "Conv":
        return _convolution(graph, node)
    if node.op_type in ("Gemm", "MatMul"):
        return _product(graph, node)
    if node.op_type == "Add":
        return _sum(graph, node)
    if node.op_type == "MaxPool":
        return _moved(graph, node)
    return _average(graph, node)


def _convolution(graph: QuantisedGraph, node: onnx.NodeProto) -> Fusion:
    data = before(graph, past_padding(graph, node.input[0]))
    if data is None:
        return Fusion("input", "its input is not dequantised just before it")
    end = after(graph, node.output[0])
    if end.side is None:
        return Fusion(end.cause, end.detail)
    return _with_parameters(graph, node, node.input[2] if len(node.input) > 2 else "", data, end.side)


def _with_parameters(graph: QuantisedGraph, node: onnx.NodeProto, bias: str, data: Side, side: Side | None) -> Fusion:
    """The rest of a ``Conv`` or ``Gemm`` whose activations are as they should be."""
    helped: list[str] = []
    weight = graph.weight(node)
    if weight is None:
        if graph.dequantized(node.input[1]) is None:
            if not _fills_in(graph, data, side, node.input[1], bias):
                return Fusion("weight", "its weights are not quantised")
            helped.append("weight")
    elif weight.linear.dtype not in BYTES:
        return Fusion("types", f"its weights are {weight.linear.dtype or 'of an unknown type'}, not of 8 bits")
    mismatch = _types(node.op_type, data, side, "int8" if weight is None else weight.linear.dtype)
    if mismatch:
        return Fusion("types", mismatch)
    if bias:
        trouble = _bias(graph, node, bias, data, weight, side)
        if trouble == "fill in":
            helped.append("bias")
        elif trouble:
            return Fusion("bias", trouble)
    return Fusion(helped=tuple(helped))


def _types(kind: str, data: Side, side: Side | None, weight: str) -> str:
    for item in (data, side):
        if item is not None and item.dtype not in BYTES:
            return f"its activations are {item.dtype or 'of an unknown type'}, not of 8 bits"
        scale = None if item is None else item.linear.scale
        if scale is not None and scale.dtype != np.float32:
            return f"its scales are {scale.dtype.name}, not float32"
    if side is not None and data.dtype != side.dtype:
        return f"its input is {data.dtype} and its output {side.dtype}"
    if data.dtype == "int8" and (kind != "Gemm" or weight != "int8"):
        # A pair Q → DQ of int8 is turned into uint8; with a second taker of the integers it is left alone.
        return "its activations are int8 and have several takers, so that they stay int8, which x86 kernels lack"
    return ""


def _bias(
    graph: QuantisedGraph, node: onnx.NodeProto, bias: str, data: Side, weight: Weight | None, side: Side | None
) -> str:
    """Empty where a bias fits, ``fill in`` where the optimiser quantises it, otherwise why it does not fit."""
    product = float(attribute(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0
    if product != 1.0 or (node.op_type == "Gemm" and attribute(node, "beta", 1.0) != 1.0):
        return "its alpha or beta is not 1"
    found = graph.dequantized(bias)
    if found is None:
        fits = _fills_in(graph, data, side, "", bias) and (weight is None or _one_scale_for_each(graph, weight, bias))
        return "fill in" if fits else "its bias is float, and cannot be quantised by the optimiser"
    if found.dtype != "int32":
        return f"its bias is {found.dtype}, not int32"
    if found.zeros.any():
        return "the zero point of its bias is not 0"
    if rescaled(graph, data.linear):
        return "the two Q/DQ pairs before it are made one, whose scale its bias does not have"
    return "" if node.op_type != "Conv" or bias_error(data.linear, weight, found, _ABSOLUTE) <= _RELATIVE else (
        "the scale of its bias is not the product of the scales of input and weights"
    )  # fmt: skip


def bias_error(data: Linear, weight: Weight | None, bias: Linear, absolute: float = 0.0, factor: float = 1.0) -> float:
    """How far a bias's scales are from the products of the others, relative to these.

    Args:
        data: The DQ of the input.
        weight: That of the weights.
        bias: That of the bias.
        absolute: Gaps up to it count as none.
        factor: A Gemm's alpha.

    Returns:
        0 where a scale is not known, infinity where the scales of bias and weights are not equally many.
    """
    if weight is None or data.scale is None or weight.linear.scale is None or bias.scale is None:
        return 0.0
    product = factor * data.scale.astype(np.float64).ravel()[:1] * weight.linear.scale.astype(np.float64).ravel()
    given = bias.scale.astype(np.float64).ravel()
    if product.size != given.size and 1 not in (product.size, given.size):
        return math.inf
    gap = np.abs(given - product)
    return float(np.max(np.where(gap <= absolute, 0.0, gap / np.maximum(np.abs(product), np.finfo(np.float64).tiny))))


def rescaled(graph: QuantisedGraph, dequantize: Linear) -> bool:
    """Whether a pair of Q and DQ follows just behind another one with other numbers."""
    quantize = graph.linears.get(dequantize.integers)
    earlier = graph.linears.get(quantize.reals) if quantize is not None and quantize.quantises else None
    if earlier is None or earlier.quantises or quantize is None or earlier.integers in graph.constants:
        return False
    return not earlier.same_numbers(quantize)


def _fills_in(graph: QuantisedGraph, data: Side, side: Side | None, weight: str, bias: str) -> bool:
    """Whether the optimiser quantises float weights or a float bias by itself."""
    if side is None or data.linear.per_channel:
        return False
    for name, rank in ((weight, 0), (bias, 1)):
        if name not in graph.constants:
            return False
        # What is computed from constants is folded first; it is taken for float32 of the right rank.
        values = graph.constant(name) if name else None
        if values is not None and (values.dtype != np.float32 or (rank and values.ndim != rank)):
            return False
    return True


def _one_scale_for_each(graph: QuantisedGraph, weight: Weight, bias: str) -> bool:
    values, scale = graph.constant(bias), weight.linear.scale
    if scale is None or scale.size == 1:
        return True
    return (values is None or values.size == scale.size) and weight.axis == weight.wanted


def _product(graph: QuantisedGraph, node: onnx.NodeProto) -> Fusion:
    data, weight = before(graph, node.input[0]), graph.weight(node)
    if data is None:
        return Fusion("input", "its input is not dequantised just before it")
    bias, output = node.input[2] if len(node.input) > 2 else "", node.output[0]
    as_gemm = node.op_type == "Gemm"
    takers = graph.takers(output)
    if node.op_type == "MatMul" and graph.uses[output] == 1 and takers and (taker := takers[0]).op_type == "Add":
        # MatMul and the Add of a constant vector are one Gemm before Q and DQ are looked at.
        other = next((name for name in taker.input if name != output), output)
        if (values := graph.constant(other)) is not None and values.ndim == 1:
            bias, output, as_gemm = other, taker.output[0], True
    if weight is not None and weight.linear.per_channel and weight.axis != weight.wanted:
        return Fusion("weight", "the scales of its weights do not lie along its outputs")
    end = after(graph, output)
    if end.side is None and (end.cause == "relu" or _meets_quantize(graph, output)):
        return Fusion(end.cause, end.detail)
    if not as_gemm:
        if weight is None and graph.dequantized(node.input[1]) is None:
            return Fusion("weight", "its weights are not quantised")
        mismatch = _types("MatMul", data, end.side, "int8" if weight is None else weight.linear.dtype)
        return Fusion("types", mismatch) if mismatch else Fusion()
    gemm = node if node.op_type == "Gemm" else onnx.NodeProto(op_type="Gemm", input=[node.input[0], node.input[1]])
    if gemm is not node:
        gemm.attribute.extend([onnx.helper.make_attribute("transB", int(weight is not None and weight.wanted == 0))])
    return _with_parameters(graph, gemm, bias, data, end.side)


def _meets_quantize(graph: QuantisedGraph, name: str) -> bool:
    takers = graph.takers(name)
    if graph.uses[name] == 1 and takers and takers[0].op_type in CLIPPING:
        return True  # taken as part of the group, which then needs its QuantizeLinear
    return any(node.op_type == "QuantizeLinear" for node in takers)


def _sum(graph: QuantisedGraph, node: onnx.NodeProto) -> Fusion:
    sides = [before(graph, name) for name in node.input]
    for index, side in enumerate(sides):
        if side is None:
            return Fusion("input", f"its input {index + 1} is not dequantised just before it")
    end = after(graph, node.output[0])
    if end.side is None:
        return Fusion(end.cause, end.detail)
    known = [side for side in (*sides, end.side) if side is not None]
    types = [side.dtype for side in known]
    if len(set(types)) > 1 or not BYTES.issuperset(types):
        return Fusion("types", f"its inputs are {types[0]} and {types[1]} and its output {types[2]}")
    if any(not is_scalar(side.linear) for side in known):
        return Fusion("rank", "a scale or zero point beside it has rank 1, expected 0")
    return Fusion()


def _average(graph: QuantisedGraph, node: onnx.NodeProto) -> Fusion:
    if node.op_type == "ReduceMean":
        return Fusion("types", "there is no integer ReduceMean")
    side = before(graph, node.input[0])
    if side is None:
        return Fusion("input", "its input is not dequantised just before it")
    end = after(graph, node.output[0])
    if end.side is None:
        return Fusion(end.cause, end.detail)
    if side.dtype != end.side.dtype or side.dtype not in BYTES:
        return Fusion("types", f"its input is {side.dtype} and its output {end.side.dtype}")
    return Fusion()


def _moved(graph: QuantisedGraph, node: onnx.NodeProto) -> Fusion:
    if graph.quantizes(node.input[0]) is not None:
        return Fusion()  # the file has it on integers already
    side, end = before(graph, node.input[0]), after(graph, node.output[0]).side
    if side is None and end is None:
        return Fusion("input", "neither its input nor its output is quantised")
    if side is not None and end is not None:
        if not side.linear.same_numbers(end.linear):
            return Fusion("output", "it is quantised with another scale behind it than before it")
    elif side is not None:
        copy = "uint8" if side.linear.dtype == "int8" and graph.uses[node.output[0]] == 1 else side.linear.dtype
        return Fusion() if copy == side.dtype else Fusion("types", "its int8 integers have several takers")
    elif end is not None and end.dtype != "uint8" and end.linear.dtype == "int8" and end.linear.has_zero:
        return Fusion("types", "its int8 integers have several takers")
    return Fusion()
