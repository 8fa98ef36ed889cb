"""Runtimes and ONNX models small enough to read, which the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtimes.base import Array, Binding, Runtime, TensorSpec

CHANNELS, CLASSES = 3, 5


class FunctionRuntime(Runtime):
    """A function from ``[N, C, H, W]`` to an array, as a runtime; it counts openings and closings."""

    def __init__(self, function: Callable[[Array], Any], name: str = "function", classes: int | None = None) -> None:
        super().__init__(name)
        self.function = function
        self.classes = classes
        self.opened = self.closed = 0

    def _open(self) -> Binding:
        self.opened += 1
        return Binding(
            input=TensorSpec("input", "float32", (None, CHANNELS, None, None)),
            output=TensorSpec("logits", "float32", (None, self.classes)),
            used={"device": "cpu"},
        )

    def _run(self, batch: Array) -> Array:
        output: Array = self.function(batch)
        return output

    def _close(self) -> None:
        self.closed += 1


def weights(seed: int = 0) -> Array:
    """``[C, classes]`` float32."""
    return np.random.default_rng(seed).standard_normal((CHANNELS, CLASSES)).astype(np.float32)


def images(count: int = 6, seed: int = 1) -> Array:
    """``[count, C, 4, 4]`` float32, each image unlike the others."""
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, 4, 4)).astype(np.float32)


def linear(matrix: Array, gain: float = 1.0) -> Callable[[Array], Array]:
    """Mean over each channel, times ``matrix``, times ``gain``."""

    def apply(batch: Array) -> Array:
        return np.asarray(batch.mean(axis=(2, 3)) @ matrix * gain, dtype=np.float32)

    return apply


def onnx_linear(matrix: Array, *, opset: int = 17, elements: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The same computation as :func:`linear`, as an ONNX model with a dynamic batch."""
    dtype = helper.tensor_dtype_to_np_dtype(elements)
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    return model(
        nodes,
        inputs=[helper.make_tensor_value_info("input", elements, ["N", CHANNELS, 4, 4])],
        outputs=[helper.make_tensor_value_info("logits", elements, ["N", CLASSES])],
        initializers=[numpy_helper.from_array(matrix.astype(dtype), "weight")],
        opset=opset,
    )


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[TensorProto] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=initializers or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
