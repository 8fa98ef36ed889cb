"""The normalisation inside the graph: the algebra against torch in float64, borders, and what cannot take it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibration.preprocess import PRESETS, Preprocessing
from exporter.graph.embed import embed
from exporter.graph.precision import to_fp16
from runtimes.errors import GraphError

IMAGENET = replace(PRESETS["imagenet"], size=(13, 17), resize=None, crop="none")
GREY = replace(IMAGENET, color="L", mean=(0.449,), std=(0.226,))


def stem(
    weight: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any] | None,
    opset: int = 17,
    channels: int = 3,
    kind: int = TensorProto.FLOAT,
    **attributes: Any,
) -> onnx.ModelProto:
    """One convolution, all of whose places can be seen."""
    constants = {"w": weight} | ({} if bias is None else {"b": bias})
    nodes = [
        helper.make_node("Conv", ["input", *constants], ["conv"], "conv", **attributes),
        helper.make_node("Flatten", ["conv"], ["logits"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes, "stem", [helper.make_tensor_value_info("input", kind, ["N", channels, 13, 17])],
        [helper.make_tensor_value_info("logits", kind, ["N", None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model: onnx.ModelProto, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": images})[0])


def pixels(channels: int = 3, count: int = 2, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shown = np.random.default_rng(seed).integers(0, 256, (count, 13, 17, channels), np.uint8)
    shown[0, 0, 0], shown[0, -1, -1] = 0, 255
    return shown


def expected(
    contract: Preprocessing,
    shown: np.ndarray[Any, Any],
    weight: np.ndarray[Any, Any],
    bias: np.ndarray[Any, Any] | None,
    **options: Any,
) -> np.ndarray[Any, Any]:
    """The contract's own formula and torch's convolution, both in float64."""
    images = (shown.astype(np.float64) * contract.scale - np.array(contract.mean)) / np.array(contract.std)
    kernel = torch.from_numpy(weight.astype(np.float64))
    added = None if bias is None else torch.from_numpy(bias.astype(np.float64))
    data = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    pads = options.pop("pads", (0, 0, 0, 0))  # top, left, bottom, right
    padded = torch.nn.functional.pad(data, (pads[1], pads[3], pads[0], pads[2]))
    return np.asarray(torch.nn.functional.conv2d(padded, kernel, added, **options).flatten(1).numpy())


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    channels = draw(st.sampled_from([1, 3]))
    numbers = st.lists(st.floats(0.05, 2.0), min_size=channels, max_size=channels)
    scale = draw(st.sampled_from([1 / 255, 1.0, 1 / 127.5]))
    return {
        "contract": Preprocessing(
            size=(13, 17), resize=None, crop="none", interpolation="bilinear",
            color="L" if channels == 1 else draw(st.sampled_from(["RGB", "BGR"])), scale=scale,
            mean=tuple(m * 255 * scale for m in draw(numbers)), std=tuple(s * 255 * scale for s in draw(numbers)),
        ),
        "kernel": draw(st.tuples(st.integers(1, 5), st.integers(1, 5))),
        "strides": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "dilations": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "pads": draw(st.tuples(*[st.integers(0, 4)] * 4)),
        "groups": draw(st.sampled_from([1, channels])),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }  # fmt: skip


@given(cases())
@settings(max_examples=40, deadline=None)
def test_pixels_through_the_merged_convolution_are_the_contract_and_then_the_convolution(case: dict[str, Any]) -> None:
    contract, groups = case["contract"], case["groups"]
    random = np.random.default_rng(case["seed"])
    weight = random.standard_normal((3, contract.channels // groups, *case["kernel"])).astype(np.float32)
    bias = random.standard_normal(3).astype(np.float32) if case["bias"] else None
    shape: dict[str, Any] = {name: list(case[name]) for name in ("strides", "dilations", "pads")}
    made = embed(stem(weight, bias, channels=contract.channels, group=groups, **shape), contract)
    assert made.how == ("shifted" if any(case["pads"]) else "convolution")
    shown = pixels(contract.channels, seed=case["seed"])
    wanted = expected(
        contract, shown, weight, bias, pads=case["pads"], stride=case["strides"], dilation=case["dilations"],
        groups=groups,
    )  # fmt: skip
    # Every place, those of the border too; float32 sums of numbers of this size.
    assert np.abs(run(made.model, shown) - wanted).max() <= 2e-5 * max(np.abs(wanted).max(), 1.0) * weight[0].size


def test_the_border_is_the_mean_colour_exactly() -> None:
    """Pixels that are the mean colour are zeros, so that image and frame cannot be told apart: nothing is left."""
    contract = replace(IMAGENET, scale=1.0, mean=(124.0, 116.0, 104.0), std=(58.0, 57.0, 57.0))
    weight = np.random.default_rng(0).standard_normal((4, 3, 7, 7)).astype(np.float32)
    shown = np.broadcast_to(np.array(contract.mean, np.uint8), (1, 13, 17, 3)).copy()
    made = embed(stem(weight, np.zeros(4, np.float32), pads=[3] * 4, strides=[2, 2]), contract)
    assert not run(made.model, shown).any()


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_that_depends_on_the_image_needs_nothing_more(opset: int, auto: str) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model = stem(weight, None, opset, auto_pad=auto, strides=[2, 2])
    made = embed(model, IMAGENET)
    assert made.how == ("convolution" if auto == "VALID" else "shifted")
    shown = pixels()
    np.testing.assert_allclose(run(made.model, shown), run(model, IMAGENET.normalise(shown)), rtol=1e-4, atol=1e-4)


def test_without_a_mean_a_padded_convolution_takes_pixels_as_they_are() -> None:
    made = embed(stem(np.ones((1, 3, 3, 3), np.float32), None, pads=[1] * 4), replace(IMAGENET, mean=(0.0,) * 3))
    assert [node.op_type for node in made.model.graph.node] == ["Cast", "Transpose", "Conv", "Flatten"]


def test_the_input_is_a_quarter_of_the_bytes_and_the_given_model_is_left_alone() -> None:
    model = stem(np.ones((1, 3, 3, 3), np.float32), None)
    before = model.SerializeToString()
    made = embed(model, IMAGENET)
    assert model.SerializeToString() == before
    taken, given_before = (each.graph.input[0].type.tensor_type for each in (made.model, model))
    assert taken.elem_type == TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in taken.shape.dim] == ["N", 13, 17, 3]
    sizes = [helper.tensor_dtype_to_np_dtype(each.elem_type).itemsize for each in (taken, given_before)]
    assert sizes == [1, 4]
    assert made.model.graph.node[0].op_type == "Cast"  # all that TensorRT lets uint8 go to


def test_a_weight_that_another_layer_shares_keeps_its_values_there() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32)
    model = stem(weight, None)
    second = helper.make_node("Conv", ["conv", "w"], ["again"], "again")
    model.graph.node.insert(1, second)
    model.graph.node[2].input[0] = "again"
    shown = pixels()
    np.testing.assert_allclose(
        run(embed(model, IMAGENET).model, shown), run(model, IMAGENET.normalise(shown)), rtol=1e-4, atol=1e-4
    )


def test_two_convolutions_on_the_input_both_take_pixels() -> None:
    random = np.random.default_rng(0)
    model = stem(random.standard_normal((2, 3, 3, 3)).astype(np.float32), None, pads=[1] * 4)
    model.graph.initializer.append(numpy_helper.from_array(random.standard_normal((2, 3, 1, 1)).astype("f"), "v"))
    model.graph.node.insert(1, helper.make_node("Conv", ["input", "v"], ["side"], "side"))
    model.graph.node.insert(2, helper.make_node("Add", ["conv", "side"], ["sum"], "sum"))
    model.graph.node[3].input[0] = "sum"
    made, shown = embed(model, IMAGENET), pixels()
    assert made.how == "shifted"
    np.testing.assert_allclose(run(made.model, shown), run(model, IMAGENET.normalise(shown)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep_io", [True, False])
def test_fp16_gets_two_nodes_in_fp32_and_the_same_numbers(keep_io: bool) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model = to_fp16(stem(weight, None, pads=[1] * 4), keep_io=keep_io).model
    made = embed(model, IMAGENET)
    assert (made.how, bool(made.reason)) == ("nodes", True)
    shown = pixels()
    images = IMAGENET.normalise(shown).astype(np.float32 if keep_io else np.float16)
    wanted = run(model, images).astype(np.float64)
    found = run(made.model, shown).astype(np.float64)
    assert np.abs(found - wanted).max() <= 2**-10 * 27 * np.abs(weight).max()


def test_a_network_that_does_more_with_its_input_gets_two_nodes() -> None:
    model = stem(np.ones((1, 3, 3, 3), np.float32), None)
    model.graph.node.insert(0, helper.make_node("Relu", ["input"], ["r"], "r"))
    model.graph.node[1].input[0] = "r"
    made, shown = embed(model, IMAGENET), pixels()
    assert made.how == "nodes"
    assert "Relu" in made.reason
    np.testing.assert_allclose(run(made.model, shown), run(model, IMAGENET.normalise(shown)), rtol=1e-4, atol=1e-4)


def test_a_weight_that_the_user_may_replace_is_not_merged() -> None:
    model = stem(np.ones((1, 3, 3, 3), np.float32), None)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 3, 3, 3]))
    assert embed(model, IMAGENET).how == "nodes"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.opset_import[0].__setattr__("version", 12), "opset 12"),
        (lambda model: model.graph.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.UINT8), "already"),
        (lambda model: model.graph.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.INT32), "INT32"),
        (lambda model: model.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 4), "4 channels"),
        (lambda model: model.graph.output.append(model.graph.output[0]), "2 outputs"),
        (lambda model: model.graph.node[0].output.__setitem__(0, "input.float"), "rename"),
    ],
)
def test_what_cannot_take_pixels_is_refused_in_one_line(change: Any, message: str) -> None:
    model = stem(np.ones((1, 3, 3, 3), np.float32), None)
    change(model)
    if message == "rename":
        model.graph.node[1].input[0] = "input.float"
    with pytest.raises(GraphError, match=message) as raised:
        embed(model, IMAGENET)
    assert "\n" not in str(raised.value)
