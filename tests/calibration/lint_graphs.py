"""Small quantised graphs, built node by node, for the linter and the runtimes it speaks of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Grid(NamedTuple):
    """A scale, a zero point and its type."""

    scale: object = 0.02
    zero: object = 128
    dtype: type = np.uint8


U8, U8_RELU, S8, S8_RELU = Grid(), Grid(0.1, 0), Grid(0.02, 0, np.int8), Grid(0.1, -128, np.int8)
U8_OUT, S8_OUT = Grid(0.1), Grid(0.1, 0, np.int8)
#: Half of the range of int8, so that no sum of products overflows 16 bits.
MODEST = 60


class Graph:
    """Takes nodes one after the other; every method returns the name of the tensor that it makes.

    The input is ``x``, [N, 16, 8, 8] unless said otherwise.
    """

    def __init__(self, opset=17, channels=16, size=8):
        self.nodes, self.constants, self.opset, self.channels, self.size = [], [], opset, channels, size
        self.random = np.random.default_rng(0)

    def constant(self, values, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, operator, *inputs, **attributes):
        output = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=f"n{len(self.nodes)}", **attributes))
        return output

    def quantize(self, x, grid=U8, zero=True, **attributes):
        return self._linear("QuantizeLinear", x, grid, zero, attributes)

    def dequantize(self, x, grid=U8, zero=True, **attributes):
        return self._linear("DequantizeLinear", x, grid, zero, attributes)

    def _linear(self, operator, x, grid, zero, attributes):
        zeros = [self.constant(grid.zero, grid.dtype)] if zero else []
        return self.node(operator, x, self.constant(grid.scale), *zeros, **attributes)

    def pair(self, x, grid=U8, **options):
        return self.dequantize(self.quantize(x, grid, **options), grid, **options)

    def weight(self, *shape, axis=0, scale=0.01, zero=0, dtype=np.int8, largest=MODEST, stored="integers"):
        """Weights through a DQ, and their scales; ``axis`` None: one scale."""
        count = None if axis is None else shape[axis]
        scales = np.float32(scale) if count is None else np.linspace(scale, 2 * scale, count).astype(np.float32)
        zeros = np.broadcast_to(np.asarray(zero, dtype), () if count is None else (count,))
        attributes = {} if axis is None else {"axis": axis}
        if stored == "integers":
            name = self.constant(self.random.integers(-largest, largest + 1, shape) + zero_like(zero, dtype), dtype)
        else:
            reals = self.constant(self.random.standard_normal(shape))
            name = self.quantize(reals, Grid(scales, zeros, dtype), **attributes)
        return self.dequantize(name, Grid(scales, zeros, dtype), **attributes), scales

    def bias(self, count, data, weight, factor=1.0, zero=None, dtype=np.int32):
        """An integer bias through a DQ in the product of two scales, times ``factor``."""
        scales = (np.float32(data) * np.asarray(weight) * np.float32(factor)).astype(np.float32)
        values = self.constant(self.random.integers(-100, 100, count), dtype)
        zeros = [] if zero is None else [self.constant(np.full(scales.shape, zero), dtype)]
        attributes = {"axis": 0} if scales.ndim else {}
        return self.node("DequantizeLinear", values, self.constant(scales), *zeros, **attributes)

    def conv(self, x, outputs=16, inputs=16, kernel=3, bias="int32", data=0.02, pads=True, weight=None, **attributes):
        made, scales = self.weight(outputs, inputs, kernel, kernel, **(weight or {}))
        extra = []
        if bias == "int32":
            extra = [self.bias(outputs, data, scales)]
        elif bias == "float":
            extra = [self.constant(self.random.standard_normal(outputs))]
        padding = {"pads": [kernel // 2] * 4} if pads else {}
        return self.node("Conv", x, made, *extra, **padding, **attributes)

    def float_conv(self, x, bias=False):
        extra = [self.constant(np.ones(16))] if bias else []
        return self.node("Conv", x, self.constant(self.random.standard_normal((16, 16, 3, 3))), *extra, pads=[1] * 4)

    def gemm(self, x, bias="int32", data=0.02, axis=0, turned=True, factor=1.0, **attributes):
        """10 classes of 16 features."""
        made, scales = self.weight(*((10, 16) if turned else (16, 10)), axis=axis)
        extra = []
        if bias == "int32":
            extra = [self.bias(10, data, scales, factor)]
        elif bias == "float":
            extra = [self.constant(np.ones(10))]
        return self.node("Gemm", x, made, *extra, transB=int(turned), **attributes)

    def features(self, grid=U8_RELU):
        """[N, 16] from the input, each step on integers."""
        pooled = self.pair(self.node("GlobalAveragePool", self.pair("x", grid)), grid)
        return self.pair(self.node("Flatten", pooled), grid)

    def model(self, *outputs, given=TensorProto.FLOAT, made=TensorProto.FLOAT):
        taken = helper.make_tensor_value_info("x", given, ["N", self.channels, self.size, self.size])
        results = [helper.make_tensor_value_info(name, made, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", [taken], results, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain for node in self.nodes):
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        return helper.make_model(graph, opset_imports=opsets, ir_version=8 if self.opset < 19 else 10)


def zero_like(zero, dtype):
    """What to add to integers around 0 so that they lie around ``zero``."""
    return np.asarray(zero, np.int64) if dtype == np.uint8 else 0


def residual(target, kind, opset=17) -> onnx.ModelProto:
    """A block with its classifier, placed as a target wants it; a bottleneck has a downsample convolution."""
    graph = Graph(opset)
    fuses_itself = target != "onnxruntime"
    signed = target == "tensorrt"
    plain, positive = (S8, S8_OUT) if signed else (U8, U8_RELU)
    bias = "float" if fuses_itself else "int32"

    def branch(x):
        """Behind the last convolution: TensorRT and OpenVINO add in its accumulators."""
        return x if fuses_itself else graph.pair(x, U8_OUT)

    taken = graph.quantize("x", plain)
    first = graph.dequantize(taken, plain)
    shortcut = graph.dequantize(taken, plain)
    if kind == "basic":
        inner = graph.pair(graph.node("Relu", graph.conv(first, bias=bias)), positive)
        last = branch(graph.conv(inner, bias=bias, data=0.1))
    else:
        inner = graph.pair(graph.node("Relu", graph.conv(first, kernel=1, bias=bias)), positive)
        inner = graph.pair(graph.node("Relu", graph.conv(inner, bias=bias, data=0.1, strides=[2, 2])), positive)
        last = branch(graph.conv(inner, 64, kernel=1, bias=bias, data=0.1))
        reduced = graph.conv(shortcut, 64, kernel=1, bias=bias, strides=[2, 2])
        shortcut = graph.pair(reduced, S8_OUT if signed else U8_OUT)
    total = graph.pair(graph.node("Relu", graph.node("Add", last, shortcut)), positive)
    pooled = graph.pair(graph.node("GlobalAveragePool", total), positive)
    flat = graph.node("Flatten", pooled)
    if not fuses_itself:
        flat = graph.pair(flat, positive)
    features = 64 if kind == "bottleneck" else 16
    made, scales = graph.weight(10, features)
    offset = graph.bias(10, 0.1, scales) if bias == "int32" else graph.constant(np.ones(10))
    model: onnx.ModelProto = graph.model(graph.node("Gemm", flat, made, offset, transB=1))
    return model
