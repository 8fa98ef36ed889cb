"""The inspector's layer tables of every generation are read into one form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.errors import GraphError
from runtimes.tensorrt.inspect import EngineLayer, EngineLayers, read_layers
from tests.runtimes.engine_documents import (
    GENERATIONS,
    TACTICS,
    Generation,
    L,
    convolution,
    document,
    layer,
    pointwise,
    quantiser,
    reformat,
)


def _one(spec: L, generation: Generation = "8.6", **more: Any) -> EngineLayer:
    (found,) = read_layers(document([spec], generation, **more)).layers
    return found


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_gives_the_same_layer(generation: Generation) -> None:
    nodes = ("layer1.0.conv2.weight.quantized", "layer1.0.conv2.weight.dequantized", "layer1.0.conv2", "layer1.0.add")
    found = _one(convolution(*nodes, inputs=("a", "b"), activation="RELU"), generation)
    assert found.modules == ("layer1.0.conv2", "layer1.0.add")
    assert found.precision == "INT8"
    assert found.operators == ("Conv", "Add", "Relu")
    assert [(item.name, item.type, item.shape) for item in found.inputs] == [
        ("a", "INT8", (8, 64, 56, 56)),
        ("b", "INT8", (8, 64, 56, 56)),
    ]
    assert found.outputs[0].format.startswith("Thirty-two wide")
    assert found.tactic == TACTICS["INT8"]
    assert found.computes
    assert not found.is_reformat
    assert not found.is_quantiser


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_engines_own_tensors_are_listed(generation: Generation) -> None:
    assert read_layers(document([convolution("conv1")], generation)).tensors == ("input", "logits")


def test_shapes_that_are_free_hide_the_type_but_not_the_precision() -> None:
    found = _one(convolution("conv1"), "8.6", dynamic=True)
    assert found.inputs[0].type is None
    assert found.inputs[0].shape == (-1, 64, 56, 56)
    assert found.precision == "INT8"


@pytest.mark.parametrize("generation", GENERATIONS)
def test_copies_are_told_from_quantisers_and_from_copies_that_cost_nothing(generation: Generation) -> None:
    copy = _one(reformat("layer1.0.conv1 + layer1.0.relu", "FP32", "INT8"), generation)
    assert (copy.is_reformat, copy.is_quantiser, copy.computes) == (True, False, False)
    assert copy.modules == ("layer1.0.conv1", "layer1.0.relu")
    q = _one(quantiser("relu.quantized"), generation)
    assert (q.is_reformat, q.is_quantiser, q.computes) == (False, True, False)
    free = _one(reformat("conv1", "FP16", "FP16", kind="NoOp"), generation)
    assert (free.is_reformat, free.is_quantiser, free.computes) == (False, False, False)


def test_a_copy_is_known_by_its_name_and_a_quantiser_by_its_origin() -> None:
    assert _one(L((), "", name="layer1.0.add copy"), "8.5").is_reformat
    assert _one(quantiser("node_17"), "8.5").is_quantiser


def test_weights_that_are_an_input_are_no_residual() -> None:
    spec = convolution("conv1", inputs=("x", "weights"))
    spec.more["HasDynamicFilter"] = 1
    assert _one(spec).operators == ("Conv",)


def test_a_scale_layer_that_quantises_is_a_quantiser() -> None:
    assert _one(L(("QuantizeLinear_20_quantize_scale_node",), "Scale", "FP32"), "8.5").is_quantiser


def test_convolution_with_pooling_has_prefixed_keys() -> None:
    more = {"ParameterType": "ConvActPool", "ConvWeights": {"Type": "Int8", "Count": 9408}, "ConvActivation": "RELU"}
    more |= {"PoolingPoolingType": "MAX"}
    found = _one(L(("conv1", "maxpool"), "CaskConvActPool", more=more), dynamic=True)
    assert found.operators == ("Conv", "Relu", "MaxPool")
    assert (found.weighted, found.precision) == (True, "INT8")


def test_kernels_of_myelin_are_known_by_their_names() -> None:
    move = _one(L((), "kgen", "FP16", "INT8", name="__myl_MoveCast_myl0_1"), "10")
    assert (move.is_reformat, move.operators) == (True, ("Move", "Cast"))
    add = _one(L((), "kgen", "FP16", "FP16", name="__myl_CastMulAdd_myl0_2"), "10")
    assert (add.computes, add.weighted, add.precision) == (True, False, "FP16")
    gemm = _one(L((), "gemm", "INT8", "FP32", name="fc_myl0_3"), "8.5")
    assert (gemm.weighted, gemm.precision, gemm.modules) == (True, "INT8", ("fc",))


def test_pointwise_operations_are_named() -> None:
    assert _one(pointwise("layer1.0.add", precision="FP16")).operators == ("Add",)


def test_a_conversion_is_no_convolution() -> None:
    assert not _one(L(("cast",), "Convert", "FP16", "FP32")).weighted


def test_layers_of_later_profiles_are_left_out() -> None:
    raw = json.loads(document([convolution("conv1")], tensors=("input", "logits", "input [profile 1]")))
    raw["Layers"].append({**raw["Layers"][0], "Name": "conv1 [profile 1]"})
    found = read_layers(json.dumps(raw))
    assert [item.name for item in found.layers] == ["conv1"]
    assert found.tensors == ("input", "logits")


def test_control_characters_as_they_are_do_no_harm() -> None:
    text = document([convolution("conv1", "relu")]).replace("\\u001e", "\x1e")
    assert "\x1e" in text
    for given_document in (text, text.encode(), b"\xef\xbb\xbf" + text.encode() + b"\0"):
        assert read_layers(given_document).layers[0].modules == ("conv1", "relu")


def test_a_layer_of_which_only_the_name_is_told_is_kept_beside_others() -> None:
    raw = json.loads(document([convolution("conv1")]))
    raw["Layers"].append("layer1.0.conv1 + layer1.0.relu")
    found = read_layers(json.dumps(raw)).layers[1]
    assert (found.modules, found.precision, found.kind) == (("layer1.0.conv1", "layer1.0.relu"), None, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Layers": ["conv1 + relu", "fc"], "Bindings": []}', "only the names of its 2 layers: .*DETAILED"),
        ('{"Layers": [], "Bindings": []}', "nothing of its layers: .*DETAILED"),
        ('{"Bindings": ["input"]}', "no list of Layers, only Bindings"),
        ("{}", "no list of Layers, only nothing"),
        ('{"Layers": {"Name": "conv1"}}', "no list of Layers"),
        ('{"Layers": [1, 2]}', "neither objects nor names"),
        ("[]", "got list"),
        ('"conv1 + relu"', "got str"),
        ("Name: conv1, LayerType: CaskConvolution", "not JSON"),
        ("", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str | bytes, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        read_layers(text)
    assert "\n" not in str(caught.value)


_WORDS = ["PointWise", "Convolution", "ConvActPool", "Pooling", "Reformat", "QDQ", "RELU", "conv1 + relu", "Int8"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = [*layer(convolution("conv1")), "Origin", "PoolingType", "ConvWeights", "Operations", "HasDynamicFilter"]


@given(st.lists(st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=8), min_size=1, max_size=3), _JSON)
def test_values_of_other_types_are_read_past(layers: list[Any], tensors: Any) -> None:
    found = read_layers(json.dumps({"Layers": layers, "I/O Tensors": tensors}))
    assert isinstance(found, EngineLayers)
    json.dumps(found.to_json())


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_sidecar_has_the_same_keys_for_every_generation(generation: Generation) -> None:
    specs = [reformat("conv1", "FP32", "INT8"), convolution("conv1"), L((), "kgen", name="__myl_Add_myl0_1")]
    table = read_layers(document(specs, generation)).to_json()
    assert table == json.loads(json.dumps(table))
    assert list(table) == ["tensors", "layers"]
    assert {tuple(row) for row in table["layers"]} == {
        ("name", "kind", "modules", "precision", "inputs", "outputs", "tactic", "operators", "is_reformat",
         "is_quantiser")
    }  # fmt: skip
    assert list(table["layers"][1]["inputs"][0]) == ["name", "shape", "type", "format"]
