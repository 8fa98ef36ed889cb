"""Rules of the linter for ONNX Runtime: which layers stay in float, and what is computed wrongly.

Whether a layer really stays in float is held against its optimiser in ``test_lint_fusion.py``; here only where weights
or biases are computed from constants.
"""

from __future__ import annotations

import numpy as np
import pytest

from calibration.lint import report
from tests.calibration.lint_cases import (
    CHANNELS,
    HALF,
    ORT,
    Case,
    built,
)
from tests.calibration.lint_graphs import S8, S8_OUT, U8, U8_OUT, U8_RELU, Grid
from tests.calibration.test_lint_fusion import forecast, optimised
from tests.calibration.test_lint_fusion import pytestmark as on_x86

ERROR, WARNING, NOTE = {ORT: "error"}, {ORT: "warning"}, {ORT: "note"}
FLOAT_BIAS, INT8_BIAS = {"bias": "float"}, {"dtype": np.int8}


def conv(graph, x=None, **options):
    """From the input: Q n0, DQ n1, DQ of the weights n2, Conv n3."""
    return graph.conv(graph.pair("x") if x is None else x, **{"bias": None, **options})


def ended(x=None, **options):
    """The same between Q/DQ."""
    return lambda g: g.pair(conv(g, x, **options), U8_OUT)


def behind_maxpool(graph):
    return graph.pair(conv(graph, graph.node("MaxPool", graph.pair("x"), **HALF)), U8_OUT)


def computed_weights(grid):
    """Made of constants, which are folded before anything is quantised."""
    return lambda g: g.pair(
        g.node("Conv", g.pair("x", grid), g.node("Neg", g.constant(np.ones((16, 16, 1, 1))))), U8_OUT
    )


def computed_bias(graph):
    weight, bias = graph.weight(16, 16, 1, 1)[0], graph.node("Neg", graph.constant(np.ones(16)))
    return graph.pair(graph.node("Conv", graph.pair("x"), weight, bias), U8_OUT)


def gemm(**options):
    """Behind 8 nodes: DQ of the weights n8, that of the bias n9, Gemm n10."""
    return lambda g: g.gemm(g.features(), data=0.1, **options)


def rectified(grid):
    return lambda g: g.pair(g.node("Relu", conv(g)), grid)


def with_bias(behind="", zeros=False, channels=16, **options):
    """Q n0, DQ n1, DQ of the weights n2, that of the bias n3, Conv n4; behind another operator each is one more."""

    def build(graph):
        x = graph.pair("x")
        if behind:
            pads = [graph.constant([0, 0, 1, 1] * 2, np.int64)] if behind == "Pad" else []
            x = graph.node(behind, x, *pads, **(HALF if behind == "MaxPool" else {}))
        weight, scales = graph.weight(16, 16, 3, 3)
        bias = graph.bias(16, 0.02, scales[:channels], **options)
        if zeros:
            graph.nodes[-1].input[0] = graph.constant(np.zeros(16), np.int32)
        return graph.pair(graph.node("Conv", x, weight, bias, pads=[1] * 4), U8_OUT)

    return build


def signed(takers, integers=False):
    """int8, with several DQ or one DQ with several takers."""

    def build(graph):
        taken = graph.quantize("x", S8)
        if integers:
            return [graph.dequantize(taken, S8) for _ in range(takers)]
        read = graph.dequantize(taken, S8)
        return [graph.node("Sigmoid", read) for _ in range(takers)]

    return build


def signed_output(takers):
    def build(graph):
        made = graph.quantize(conv(graph), S8_OUT)
        return [graph.dequantize(made, S8_OUT) for _ in range(takers)]

    return build


def added(first=U8, shortcut=True):
    return lambda g: g.pair(g.node("Add", g.pair("x", first), g.pair("x") if shortcut else "x"), U8_OUT)


def classified(graph, quantised, weights="int8"):
    y = graph.node("Flatten", graph.pair("x"))
    y = graph.pair(y) if quantised else y
    weight = graph.constant(np.ones((10, 1024))) if weights == "float" else graph.weight(10, 1024)[0]
    return graph.node("Gemm", y, weight, transB=1)


def pooled(operator, end, **attributes):
    return lambda g: g.pair(g.node(operator, g.pair("x", U8_RELU), **attributes), end)


CASES = (
    Case("conv-input", WARNING, ended("x"), ("n1", "conv1"), "its input is not dequantised just before it",
         "put QuantizeLinear and DequantizeLinear before it", behind_maxpool),
    # ONNX Runtime quantises float weights by itself, but not beside scales for each channel.
    Case("conv-weight", WARNING, lambda g: g.pair(g.float_conv(g.pair("x", CHANNELS)), U8_OUT), ("n2", "conv2"),
         "its weights are not quantised", "one scale for each output channel",
         lambda g: g.pair(g.float_conv(g.pair("x")), U8_OUT)),
    Case("conv-weight", WARNING, computed_weights(CHANNELS), ("n3", "conv3"), "its weights are not quantised",
         "one scale for each output channel", computed_weights(U8)),
    Case("conv-output", WARNING, lambda g: g.node("Sigmoid", conv(g)), ("n3", "conv3"),
         "its output goes to Sigmoid without QuantizeLinear", "behind it, the only thing that takes its output",
         ended()),
    Case("conv-output", WARNING, lambda g: [g.pair(y := conv(g), U8_OUT), y], ("n3", "conv3"),
         "its output is one of the network", "the only thing that takes its output", ended()),
    Case("conv-relu", WARNING, rectified(U8_OUT), ("n3", "conv3"), "its Relu stays between it and the QuantizeLinear",
         "uint8 with zero point 0", rectified(U8_RELU)),
    Case("conv-types", WARNING, signed_output(2), ("n3", "conv3"), "its input is uint8 and its output int8",
         "activations on both sides to uint8", signed_output(1)),
    Case("conv-bias", WARNING, with_bias(**INT8_BIAS), ("n4", "conv4"), "its bias is int8, not int32",
         "store the bias as int32", (with_bias(), computed_bias)),
    # An error already, under another name.
    Case("conv-bias", WARNING, with_bias(factor=2.0, zeros=True), ("n4", "conv4"), "the scale of its bias",
         "scale = input scale x weight scale", with_bias(factor=2.0)),
    Case("bias-scale", ERROR, with_bias(factor=2.0), ("n4", "dequantizelinear3"), "up to 100 % away from it",
         "store bias / (input scale x weight scale) as int32", with_bias(factor=1.01)),
    Case("bias-scale", ERROR, with_bias(factor=1.02), ("n4", "dequantizelinear3"), "up to 2 % away from it",
         "store bias / (input scale x weight scale) as int32", with_bias(factor=2.0, zeros=True)),
    *(Case("bias-scale", ERROR, with_bias(operator, factor=0.5), ("n5", "dequantizelinear4"), "up to 50 % away",
           "store bias / (input scale x weight scale) as int32", with_bias(operator))
      for operator in ("MaxPool", "Pad")),
    Case("bias-scale", ERROR, with_bias(channels=8), ("n4", "dequantizelinear3"), "not one for each channel",
         "store bias / (input scale x weight scale) as int32", with_bias()),
    Case("bias-scale", ERROR, gemm(factor=2.0), ("n10", "dequantizelinear9"), "up to 100 % away",
         "store bias / (input scale x weight scale) as int32", (gemm(), gemm(alpha=0.5, factor=0.5))),
    Case("bias-zero-point", ERROR, with_bias(zero=100), ("n3", "dequantizelinear3"), "int32 with zero point 100",
         "leave the zero point out", with_bias(zero=0)),
    Case("bias-float", NOTE, ended(**FLOAT_BIAS), ("n3", "conv3"), "its bias is float in the file",
         "store the bias as int32", lambda g: conv(g, **FLOAT_BIAS)),
    Case("signed-activations", WARNING, signed(2, integers=True), ("n0", "x"), "int8, zero point 0, read by 2 nodes",
         "quantise activations to uint8", signed(1, integers=True)),
    Case("signed-activations", WARNING, signed(3), ("n0", "x"), "int8, zero point 0, read by 3 nodes",
         "for ARM this is no fault", signed(1)),
    Case("signed-activations-converted", NOTE, signed(1), ("n0", "x"), "int8, zero point 0", "for x86 alone",
         signed(2)),
    Case("add-float", WARNING, added(shortcut=False), ("n2", "add2"), "its input 2 is not dequantised",
         "put Q/DQ on both inputs", (added(), added(Grid([0.02], [128])))),
    Case("add-rank", ERROR, added(Grid([0.02], [128])), ("n4", "add4"), "has rank 1, expected 0", "rank 0", added()),
    Case("gemm-float", WARNING, lambda g: classified(g, False), ("n4", "gemm4"), "its input is not dequantised",
         "just before it (behind Flatten)",
         (lambda g: classified(g, True), lambda g: classified(g, False, "float"))),
    Case("classifier-float", NOTE, lambda g: classified(g, False, "float"), ("n3", "gemm3"),
         "its input is not dequantised", "quantise its input and its weights", lambda g: classified(g, False)),
    Case("maxpool-float", WARNING, pooled("MaxPool", U8, **HALF), ("n2", "maxpool2"), "another scale behind it",
         "the same scale before and behind it", pooled("MaxPool", U8_RELU, **HALF)),
    # On the integers themselves, as a MaxPool can be written.
    Case("maxpool-float", WARNING, lambda g: [g.node("MaxPool", "x", **HALF), g.pair("x")], ("n0", "maxpool0"),
         "neither its input nor its output is quantised", "the same scale before and behind it",
         lambda g: g.dequantize(g.node("MaxPool", g.quantize("x"), **HALF))),
    Case("pool-float", NOTE, pooled("ReduceMean", U8_RELU, axes=[2, 3]), ("n2", "reducemean2"),
         "there is no integer ReduceMean", "GlobalAveragePool instead of ReduceMean",
         pooled("GlobalAveragePool", U8_RELU)),
)  # fmt: skip


@pytest.mark.parametrize("layer", ["conv", "gemm"])
def test_a_bias_that_is_an_error_is_said_once(layer):
    def build(graph):
        if layer == "conv":
            return with_bias(zero=100)(graph)
        weight, scales = graph.weight(10, 16)
        return graph.node("Gemm", graph.features(), weight, graph.bias(10, 0.1, scales, zero=100), transB=1)

    assert list(report(built(build), ORT).reasons) == ["bias-zero-point"]


@on_x86
@pytest.mark.parametrize("build", [computed_weights(U8), computed_weights(CHANNELS), computed_bias])
def test_what_is_computed_from_constants_is_quantised_as_forecast(build, tmp_path):
    model = built(build)
    assert forecast(model) == optimised(model, tmp_path)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime", "openvino"])
def test_a_maxpool_on_integers_counts_as_one(target):
    model = built(lambda g: g.dequantize(g.node("MaxPool", g.quantize("x"), **HALF)))
    assert report(model, target).counts["MaxPool"] == (1, 1)
