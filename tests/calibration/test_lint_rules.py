"""Rules of the linter for every target: scales, pairs, types of integers and weights.

Those for where Q/DQ stand are in ``test_lint_placement.py``, ONNX Runtime's own in ``test_lint_onnxruntime.py``.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from calibration.lint_table import RULES
from tests.calibration import test_lint_onnxruntime, test_lint_placement
from tests.calibration.lint_cases import (
    CHANNELS,
    HALF,
    ORT,
    OV,
    TRT,
    Case,
    assert_found,
    assert_left_alone,
    built,
    findings,
    names,
)
from tests.calibration.lint_graphs import S8, U8, U8_OUT, Grid
from tests.calibration.test_lint_fusion import matrix

ERRORS, WARNINGS, NOTES = (dict.fromkeys((TRT, ORT, OV), severity) for severity in ("error", "warning", "note"))
UNEVEN = {"zero": [0] * 15 + [5]}
SHIFTED, WIDE = Grid(0.02, 5, np.int8), Grid(0.001, 0, np.int16)
# From input to conv without bias: Q n0, DQ n1, DQ of the weights n2, Conv n3.
_WEIGHTS = ("n3", "dequantizelinear2")


def read_as(grid, written=U8, **options):
    """Inside the network, written with one grid and read with another."""
    return lambda g: g.dequantize(g.quantize(g.node("Relu", "x"), written, **options), grid, **options)


def reinterpreted(graph):
    return graph.dequantize(graph.quantize("x"), Grid(0.03))


def computed_scale(graph, of="x"):
    integers = graph.quantize("x")
    scale = graph.node("ReduceMax", "x" if of == "x" else graph.constant(of), keepdims=0)
    return graph.node("DequantizeLinear", integers, scale, graph.constant(128, np.uint8))


def folded_scale(graph):
    """A scale that can be known, and is not looked up."""
    return computed_scale(graph, of=[0.02])


def folded_scale_again(graph):
    scale = graph.node("ReduceMax", graph.constant([0.02]), keepdims=0)
    return graph.node("QuantizeLinear", graph.pair("x"), scale, graph.constant(128, np.uint8))


def conv(**options):
    return lambda g: g.conv(g.pair("x"), bias=None, **options)


def few_scales(graph):
    """15 scales for 16 channels."""
    grid = Grid(np.full(15, 0.01), np.zeros(15), np.int8)
    return graph.node(
        "Conv", graph.pair("x"), graph.dequantize(graph.constant(np.zeros((16, 16, 1, 1)), np.int8), grid, axis=0)
    )


def four_bits(graph):
    weight = graph.dequantize(graph.constant(np.ones((16, 16, 1, 1)), ml_dtypes.int4), Grid(0.1, 0, ml_dtypes.int4))
    return graph.node("Conv", graph.pair("x", S8), weight)


def convolved_integers(graph):
    return graph.node("ConvInteger", graph.quantize("x"), graph.constant(np.ones((16, 16, 1, 1)), np.int8))


def microsoft(graph):
    scale, zero = graph.constant(0.02), graph.constant(128, np.uint8)
    made = graph.node("QLinearSigmoid", graph.quantize("x"), scale, zero, scale, zero, domain="com.microsoft")
    return graph.dequantize(made)


CASES = (
    Case("scale", ERRORS, lambda g: g.pair("x", Grid(0.0)), ("n0", "c1"), "scale 0 is not a positive number",
         "calibrate again", lambda g: g.pair("x", Grid(1e-30))),
    Case("scale-computed", {TRT: "error", ORT: "warning", OV: "warning"}, computed_scale, ("n2", "reducemax1"),
         "its scale is computed", "static quantisation", folded_scale),
    Case("unpaired", WARNINGS, lambda g: g.node("Cast", g.quantize("x"), to=1), ("n0", "quantizelinear0"),
         "its integers go to Cast", "put a DequantizeLinear behind",
         lambda g: g.dequantize(g.node("MaxPool", g.quantize("x"), **HALF))),
    Case("unpaired", WARNINGS, lambda g: g.dequantize(g.node("Cast", "x", to=2)), ("n1", "cast0"),
         "its integers come from Cast", "take the single one out", microsoft),
    Case("unpaired", WARNINGS, lambda g: [g.pair("x"), g.quantize("x")][:1], ("n2", "quantizelinear2"),
         "nothing takes its integers", "take the single one out", lambda g: [g.pair("x"), g.quantize("x")]),
    Case("rounded-twice", WARNINGS, lambda g: g.pair(g.pair("x"), Grid(0.03)), ("n2", "dequantizelinear1"),
         "with scale 0.02 and then scale 0.03: another scale", "quantise a tensor once",
         (lambda g: g.pair(g.pair("x")), folded_scale_again)),
    Case("pair-mismatch", WARNINGS, read_as(Grid(0.03)), ("n2", "quantizelinear1"),
         "quantised with scale 0.02 (uint8), read with scale 0.03 (uint8)",
         "the scale, zero point and axis of its QuantizeLinear",
         (read_as(U8), reinterpreted, lambda g: g.dequantize(g.quantize(g.node("Relu", "x"), axis=2), axis=1))),
    Case("input-reinterpreted", {TRT: "warning"}, reinterpreted, ("n1", "quantizelinear0"), "another scale",
         "the scale, zero point and axis", (read_as(Grid(0.03)), lambda g: g.pair("x"), folded_scale)),
    Case("input-reinterpreted", {ORT: "note", OV: "note"}, reinterpreted, ("n1", "quantizelinear0"), "another scale",
         "nothing, where this is meant", (read_as(Grid(0.03)), lambda g: g.pair("x"), folded_scale)),
    Case("zero-point", {TRT: "error"}, lambda g: g.pair("x", SHIFTED), ("n0", "x"), "zero point 5 of int8",
         "int8, zero point 0", lambda g: g.pair("x", S8)),
    # Without a zero point TensorRT takes the integers for int8, which is another rule.
    Case("unsigned", {TRT: "error"}, lambda g: g.pair("x"), ("n0", "x"), "uint8, zero point 128", "int8, zero point 0",
         lambda g: g.pair("x", zero=False)),
    Case("zero-point-missing", {TRT: "warning"}, lambda g: g.pair("x", zero=False), ("n0", "x"),
         "uint8 by the ONNX standard", "write the zero point",
         lambda g: g.dequantize(g.quantize("x", S8, zero=False, output_dtype=TensorProto.INT8), S8, zero=False),
         opset_of_miss=21),
    Case("int32", {TRT: "error"}, lambda g: g.conv(g.pair("x", S8)), ("n3", "dequantizelinear3"),
         "DequantizeLinear of int32", "leave biases in float", lambda g: g.conv(g.pair("x", S8), bias="float")),
    Case("integer-type", {TRT: "error"}, lambda g: g.pair("x", WIDE), ("n0", "x"), "quantised to int16", "int8",
         four_bits, opset=21),
    Case("integer-type", {OV: "warning"}, lambda g: g.pair("x", WIDE), ("n0", "x"), "quantised to int16",
         "to 8 bits", lambda g: g.conv(g.pair("x")), opset=21),
    Case("integer-operator", {TRT: "error"}, microsoft, ("n1", "qlinearsigmoid1"), "com.microsoft.QLinearSigmoid",
         "QDQ format", lambda g: g.node("Sigmoid", g.pair("x"))),
    Case("integer-operator", {TRT: "error"}, convolved_integers, ("n1", "convinteger1"), "operator ConvInteger",
         "QDQ format", conv()),
    Case("activation-per-channel", {TRT: "error"}, lambda g: g.pair("x", CHANNELS), ("n0", "x"), "16 scales",
         "one scale", lambda g: g.pair("x", Grid([0.02], [128]))),
    # What is read with one scale is 8-bit pixels to ONNX Runtime and OpenVINO, whatever they were written with.
    Case("activation-per-channel", {ORT: "error"}, read_as(U8, CHANNELS), ("n1", "relu0"), "16 scales",
         "one scale", lambda g: g.dequantize(g.quantize("x", CHANNELS))),
    Case("activation-per-channel", {OV: "warning"}, lambda g: g.pair("x", CHANNELS), ("n1", "dequantizelinear1"),
         "16 scales", "one scale", read_as(U8, CHANNELS)),
    Case("opset", {TRT: "error"}, lambda g: g.pair("x"), ("", ""), "opset 26, expected 25 at most", "opset 17",
         lambda g: g.pair("x"), opset=26, opset_of_miss=25),
    Case("opset-new", {TRT: "note"}, lambda g: g.pair("x"), ("", ""), "opset 18 needs TensorRT 9.0 or later",
         "use opset 17", lambda g: g.pair("x"), opset=18, opset_of_miss=17),
    Case("opset-new", {ORT: "note"}, lambda g: g.pair("x"), ("", ""),
         "opset 22: ONNX Runtime 1.23 has MaxPool in float", "opset 17 to 21", lambda g: g.pair("x"),
         opset=22, opset_of_miss=21),
    Case("weight-per-tensor", WARNINGS, conv(weight={"axis": None}), _WEIGHTS, "one scale for 16 output channels",
         "one scale for each output channel", conv(outputs=1, weight={"axis": None})),
    Case("weight-axis", {TRT: "error", ORT: "error", OV: "warning"}, conv(weight={"axis": 1}), _WEIGHTS,
         "16 scales along axis 1, expected axis 0", "axis 0 for Conv",
         lambda g: g.gemm(g.features(), turned=False, axis=1)),
    Case("weight-axis", {TRT: "error", ORT: "error", OV: "warning"}, few_scales, _WEIGHTS,
         "15 scales for 16 output channels", "axis 0 for Conv", lambda g: matrix(g, turned=True, axis=0)),
    Case("weight-zero-points", {ORT: "error"}, conv(weight=UNEVEN), _WEIGHTS, "differ from channel to channel",
         "zero point 0", conv(weight={"zero": 5})),
    Case("weight-asymmetric", {OV: "warning"}, conv(weight=UNEVEN), _WEIGHTS, "int8, zero point 5", "zero point 0",
         conv()),
    Case("weight-asymmetric", {OV: "warning"}, conv(weight={"dtype": np.uint8}), _WEIGHTS,
         "uint8, zero point 0", "zero point 0", conv()),
    # A slope of 1 changes nothing and keeps ONNX Runtime from quantising the weights.
    Case("weight-float", {ORT: "warning"}, lambda g: g.pair(g.float_conv(g.pair("x")), U8_OUT), ("n2", "conv2"),
         "its weights are float in the file", "one scale for each output channel",
         lambda g: g.pair(g.node("LeakyRelu", g.float_conv(g.pair("x")), alpha=1.0), U8_OUT)),
    Case("weight-stored-as-float", NOTES, conv(weight={"stored": "reals"}), ("n4", "dequantizelinear3"),
         "real numbers (9,216 bytes)", "store the integers", conv()),
    Case("weight-overflow", {ORT: "note", OV: "note"}, conv(weight={"largest": 127}), _WEIGHTS, "in 1 of 1 layers",
         "reduce_range", conv()),
)  # fmt: skip


ALL = (*CASES, *test_lint_placement.CASES, *test_lint_onnxruntime.CASES)


@pytest.mark.parametrize("case", ALL, ids=names(ALL))
def test_a_fault_is_found_where_it_is(case):
    assert_found(case)


@pytest.mark.parametrize("case", ALL, ids=names(ALL))
def test_what_only_looks_like_it_is_left_alone(case):
    assert_left_alone(case)


def test_every_row_of_the_table_has_a_case():
    tested = {(case.rule, target) for case in ALL for target in case.severities}
    assert tested == {(rule.id, target) for rule in RULES for target in rule.targets}


@pytest.mark.parametrize(
    ("scale", "shown"),
    [(-0.5, "scale -0.5"), (np.inf, "scale inf"), (np.nan, "scale nan"), ([0.02] * 15 + [0], "scale 0 (1 of 16)")],
)
def test_a_scale_that_is_no_positive_number_is_said_once_for_a_pair(scale, shown):
    model = built(lambda g: g.pair("x", Grid(scale, np.full(np.shape(scale), 128))))
    [found] = findings(model, ORT, "scale")
    assert found.message == f"{shown} is not a positive number"
    assert findings(model, ORT, "input-reinterpreted") == []


@pytest.mark.parametrize(
    ("written", "read", "parts"),
    [
        # Both scales are shown as 0.02.
        ({"grid": U8}, {"grid": Grid(0.02 + 1e-8)}, "scale"),
        ({"grid": U8}, {"grid": Grid(0.02, 127)}, "zero point"),
        ({"grid": S8}, {"grid": U8}, "zero point and type"),
        ({"grid": CHANNELS, "axis": 1}, {"grid": CHANNELS, "axis": 2}, "axis"),
        ({"grid": CHANNELS}, {"grid": CHANNELS._replace(scale=np.full(16, 0.03))}, "scale"),
    ],
)
def test_a_mismatch_says_what_differs(written, read, parts):
    model = built(lambda g: g.dequantize(g.quantize(g.node("Relu", "x"), **written), **read))
    [found] = findings(model, OV, "pair-mismatch")
    assert found.message.endswith(f"): another {parts}")


@pytest.mark.parametrize(
    ("target", "opset", "shown"),
    [
        (TRT, 20, "10.0 or later (JetPack"),
        (TRT, 21, "10.9"),
        (TRT, 25, "11.0"),
        (ORT, 23, "has no QuantizeLinear"),
    ],
)
def test_a_new_opset_names_the_version_that_reads_it(target, opset, shown):
    [found] = findings(built(lambda g: g.pair("x"), opset), target, "opset-new")
    assert shown in found.message


def test_integers_from_outside_need_no_partner():
    taken = built(lambda g: g.dequantize("x"), given=TensorProto.UINT8)
    given = built(lambda g: g.quantize("x"), made=TensorProto.UINT8)
    assert [findings(model, OV, "unpaired") for model in (taken, given)] == [[], []]
    # Nothing but the network's input says that these are uint8.
    told = built(lambda g: g.dequantize("x", zero=False), given=TensorProto.UINT8)
    assert [found.node for found in findings(told, TRT, "unsigned")] == ["n0"]
