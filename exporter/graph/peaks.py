"""How large does every tensor get? A copy of a graph that tells, for finding what FP16 cannot hold.

ONNX Runtime's CPU provider runs an FP16 graph through FP32 kernels and keeps what lies between them in FP32, so that an
activation beyond 65504 goes unseen there, and is Inf on a device. The peaks are measured on the FP32 graph instead::

    each tensor [N, ...] -> Abs -> Flatten -> ReduceMax -> [N, 1]      all of them -> Concat -> [N, tensors]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.opset import inferred_shapes, opset_of

_AXES = "peaks.axes"


class Peaks(NamedTuple):
    """A graph with one output ``[N, tensors]``, and the name of the tensor behind each column."""

    model: onnx.ModelProto
    tensors: tuple[str, ...]


def with_peaks(model: onnx.ModelProto) -> Peaks:
    """A graph that gives, instead of logits, the largest magnitude of each of its tensors for each image.

    Args:
        model: FP32 graph; untouched.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    graph = probed.graph
    shapes = inferred_shapes(model)
    tensors = [name for node in graph.node for name in node.output[:1] if _is_activation(model, shapes.get(name, []))]
    opset = opset_of(model)
    columns = []
    for name in tensors:
        nodes, column = _peak(name, opset)
        graph.node.extend(nodes)
        columns.append(column)
    if opset >= 18:
        graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), _AXES))
    graph.node.append(helper.make_node("Concat", columns, ["peaks"], name="peaks", axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("peaks", TensorProto.FLOAT, ["batch", len(tensors)]))
    return Peaks(probed, tuple(tensors))


def _is_activation(model: onnx.ModelProto, shape: list[int | None]) -> bool:
    """Whether the first dimension is the batch; shape arithmetic of dynamic graphs has one dimension only."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    return len(shape) >= 2 and shape[0] == (batch.dim_value if batch.HasField("dim_value") else None)


def _peak(name: str, opset: int) -> tuple[list[onnx.NodeProto], str]:
    parts = [f"peaks.{name}.{step}" for step in ("abs", "flat", "max")]
    axes: dict[str, Any] = {"axes": [1]} if opset < 18 else {}
    inputs = [parts[1]] if opset < 18 else [parts[1], _AXES]
    return [
        helper.make_node("Abs", [name], [parts[0]], name=parts[0]),
        helper.make_node("Flatten", [parts[0]], [parts[1]], name=parts[1], axis=1),
        helper.make_node("ReduceMax", inputs, [parts[2]], name=parts[2], keepdims=1, **axes),
    ], parts[2]
