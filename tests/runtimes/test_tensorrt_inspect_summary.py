"""What an engine runs is counted in nodes of its network, and every exception is named with its reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from runtimes.tensorrt.inspect import read_layers
from runtimes.tensorrt.inspect_network import NetworkNode, network_nodes
from runtimes.tensorrt.inspect_summary import EngineSummary, summary
from tests.runtimes.engine_documents import (
    GENERATIONS,
    Generation,
    L,
    convolution,
    document,
    pointwise,
    quantiser,
    reformat,
    resnet50,
)


def _summary(layers: Sequence[L], network: Sequence[NetworkNode], generation: Generation = "8.6") -> EngineSummary:
    return summary(read_layers(document(layers, generation)), network)


def _conv(name: str, channels: int | None = 64, **more: Any) -> NetworkNode:
    return NetworkNode(name, "Conv", channels=channels, quantised=more.pop("quantised", True), **more)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_resnet50_is_told_in_one_sentence(generation: Generation) -> None:
    network, layers = resnet50()
    found = _summary(layers, network, generation)
    assert found.sentences[0] == "52 of 53 Conv in INT8; conv1 in FP16: 3 input channels"
    assert found.sentences[1] == "1 of 1 Gemm in INT8"
    assert found.counts["Conv"] == {"INT8": 52, "FP16": 1}
    assert found.counts["Add"] == {"INT8": 16}
    assert [item.module for item in found.exceptions] == ["conv1"]
    assert not found.unfused_adds
    # conv1 runs in float although it is quantised: what follows it has to be quantised by a layer of its own.
    assert found.quantisers == ("maxpool.quantized",)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (_conv("b", 3), "3 input channels"),
        (_conv("b", 15), "15 input channels"),
        (_conv("b", 16), ""),
        (_conv("b", None), ""),
        (_conv("b", 64, quantised=False), "no Q/DQ before it"),
        (_conv("b", 3, quantised=False), "no Q/DQ before it"),  # the cause that is certain
        (_conv("b", 3, quantised=None), "3 input channels"),
        (_conv("b", 64, groups=64), "depthwise"),
        (_conv("b", 64, groups=32), "32 groups"),
    ],
)
def test_an_exception_has_the_reason_that_a_fact_shows(node: NetworkNode, reason: str) -> None:
    found = _summary([convolution("a"), convolution("b", precision="FP32")], [_conv("a"), node])
    assert found.exceptions == (("b", "Conv", "FP32", reason),)
    assert found.sentences == ("1 of 2 Conv in INT8; b in FP32" + (f": {reason}" if reason else ""),)


def test_a_node_that_no_layer_names_is_not_counted_as_done() -> None:
    found = _summary([convolution("a")], [_conv("a"), _conv("b")])
    assert found.sentences == ("1 of 2 Conv in INT8; b: no layer names it",)
    assert found.counts == {"Conv": {"INT8": 1, "unknown": 1}}


def test_neither_copies_nor_quantisers_count_as_the_node_they_serve() -> None:
    layers = [convolution("a"), reformat("b", "INT8", "FP16"), quantiser("b")]
    assert _summary(layers, [_conv("a"), _conv("b")], "8.5").exceptions[0].reason == "no layer names it"


def test_a_precision_that_is_not_told_is_no_precision() -> None:
    raw = json.loads(document([convolution("a"), convolution("b")]))
    raw["Layers"][1] = "b"
    found = summary(read_layers(json.dumps(raw)), [_conv("a"), _conv("b")])
    assert found.sentences == ("1 of 2 Conv in INT8; b: the engine does not tell its precision",)
    raw["Layers"] = [{"Name": "b"}]
    assert summary(read_layers(json.dumps(raw)), [_conv("b")]).sentences == (
        "1 Conv, of which the engine tells no precision",
    )


def test_a_quantised_network_that_runs_in_float_is_counted_against_int8_where_anything_is() -> None:
    layers = [convolution("a", precision="FP16"), convolution("b", precision="FP16"), convolution("fc")]
    network = [_conv("a", quantised=False), _conv("b", quantised=False), NetworkNode("fc", "Gemm", quantised=True)]
    assert _summary(layers, network).sentences[0] == "0 of 2 Conv in INT8; a, b in FP16: no Q/DQ before it"


def test_a_float_engine_is_counted_in_its_most_frequent_precision() -> None:
    layers = [convolution(name, precision="FP16") for name in "abc"] + [convolution("d", precision="FP32")]
    network = [_conv(name, 3, quantised=None) for name in "abcd"]
    found = _summary(layers, network)
    assert found.sentences == ("3 of 4 Conv in FP16; d in FP32",)  # few channels are no reason against FP16
    assert found.advice == ()


def test_exceptions_of_one_kind_share_a_sentence_and_all_are_in_the_list() -> None:
    names = [f"layer1.{index}.conv1" for index in range(8)]
    layers = [convolution("a"), *(convolution(name, precision="FP32") for name in names)]
    found = _summary(layers, [_conv("a"), *(_conv(name, quantised=False) for name in names)])
    assert found.sentences[0].endswith("layer1.4.conv1 and 3 more in FP32: no Q/DQ before it")
    assert [item.module for item in found.exceptions] == names


def test_a_node_in_two_layers_has_the_wider_of_their_precisions() -> None:
    layers = [convolution("a", name="a_part1"), convolution("a", precision="FP16", name="a_part2"), convolution("b")]
    assert _summary(layers, [_conv("a"), _conv("b")]).counts["Conv"] == {"FP16": 1, "INT8": 1}


def test_the_layer_that_has_the_weights_decides() -> None:
    # Metadata can name a convolution beside a copy or a cast that was split off from it.
    layers = [L(("a",), "kgen", "FP32", "INT8", name="__myl_CastMul_myl0_1"), convolution("a"), convolution("b")]
    assert _summary(layers, [_conv("a"), _conv("b")], "10").counts["Conv"] == {"INT8": 2}


def test_what_another_compiler_took_is_found_between_its_ends() -> None:
    foreign = L((), "Myelin", "FP16", "FP16", name="{ForeignNode[b...d]}")
    network = [_conv(name, quantised=None) for name in "abcdef"]
    found = _summary([foreign, convolution("e", precision="FP32"), convolution("f", precision="FP32")], network, "8.5")
    assert found.counts["Conv"] == {"FP32": 2, "unknown": 4}
    assert [(item.module, item.reason) for item in found.exceptions] == [
        ("a", "no layer names it"),
        ("b", "the engine does not tell its precision"),
        ("c", "the engine does not tell its precision"),
        ("d", "the engine does not tell its precision"),
    ]


# -- residual Adds and copies -----------------------------------------------------------------------------------


_BLOCK = [_conv("conv1"), _conv("conv2"), NetworkNode("add", "Add"), NetworkNode("relu", "Relu")]


def test_an_add_inside_a_convolution_is_fused() -> None:
    layers = [convolution("conv1"), convolution("conv2", "add", "relu", inputs=("x", "y"))]
    assert _summary(layers, _BLOCK).unfused_adds == ()
    # Of one that no layer names nothing is known, so that nothing is said.
    assert _summary([convolution("conv1"), convolution("conv2")], _BLOCK).unfused_adds == ()


@pytest.mark.parametrize("precision", ["FP32", "FP16", "INT8"])
def test_an_add_by_itself_is_named_with_its_precision(precision: str) -> None:
    layers = [convolution("conv1"), convolution("conv2"), pointwise("add", "relu", precision=precision)]
    found = _summary(layers, _BLOCK)
    assert found.unfused_adds == (("add", precision),)
    assert any("Adds that run in float" in line and "add" in line for line in found.advice) is (precision != "INT8")


def test_an_add_of_a_constant_is_no_residual() -> None:
    network = [*_BLOCK[:2], replace(_BLOCK[2], operands=1)]
    layers = [convolution("conv1"), convolution("conv2"), pointwise("add", precision="FP32")]
    assert _summary(layers, network).unfused_adds == ()


def test_copies_are_listed_with_where_and_what() -> None:
    layers = [reformat("conv1", "FP32", "INT8"), convolution("conv1"), reformat("relu", "INT8", "INT8"),
              reformat("conv2 + add", "FP16", "INT8"), reformat("fc", "FP16", "FP16", kind="NoOp"),
              convolution("conv2", "add"), reformat("logits", "INT8", "FP32")]  # fmt: skip
    found = _summary(layers, _BLOCK)
    assert [(item.modules, item.source, item.target, item.converts) for item in found.reformats] == [
        (("conv1",), "FP32", "INT8", True),
        (("relu",), "INT8", "INT8", False),
        (("conv2", "add"), "FP16", "INT8", True),
        (("logits",), "INT8", "FP32", True),
    ]
    # The image and the logits are float in any INT8 engine: only what happens between them can be mended.
    (advice,) = (line for line in found.advice if "convert" in line)
    assert "another type: 1 (for conv2);" in advice


# -- advice -----------------------------------------------------------------------------------------------------


def test_an_engine_fused_as_it_should_be_gets_no_advice() -> None:
    network, layers = resnet50()
    fixed = [convolution("conv1", "relu"), *layers[3:]]
    found = _summary([quantiser("input.quantized", inputs=("input",)), *fixed], network)
    assert found.sentences[0] == "53 of 53 Conv in INT8"
    assert (found.quantisers, found.advice) == ((), ())


def test_a_quantiser_before_the_first_convolution_is_needed_and_others_are_not() -> None:
    first = [pointwise("input.pixels", precision="FP32"), quantiser("input.pixels.quantized")]
    found = _summary([*first, convolution("conv1"), quantiser("relu.quantized"), convolution("conv2")], _BLOCK)
    assert found.quantisers == ("relu.quantized",)
    assert any("of their own: 1 (relu.quantized);" in line for line in found.advice)


def test_a_quantised_network_that_no_layer_runs_in_int8_points_to_the_flag() -> None:
    layers = [convolution("conv1", precision="FP16"), convolution("conv2", "add", precision="FP16")]
    assert "BuilderFlag.INT8" in _summary(layers, _BLOCK).advice[0]
    floats = [replace(node, quantised=None) for node in _BLOCK]
    assert _summary(layers, floats).advice == ()


@pytest.mark.parametrize(("channels", "told"), [(16, True), (31, True), (32, False)])
def test_channels_that_do_not_fill_the_layout_are_told(channels: int, told: bool) -> None:
    network = [_conv("conv1", channels), _conv("conv2", channels)]
    advice = _summary([convolution("conv1"), convolution("conv2")], network).advice
    assert any("fewer than 32 input channels: 2 of 2;" in line for line in advice) is told


def test_channels_are_no_matter_in_another_layout() -> None:
    network = [_conv("conv1", 16), _conv("conv2", 16)]
    layers = [convolution("conv1", precision="FP8"), convolution("conv2", precision="FP8")]
    assert _summary(layers, network).advice == ()


@pytest.mark.parametrize(("batch", "told"), [(1, True), (7, True), (8, False), (-1, False)])
def test_a_small_batch_is_told(batch: int, told: bool) -> None:
    layers = [convolution("conv1", shape=(batch, 64, 8, 8)), convolution("conv2", "add", shape=(batch, 64, 8, 8))]
    assert any(f"the batch is {batch}" in line for line in _summary(layers, _BLOCK).advice) is told


def test_the_summary_is_plain_json() -> None:
    network, layers = resnet50()
    found = _summary(layers, network).to_json()
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["counts", "sentences", "exceptions", "reformats", "unfused_adds", "quantisers", "advice"]
    assert found["exceptions"][0] == {
        "module": "conv1", "op_type": "Conv", "precision": "FP16", "reason": "3 input channels"
    }  # fmt: skip


# -- the network's own facts ------------------------------------------------------------------------------------


def _model(*, quantised: bool) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    constants = {
        "stem.weight": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "grouped.weight.quantized": np.ones((8, 2, 1, 1), np.int8),
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "fc.weight": rng.standard_normal((10, 8)).astype(np.float32),
        "one": np.float32(1),
    }
    nodes = [
        helper.make_node("Conv", ["input", "stem.weight"], ["stem"], "stem"),
        helper.make_node("Shape", ["input"], ["shape"], "shape"),
        helper.make_node("Identity", ["shape"], ["size"], "size"),
        helper.make_node("Add", ["stem", "one"], ["shift"], "shift"),
    ]
    data, weight = "shift", "grouped.weight.float"
    if quantised:
        nodes.append(helper.make_node("QuantizeLinear", ["shift", "scale", "zero"], ["q"], "shift.quantized"))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], "shift.dequantized"))
        data = "dq"
    nodes += [
        helper.make_node("DequantizeLinear", ["grouped.weight.quantized", "scale", "zero"], [weight], "w"),
        helper.make_node("MaxPool", [data], ["pool"], "pool", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["pool", weight], ["grouped"], "grouped", group=4),
        helper.make_node("Add", ["grouped", "shift"], ["add"], "add"),
        helper.make_node("GlobalAveragePool", ["add"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["logits"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    return model


def test_channels_groups_and_operands_are_read_from_the_file() -> None:
    found = {node.name: node for node in network_nodes(_model(quantised=True))}
    assert found["stem"] == NetworkNode("stem", "Conv", channels=3, groups=1, quantised=False, operands=1)
    assert found["grouped"] == NetworkNode("grouped", "Conv", channels=8, groups=4, quantised=True, operands=1)
    assert found["fc"] == NetworkNode("fc", "Gemm", channels=8, quantised=False, operands=1)
    assert [found[name].operands for name in ("shift", "add", "w", "size")] == [1, 2, 0, 0]


def test_nothing_is_said_of_quantisation_where_a_calibration_cache_may_give_it() -> None:
    assert {node.quantised for node in network_nodes(_model(quantised=False))} == {None}
