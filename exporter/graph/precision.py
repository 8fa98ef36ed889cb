"""An FP32 graph -> a true FP16 graph: weights, constants and every tensor between input and output.

Strongly typed runtimes (TensorRT 11, TensorRT-RTX) take their precision from the file, so the file has to carry it.
Values are rounded to nearest; what FP16 cannot hold is refused by name instead of being clipped. Some inputs are FP32
by the standard (the scales of ``Resize``): constants there stay as they are, and anything else there is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, defs, helper, numpy_helper

from exporter.graph.opset import opset_of, without_weights
from runtimes.errors import GraphError, first_line

FP16_MAX = float(np.finfo(np.float16).max)
_INPUT_CAST, _OUTPUT_CAST = "input_to_fp16", "logits_to_fp32"
# Attributes of these name an element type; the other operators of a residual network have none.
_TYPE_ATTRIBUTES = {"Cast": "to", "ConstantOfShape": "value", "Constant": "value"}
_SHORT_CONSTANTS = ("value_float", "value_floats")
_NEXT_STEP = "export --precision fp32, or build the engine with BF16"


@dataclass(frozen=True)
class HalfPrecision:
    """An FP16 graph and what rounding did to it.

    Attributes:
        model: The graph.
        underflows: Weights that were not zero and are now.
        worst_relative: Largest relative rounding error of a weight in FP16's normal range.
    """

    model: onnx.ModelProto
    underflows: int
    worst_relative: float


def to_fp16(model: onnx.ModelProto, keep_io: bool = True) -> HalfPrecision:
    """Convert a graph to FP16.

    Args:
        model: FP32 graph; untouched.
        keep_io: Whether input and output stay FP32, behind one Cast each.

    Raises:
        GraphError: A weight is larger than FP16's 65504, or an operator has no FP16 form; names it.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    kept = _fp32_constants(half)
    underflows, worst = 0, 0.0
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            values = numpy_helper.to_array(tensor)
            rounded = _round(values, tensor.name)
            underflows += int(((rounded == 0) & (values != 0)).sum())
            worst = max(worst, _worst_relative(values, rounded))
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    for node in graph.node:
        if not kept.intersection(node.output):
            _convert_attributes(node)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    if keep_io:
        _cast_interface(graph)
    _require_fp16(half, kept)
    return HalfPrecision(half, underflows, worst)


def _fp32_constants(model: onnx.ModelProto) -> set[str]:
    """Constants that their reader takes in FP32 only."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants.update(node.output[0] for node in model.graph.node if node.op_type == "Constant")
    kept: set[str] = set()
    for node in model.graph.node:
        formals = defs.get_schema(node.op_type, opset_of(model), node.domain).inputs
        for index, name in enumerate(node.input):
            types = formals[min(index, len(formals) - 1)].types  # the last one may be repeated
            if name and "tensor(float)" in types and "tensor(float16)" not in types:
                if name not in constants:
                    raise GraphError(f"{node.name}: {node.op_type} takes {name} in FP32 only: {_NEXT_STEP}")
                kept.add(name)
    return kept


def _require_fp16(model: onnx.ModelProto, kept: set[str]) -> None:
    """The types fit together, and nothing between input and output is FP32.

    Raises:
        GraphError: Names what is not.
    """
    try:
        light = without_weights(model)
        typed = onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True).graph.value_info
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"the graph has no FP16 form ({first_line(error)}): {_NEXT_STEP}") from error
    left = [value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    if set(left) - kept:
        raise GraphError(f"{min(set(left) - kept)} stays FP32 in the FP16 graph: {_NEXT_STEP}")


def _round(values: np.ndarray, name: str) -> np.ndarray:
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))  # FP16 has Inf: a MaxPool is padded with it
    if largest > FP16_MAX:
        raise GraphError(f"{name} has a value of {largest:g}, and FP16 ends at {FP16_MAX:g}: {_NEXT_STEP}")
    return values.astype(np.float16)


def _worst_relative(values: np.ndarray, rounded: np.ndarray) -> float:
    normal = np.isfinite(values) & (np.abs(values) >= np.finfo(np.float16).smallest_normal)
    if not normal.any():
        return 0.0
    exact = values[normal].astype(np.float64)
    return float(np.max(np.abs(rounded[normal].astype(np.float64) - exact) / np.abs(exact)))


def _convert_attributes(node: onnx.NodeProto) -> None:
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float32))))
    for attribute in node.attribute:
        if node.op_type == "Constant" and attribute.name in _SHORT_CONSTANTS:
            tensor = numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), np.float32))
            attribute.CopyFrom(helper.make_attribute("value", tensor))
        if attribute.name != _TYPE_ATTRIBUTES.get(node.op_type):
            continue
        if attribute.type == AttributeProto.INT and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(attribute.t)
            attribute.t.CopyFrom(numpy_helper.from_array(_round(values, node.name), attribute.t.name))


def _cast_interface(graph: onnx.GraphProto) -> None:
    """FP32 input -> Cast -> … -> Cast -> FP32 output, under the same two names."""
    source, result = graph.input[0], graph.output[0]
    inner_result = f"{result.name}_fp16"
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == source.name:
                node.input[index] = _INPUT_CAST
            elif name == result.name:
                node.input[index] = inner_result
        for index, name in enumerate(node.output):
            if name == result.name:
                node.output[index] = inner_result
    first = helper.make_node("Cast", [source.name], [_INPUT_CAST], name=_INPUT_CAST, to=TensorProto.FLOAT16)
    last = helper.make_node("Cast", [inner_result], [result.name], name=_OUTPUT_CAST, to=TensorProto.FLOAT)
    graph.node.insert(0, first)
    graph.node.append(last)
    source.type.tensor_type.elem_type = result.type.tensor_type.elem_type = TensorProto.FLOAT
