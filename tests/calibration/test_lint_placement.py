"""Rules of the linter for where Q and DQ stand, as TensorRT and OpenVINO fuse; pools, sums and paddings among them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from tests.calibration.lint_cases import (
    HALF,
    ORT,
    OV,
    TRT,
    Case,
    built,
    findings,
)
from tests.calibration.lint_graphs import S8, S8_OUT

WARNING, NOTE = {TRT: "warning", OV: "warning"}, {TRT: "note", OV: "note"}


def conv(graph, x=None, **options):
    """From the input: Q n0, DQ n1, DQ of the weights n2, Conv n3."""
    return graph.conv(graph.pair("x", S8) if x is None else x, bias=None, **options)


def behind_relu(graph):
    return conv(graph, graph.node("Relu", graph.pair("x", S8)))


def classifier(graph, *operators):
    """A float Gemm behind DQ and some operators."""
    y = graph.pair("x", S8)
    for operator in operators:
        y = graph.node(operator, y)
    features = 16 if "GlobalAveragePool" in operators else 1024
    return graph.node("Gemm", y, graph.constant(np.ones((features, 10))))


def shortcut(graph, quantised):
    y = conv(graph)
    return graph.node("Add", y, graph.pair("x", S8) if quantised else "x")


def sum_of_branch(graph, other, swapped=False):
    """Q/DQ between the last convolution and the sum."""
    y = graph.pair(conv(graph), S8_OUT)
    sides = [y, conv(graph) if other == "conv" else other]
    return graph.node("Add", *(sides[::-1] if swapped else sides))


def gated(graph):
    """Q/DQ on the shortcut, and no convolution just before the sum: squeeze and excitation."""
    y = conv(graph)
    return graph.node("Add", graph.pair(graph.node("Relu", "x"), S8), graph.node("Mul", y, graph.node("Sigmoid", y)))


def pooled(graph, quantised, beside=True):
    """A pool behind DQ or in float, with a QuantizeLinear beside it or elsewhere."""
    y = graph.node("Relu", "x")
    y = graph.pair(y, S8) if quantised else y
    return [graph.pair(y if beside else "x", S8), graph.node("GlobalAveragePool", y)]


def image(graph, *operators):
    """Three channels, seen as an image where nothing was computed before."""
    x, graph.channels = "x", 3
    for operator in operators:
        x = graph.node(operator, x)
    return conv(graph, graph.pair(x, S8), inputs=3)


def padded(value):
    pads = [0, 0, 1, 1, 0, 0, 1, 1]
    return lambda g: g.node("Pad", g.pair("x", S8), g.constant(pads, np.int64), g.constant(value))


CASES = (
    Case("half-quantised", {TRT: "warning"}, behind_relu, ("n4", "relu2"),
         "its weights are quantised, its input is not", "both the input and the weights",
         lambda g: conv(g, g.node("MaxPool", g.pair("x", S8), **HALF))),
    Case("half-quantised", {OV: "warning"}, lambda g: [conv(g, "x"), g.pair("x")], ("n1", "x"),
         "its weights are quantised, its input is not", "both the input and the weights", behind_relu),
    Case("half-quantised", WARNING, lambda g: g.float_conv(g.pair("x", S8)), ("n2", "c4"),
         "its input is quantised, its weights are not", "both the input and the weights", conv),
    Case("conv-float", WARNING, lambda g: g.float_conv(conv(g)), ("n4", "conv4"), "neither its input nor its weights",
         "quantise its input and its weights", lambda g: [g.float_conv("x"), g.pair("x")]),
    # OpenVINO moves the Relu behind the DQ onto integers, so that the input counts as quantised there.
    Case("conv-float", {TRT: "warning"}, lambda g: g.float_conv(g.node("Relu", g.pair(conv(g), S8_OUT))),
         ("n7", "conv7"), "neither its input nor its weights", "quantise its input and its weights",
         lambda g: g.float_conv(g.node("MaxPool", g.pair(conv(g), S8_OUT), **HALF))),
    Case("first-conv-float", NOTE, lambda g: g.pair(g.float_conv(g.node("Relu", "x"))), ("n1", "conv1"),
         "the first convolution is not quantised", "quantise it too", lambda g: g.float_conv(conv(g))),
    Case("classifier-float", NOTE, lambda g: classifier(g, "Sigmoid", "Flatten"), ("n4", "gemm4"),
         "neither its input nor its weights", "quantise its input and its weights",
         lambda g: classifier(g, "Flatten")),
    Case("classifier-float", {TRT: "note"}, lambda g: classifier(g, "GlobalAveragePool", "Flatten"), ("n4", "gemm4"),
         "neither its input nor its weights", "quantise its input and its weights",
         lambda g: classifier(g, "Flatten")),
    Case("add-quantised-twice", {TRT: "warning"}, lambda g: g.node("Add", g.pair("x", S8), g.pair("x", S8)),
         ("n4", "add4"), "both inputs are quantised", "on the shortcut only", lambda g: shortcut(g, True)),
    Case("add-float", {TRT: "warning"}, lambda g: shortcut(g, False), ("n4", "add4"), "neither input is quantised",
         "put Q/DQ on the shortcut", lambda g: shortcut(g, True)),
    # A projection is a convolution too: one of the two sides has to be quantised.
    Case("add-wrong-side", {TRT: "warning"}, lambda g: sum_of_branch(g, "x"), ("n6", "dequantizelinear5"),
         "between the last convolution and the sum", "to the shortcut",
         (lambda g: sum_of_branch(g, "conv"), gated)),
    Case("add-wrong-side", {TRT: "warning"}, lambda g: sum_of_branch(g, "x", swapped=True), ("n6", "dequantizelinear5"),
         "between the last convolution and the sum", "to the shortcut", lambda g: sum_of_branch(g, "conv", True)),
    Case("before-relu", {TRT: "warning", ORT: "warning"}, lambda g: g.node("Relu", g.pair(conv(g), S8_OUT)),
         ("n4", "conv3"), "it stands between n3 and its Relu", "quantise behind the Relu",
         (lambda g: g.pair(g.node("Relu", conv(g)), S8_OUT),
          lambda g: g.node("Relu", g.pair(g.node("MaxPool", conv(g), **HALF), S8_OUT)))),
    Case("before-relu", {TRT: "warning", ORT: "warning"}, lambda g: g.node("Clip", g.pair(shortcut(g, False), S8_OUT)),
         ("n5", "add4"), "it stands between n4 and its Relu", "quantise behind the Relu",
         lambda g: g.pair(g.node("Clip", shortcut(g, False)), S8_OUT)),
    Case("pool-float", {TRT: "note"}, lambda g: pooled(g, False), ("n3", "relu0"),
         "GlobalAveragePool takes the real numbers beside a QuantizeLinear", "take the DequantizeLinear's output",
         (lambda g: pooled(g, True), lambda g: pooled(g, False, beside=False))),
    Case("few-channels", {TRT: "note"}, lambda g: conv(g, outputs=12), ("n3", "conv3"), "16 to 12 channels",
         "divisible by 8", (lambda g: conv(g, outputs=8), lambda g: conv(g, outputs=20))),
    Case("few-channels", {TRT: "note"}, lambda g: image(g, "Relu"), ("n4", "conv4"), "3 to 16 channels",
         "divisible by 8", image),
    Case("padding", {TRT: "note"}, padded(0.03), ("n2", "pad2"), "it fills in 0.03, which is 1.5 steps of 0.02",
         "a multiple of the scale", padded(0.04)),
    Case("padding", {TRT: "note"}, padded(2.56), ("n2", "pad2"), "it fills in 2.56, which is 128 steps of 0.02",
         "within the range", padded(-2.56)),
    Case("padding", {OV: "warning"}, padded(0.04), ("n2", "pad2"), "it fills in 0.04", "pad with 0", padded(0)),
)  # fmt: skip


@pytest.mark.parametrize("target", [TRT, OV])
@pytest.mark.parametrize("between", ["MaxPool", "Relu", "GlobalAveragePool", "Sigmoid"])
@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("layer", ["conv", "first-conv", "classifier"])
def test_a_layer_in_float_is_said_once(target, between, quantised, layer):
    """Whatever stands between DQ and a layer: half quantised, not at all, or with nothing to say."""

    def build(graph):
        y = graph.pair("x" if layer == "first-conv" else conv(graph), S8)
        y = graph.node(between, y, **(HALF if between == "MaxPool" else {}))
        if layer != "classifier":
            return conv(graph, y) if quantised else graph.float_conv(y)
        shape = (10, 16 * {"MaxPool": 16, "GlobalAveragePool": 1}.get(between, 64))
        weight = graph.weight(*shape)[0] if quantised else graph.constant(np.ones(shape))
        return graph.node("Gemm", graph.node("Flatten", y), weight, transB=1)

    rules = ("half-quantised", "conv-float", "first-conv-float", "classifier-float")
    model = built(build)
    said = [found.rule for rule in rules for found in findings(model, target, rule)]
    moved = between == "MaxPool" or (target == OV and between != "Sigmoid")
    expected = {(True, True): [], (False, False): [f"{layer}-float"]}
    assert said == expected.get((quantised, moved), ["half-quantised"])


def test_an_image_of_integers_may_have_three_channels():
    def build(graph):
        graph.channels = 3
        return conv(graph, graph.dequantize("x", S8), inputs=3)

    assert findings(built(build, given=TensorProto.INT8), TRT, "few-channels") == []
