"""The linter's forecast of integer operators against what the installed ONNX Runtime really makes of each graph."""

from __future__ import annotations

import platform
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from calibration.lint import report
from tests.calibration.lint_graphs import S8, S8_OUT, S8_RELU, U8, U8_OUT, U8_RELU, Graph, Grid, residual

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the forecast is for x86")

REAL = {
    "Conv": ("QLinearConv",),
    "Add": ("QLinearAdd",),
    "product": ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat"),
    "average": ("QLinearGlobalAveragePool", "QLinearAveragePool"),
}
HALF = {"kernel_shape": [2, 2], "strides": [2, 2]}


def forecast(model):
    counts = {name: count.quantised for name, count in report(model, "onnxruntime").counts.items()}
    return {
        "Conv": counts.get("Conv", 0),
        "Add": counts.get("Add", 0),
        "product": counts.get("Gemm", 0) + counts.get("MatMul", 0),
        "average": sum(counts.get(name, 0) for name in ("GlobalAveragePool", "AveragePool", "ReduceMean")),
    }


def optimised(model, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    return {name: sum(found[operator] for operator in operators) for name, operators in REAL.items()}


def conv(data=U8, out=U8_RELU, act="Relu", bias="int32", weight=None, opset=17, end=True, factor=None):
    """Q/DQ, a convolution, its activation, Q/DQ."""
    graph = Graph(opset)
    x = graph.pair("x", data)
    if factor is None:
        y = graph.conv(x, bias=bias, weight=weight)
    else:
        made, scales = graph.weight(16, 16, 3, 3)
        y = graph.node("Conv", x, made, graph.bias(16, 0.02, scales, **factor), pads=[1] * 4)
    if act == "Clip":
        y = graph.node("Clip", y, graph.constant(0), graph.constant(6))
    elif act:
        y = graph.node(act, y)
    return graph.model(graph.pair(y, out) if end else y)


def built(build, opset=17, **options):
    graph = Graph(opset)
    made = build(graph)
    return graph.model(*([made] if isinstance(made, str) else made), **options)


def sides(before=(), after=(), bias="int32", out=U8_RELU, relu=True):
    """Operators between DQ and convolution, and between its Relu and Q."""
    graph = Graph()
    y = graph.pair("x")
    for operator, attributes in before:
        y = graph.node(operator, y, **attributes)
    y = graph.conv(y, bias=bias)
    y = graph.node("Relu", y) if relu else y
    for operator, attributes in after:
        y = graph.node(operator, y, **attributes)
    return graph.model(graph.pair(y, out))


def ends(graph, kind):
    y = graph.conv(graph.pair("x"))
    if kind == "two":
        return [graph.pair(y, U8_OUT), graph.pair(y, Grid(0.2))]
    if kind == "same":
        scale, zero = graph.constant(0.1), graph.constant(128, np.uint8)
        made = [graph.node("QuantizeLinear", y, scale, zero) for _ in range(2)]
        return [graph.node("DequantizeLinear", name, scale, zero) for name in made]
    if kind == "float":
        return [graph.pair(y, U8_OUT), graph.node("Sigmoid", y)]
    if kind == "output":
        return [graph.pair(y, U8_OUT), y]
    taken = graph.quantize(y, U8_OUT)
    return [graph.dequantize(taken, U8_OUT), graph.node("Sigmoid", graph.dequantize(taken, U8_OUT))]


def block(grid=U8, relu=U8_RELU, out=U8_OUT, quantised=(True, True, True), shared=False, bias="int32"):
    graph = Graph()
    taken = graph.quantize("x", grid)
    first = graph.dequantize(taken, grid)
    shortcut = first if shared else graph.dequantize(taken, grid)
    y = graph.pair(graph.node("Relu", graph.conv(first, bias=bias)), relu)
    y = graph.conv(y, data=0.1, bias=bias)
    y = graph.pair(y, out) if quantised[0] else y
    y = graph.node("Relu", graph.node("Add", y, shortcut if quantised[1] else "x"))
    return graph.model(graph.pair(y, relu) if quantised[2] else y)


def product(end=True, grid=U8_RELU, **options):
    graph = Graph()
    y = graph.gemm(graph.features(grid), data=grid.scale, **options)
    return graph.model(graph.pair(y, S8 if grid.dtype is np.int8 else U8) if end else y)


def matrix(graph, turned=False, axis=1, bias=False, end=False):
    made, _ = graph.weight(*((10, 16) if turned else (16, 10)), axis=axis)
    made = graph.node("Transpose", made, perm=[1, 0]) if turned else made
    y = graph.node("MatMul", graph.features(), made)
    y = graph.node("Add", y, graph.constant(np.ones(10))) if bias else y
    return graph.pair(y, U8) if end else y


def pool(operator, grid=U8_RELU, end=U8_RELU, axes=False, **attributes):
    graph = Graph()
    if axes:
        attributes["axes"] = [2, 3]
    y = graph.node(operator, graph.pair("x", grid), **attributes)
    return graph.model(graph.pair(y, end) if end else y)


def padded(graph, value=None, takers=1, pads=(0, 0, 1, 1, 0, 0, 1, 1)):
    fill = [] if value is None else [graph.constant(value)]
    y = graph.node("Pad", graph.pair("x"), graph.constant(pads, np.int64), *fill)
    return [graph.pair(graph.conv(y, pads=False), U8_OUT) for _ in range(takers)]


def signed_takers(graph, pool=False):
    taken = graph.quantize("x", S8)
    x, other = graph.dequantize(taken, S8), graph.dequantize(taken, S8)
    if pool:
        x = graph.node("MaxPool", graph.pair("x", S8), **HALF)
        other = x
    return [graph.pair(graph.conv(x), S8_OUT), graph.node("Sigmoid", other)]


def stem(graph):
    y = graph.node("Relu", graph.conv(graph.pair("x")))
    taken = graph.quantize(graph.node("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), U8_RELU)
    y = graph.pair(graph.conv(graph.dequantize(taken, U8_RELU), data=0.1), U8_OUT)
    return graph.pair(graph.node("Add", y, graph.dequantize(taken, U8_RELU)), U8_OUT)


def twice(graph, bias):
    return graph.pair(graph.conv(graph.pair(graph.pair("x"), Grid(0.03)), bias=bias, data=0.03), U8_OUT)


def subsampled(graph, requantised):
    """The shortcut without weights: every second pixel, zero channels beside them."""
    taken = graph.quantize("x")
    step = [graph.constant(values, np.int64) for values in ([0, 0], [8, 8], [2, 3], [2, 2])]
    short = graph.node("Slice", graph.dequantize(taken), *step)
    short = graph.node("Pad", short, graph.constant([0, 8, 0, 0, 0, 8, 0, 0], np.int64))
    short = graph.pair(short) if requantised else short
    y = graph.pair(graph.conv(graph.dequantize(taken), 32, strides=[2, 2]), U8_OUT)
    return graph.pair(graph.node("Add", y, short), U8_OUT)


CASES = {
    "int32 bias": conv(),
    "float bias": conv(bias="float"),
    "no bias": conv(bias=None),
    "no Relu": conv(act="", out=U8_OUT),
    "two Relus": built(
        lambda g: g.pair(g.node("Relu", g.node("Relu", g.conv(g.pair("x")))), U8_RELU)
    ),
    "Relu and a zero point": conv(out=U8_OUT),
    "nothing behind": conv(end=False),
    "nothing behind, float bias": conv(end=False, bias="float"),
    "one scale of weights": conv(weight={"axis": None}),
    "one scale of weights, float bias": conv(weight={"axis": None}, bias="float"),
    "wrong axis": conv(weight={"axis": 1}, bias=None),
    "wrong axis, float bias": conv(weight={"axis": 1}, bias="float"),
    "uint8 weights": conv(weight={"dtype": np.uint8, "zero": 128}),
    "float weights": built(lambda g: g.pair(g.float_conv(g.pair("x")), U8_OUT)),
    "float weights, float bias": built(lambda g: g.pair(g.float_conv(g.pair("x"), bias=True), U8_OUT)),
    "weights behind Q": conv(weight={"stored": "reals"}, bias=None),
    "bias scale doubled": conv(factor={"factor": 2.0}),
    "bias scale 1 % off": conv(factor={"factor": 1.01}),
    "bias scale 2 % off": conv(factor={"factor": 1.02}),
    "bias zero point": conv(factor={"zero": 100}),
    "bias zero point 0": conv(factor={"zero": 0}),
    "bias int8": conv(factor={"dtype": np.int8}),
    "int8, Relu at 0": conv(S8, S8_OUT),
    "int8, no Relu": conv(S8, S8_OUT, act=""),
    "int8, Relu at -128": conv(S8, S8_RELU),
    "uint8 to int8": conv(out=S8_RELU),
    "int16": conv(Grid(0.001, 0, np.int16), Grid(0.001, 0, np.int16), act="", bias=None, opset=21),
    "Clip wider than the range": conv(act="Clip", out=Grid(0.02, 0)),
    "Clip narrower than the range": conv(act="Clip", out=Grid(0.03, 0)),
    "Clip and a zero point": conv(act="Clip", out=Grid(0.02, 10)),
    "scale of rank 1 behind Relu": conv(out=Grid([0.1], [0])),
    "opset 13": conv(opset=13),
    "opset 21": conv(opset=21),
    "several channels of input": conv(Grid(np.full(16, 0.02), np.full(16, 128)), bias="float"),
    "float input": built(lambda g: g.pair(g.conv("x"), U8_OUT)),
    "uint8 input": built(lambda g: g.pair(g.conv(g.dequantize("x")), U8_OUT), given=TensorProto.UINT8),
    "uint8 output": built(lambda g: g.quantize(g.conv(g.pair("x")), U8_OUT), made=TensorProto.UINT8),
    "no zero points": built(lambda g: g.pair(g.conv(g.pair("x", zero=False)), U8_RELU, zero=False)),
    "int8 without zero points": built(
        lambda g: g.pair(g.conv(g.pair("x", S8, zero=False), bias=None), S8_OUT, zero=False), opset=21
    ),
    "depthwise": built(lambda g: g.pair(g.conv(g.pair("x"), inputs=1, group=16), U8_OUT)),
    "two pairs before it": built(lambda g: twice(g, "int32")),
    "two pairs before it, no bias": built(lambda g: twice(g, None)),
    "two pairs behind it": built(lambda g: g.pair(g.pair(g.conv(g.pair("x")), U8_OUT), U8)),
    **{f"ends in {kind}": built(lambda g, k=kind: ends(g, k)) for kind in ("two", "same", "float", "output", "shared")},
    **{
        f"{name} {place}": sides(**{place: [(name, attributes)]})
        for place in ("before", "after")
        for name, attributes in {
            "MaxPool": HALF, "Identity": {}, "Transpose": {"perm": [0, 1, 3, 2]}, "AveragePool": HALF,
        }.items()
    },
    "Flatten after": sides(after=[("Flatten", {})]),
    "MaxPool and Relu after": sides(relu=False, after=[("MaxPool", HALF), ("Relu", {})]),
    "two MaxPools after": sides(after=[("MaxPool", HALF), ("MaxPool", HALF)]),
    "MaxPool after, float bias": sides(after=[("MaxPool", HALF)], bias="float"),
    "block": block(),
    "block, one DQ": block(shared=True),
    "block, float biases": block(bias="float"),
    "block, int8": block(S8, S8_OUT, S8_OUT),
    "block, int8 at -128": block(S8, S8_RELU, S8_OUT),
    "block, no Q before Add": block(quantised=(False, True, True)),
    "block, float shortcut": block(quantised=(True, False, True)),
    "block, no Q behind": block(quantised=(True, True, False)),
    "Add of int8 with takers": built(
        lambda g: g.pair(
            g.node("Add", g.dequantize(g.quantize("x", S8), S8), g.dequantize(g.nodes[0].output[0], S8)), S8_OUT
        )
    ),
    "Add beside rank 1": built(lambda g: g.pair(g.node("Add", g.pair("x", Grid([0.02], [128])), g.pair("x")), U8_OUT)),
    "int8 with takers": built(signed_takers),
    "int8 with takers behind MaxPool": built(lambda g: signed_takers(g, pool=True)),
    "shortcut without weights": built(lambda g: subsampled(g, True)),
    "shortcut without weights, float": built(lambda g: subsampled(g, False)),
    "stem": built(stem),
    "Gemm": product(),
    "Gemm, no Q": product(end=False),
    "Gemm, float bias": product(bias="float"),
    "Gemm, float bias, no Q": product(bias="float", end=False),
    "Gemm, no bias, no Q": product(bias=None, end=False),
    "Gemm, not turned": product(turned=False, axis=1),
    "Gemm, wrong axis": product(turned=False, axis=0, bias=None),
    "Gemm, int8": product(grid=S8_OUT),
    "Gemm, alpha": product(alpha=0.5),
    "Gemm, alpha, no bias": product(alpha=0.5, bias=None),
    "Gemm, beta": product(beta=0.5),
    "MatMul": built(matrix),
    "MatMul and Q": built(lambda g: matrix(g, end=True)),
    "MatMul, Add": built(lambda g: matrix(g, bias=True)),
    "MatMul, Add and Q": built(lambda g: matrix(g, bias=True, end=True)),
    "MatMul, turned": built(lambda g: matrix(g, turned=True, axis=0)),
    "MatMul, turned, Add and Q": built(lambda g: matrix(g, turned=True, axis=0, bias=True, end=True)),
    "GlobalAveragePool": pool("GlobalAveragePool"),
    "GlobalAveragePool, other scale": pool("GlobalAveragePool", end=U8),
    "GlobalAveragePool, no Q": pool("GlobalAveragePool", end=None),
    "AveragePool": pool("AveragePool", **HALF),
    "ReduceMean": pool("ReduceMean", axes=True),
    "Pad with 0": built(padded),
    "Pad with -2.56": built(lambda g: padded(g, -2.56)),
    "Pad for two": built(lambda g: padded(g, takers=2)),
    "basic block for onnxruntime": residual("onnxruntime", "basic"),
    "bottleneck for onnxruntime": residual("onnxruntime", "bottleneck"),
    "basic block for tensorrt": residual("tensorrt", "basic"),
    "bottleneck for openvino": residual("openvino", "bottleneck"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_forecast_is_what_the_optimiser_makes(name, tmp_path):
    assert forecast(CASES[name]) == optimised(CASES[name], tmp_path)


def test_the_forecasts_are_not_all_alike():
    found = [forecast(model) for model in CASES.values()]
    for operator in REAL:
        assert {0, 1} <= {counts[operator] for counts in found}


@pytest.mark.parametrize(
    ("end", "integer"), [(U8_RELU, True), (None, True), (U8, False)], ids=["same scale", "no Q", "other scale"]
)
def test_a_maxpool_takes_integers_as_forecast(end, integer, tmp_path):
    model = pool("MaxPool", end=end, **HALF)
    optimised(model, tmp_path)
    made = onnx.load(tmp_path / "optimised.onnx").graph
    [maximum] = [node for node in made.node if node.op_type == "MaxPool"]
    [source] = [node for node in made.node if maximum.input[0] in node.output]
    assert (source.op_type == "QuantizeLinear") == integer
    assert report(model, "onnxruntime").counts["MaxPool"].quantised == integer


@pytest.mark.parametrize("case", ["wrong axis", "several channels of input with an int32 bias"])
def test_what_is_called_an_error_goes_wrong(case):
    """The file loads; run, it stops or differs from the same file without optimisation."""
    if case == "wrong axis":
        model = conv(weight={"axis": 1}, bias=None)
    else:
        grid = Grid(np.linspace(0.01, 0.03, 16), np.full(16, 128))
        graph = Graph()
        model = graph.model(graph.pair(graph.conv(graph.pair("x", grid, axis=1), bias=None), U8_OUT))
    assert report(model, "onnxruntime").number("error")
    batch = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float32)
    plain = run(model, batch, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    try:
        fused = run(model, batch, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        return
    except onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException:
        return
    assert np.abs(fused - plain).max() > 0.5


def run(model, batch, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": batch})[0]
