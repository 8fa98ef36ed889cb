"""Resize and crop inside the graph against Pillow, and what comes out at the other end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from calibration.pixel_contract import cropped, pictures_of, pixels_of
from calibration.preprocess import PRESETS, Interpolation, Preprocessing
from exporter.embed_proof import prove_head, prove_resize
from exporter.graph.embed import embed
from exporter.graph.embed_resize import embed_resize
from exporter.graph.head import with_head
from runtimes.errors import GraphError, InputError, ParityError
from tests.exporter.test_embed import pixels, run, stem

CONTRACT = replace(PRESETS["imagenet"], size=(13, 17), resize=20)
SIZES = [(20, 20), (21, 33), (64, 47), (11, 90), (35, 20)]


def model(contract: Preprocessing, opset: int = 18) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((4, len(contract.mean), 3, 3)).astype(np.float32)
    return embed(stem(weight, None, opset, len(contract.mean), pads=[1] * 4), contract).model


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth, with an edge: grain would make every rounding of a weight visible."""
    rows, columns = np.mgrid[:height, :width]
    planes = [127 + 80 * np.sin(rows / 5 + each) * np.cos(columns / 7) + 40 * (columns > width / 2) for each in
              range(channels)]  # fmt: skip
    return np.asarray(np.clip(np.rint(np.stack(planes, -1)), 0, 255)[None], np.uint8)


def resized(made: onnx.ModelProto, shown: np.ndarray) -> np.ndarray:
    probe = onnx.ModelProto()
    probe.CopyFrom(made)
    del probe.graph.output[:]
    probe.graph.output.append(onnx.helper.make_tensor_value_info("input.picture.pixels", onnx.TensorProto.UINT8, None))
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": shown})[0])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_are_pillows_within_a_level(interpolation: Interpolation, size: tuple[int, int]) -> None:
    contract = replace(CONTRACT, interpolation=interpolation)
    shown = picture(*size)
    found = resized(embed_resize(model(contract), contract), shown)
    wanted = contract.apply_pixels(shown[0]), cropped(contract, shown)
    assert found.shape == wanted[1].shape
    np.testing.assert_array_equal(contract.normalise(wanted[1])[0], wanted[0])
    apart = np.abs(found.astype(int) - wanted[1])
    if interpolation == "nearest":  # a sample beside a tie in float32 moves a whole line
        assert (apart > 1).mean() < 0.1
    else:
        assert apart.max() <= 1


@pytest.mark.parametrize("size", [(13, 17), (14, 18), (15, 19), (16, 20), (17, 23)])
def test_the_crop_is_pythons_for_even_and_odd_borders_in_opset_13(size: tuple[int, int]) -> None:
    contract = replace(CONTRACT, resize=None)
    shown = np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8)
    np.testing.assert_array_equal(resized(embed_resize(model(contract, 13), contract), shown), cropped(contract, shown))


def test_a_picture_that_is_smaller_than_the_crop_fails_and_gives_no_numbers() -> None:
    contract = replace(CONTRACT, resize=None)
    with pytest.raises(Exception, match=r"cannot be reshaped|Reshape|Slice"):
        run(embed_resize(model(contract), contract), picture(9, 30))


def test_grey_pictures_of_any_size_go_in() -> None:
    contract = replace(CONTRACT, color="L", mean=(0.45,), std=(0.22,))
    made = embed_resize(model(contract), contract)
    dims = made.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["N", "height", "width", 1]
    shown = picture(40, 31, 1)
    np.testing.assert_allclose(run(made, shown), run(model(contract), cropped(contract, shown)), rtol=1e-3, atol=0.3)


def test_an_old_opset_and_a_contract_without_resize_are_refused() -> None:
    with pytest.raises(GraphError, match="no antialias before opset 18"):
        embed_resize(model(CONTRACT, 17), CONTRACT)
    bare = replace(CONTRACT, resize=None, crop="none")
    with pytest.raises(InputError, match="neither resize nor crop"):
        embed_resize(model(bare), bare)


def test_the_proof_tells_a_resize_of_another_filter() -> None:
    contract = replace(PRESETS["imagenet"], size=(32, 32), resize=40)
    weight = np.ones((1, 3, 1, 1), np.float32)
    plain = stem(weight, None, 18)
    for dim, size in zip(plain.graph.input[0].type.tensor_type.shape.dim[2:], (32, 32), strict=True):
        dim.dim_value = size
    made = embed_resize(embed(plain, contract).model, contract)
    assert "levels of 256" in prove_resize(made, contract)
    resize = next(node for node in made.graph.node if node.op_type == "Resize")
    kept = [each for each in resize.attribute if each.name != "antialias"]
    del resize.attribute[:]
    resize.attribute.extend(kept)
    with pytest.raises(ParityError, match="differs from the preprocessing"):
        prove_resize(made, contract)


def test_what_is_left_to_the_caller_is_a_contract() -> None:
    left, whole = pixels_of(CONTRACT), pictures_of(CONTRACT)
    assert (left.dtype, left.layout, left.scale, left.mean, left.size) == ("uint8", "NHWC", 1.0, (0.0,) * 3, (13, 17))
    assert (whole.size, whole.resize, whole.any_size, left.any_size) == (None, None, True, False)
    assert Preprocessing.from_json(left.to_json()) == left
    shown = picture(50, 40)
    np.testing.assert_array_equal(CONTRACT.normalise(left.apply_pixels(shown[0])), CONTRACT.apply_pixels(shown[0]))


@pytest.mark.parametrize("change", [{"scale": 1 / 255}, {"mean": (1.0, 0.0, 0.0)}, {"layout": "NCHW"}])
def test_a_contract_of_pixels_has_no_arithmetic(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        replace(pixels_of(CONTRACT), **change)


@pytest.mark.parametrize(("softmax", "top_k"), [(True, None), (False, 3), (True, 1), (True, 4)])
@pytest.mark.parametrize("opset", [13, 17, 20])
def test_probabilities_and_the_best_classes_are_those_of_the_logits(
    softmax: bool, top_k: int | None, opset: int
) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 3, 13, 17)).astype(np.float32) / 10
    plain = embed(stem(weight, None, opset), CONTRACT).model
    made, shown = with_head(plain, softmax, top_k), pixels()
    logits = run(plain, shown).astype(np.float64)
    values = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) if softmax else logits
    onnx.checker.check_model(made, full_check=True)
    found = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"input": shown}
    )
    if top_k is None:
        np.testing.assert_allclose(found[0], values, rtol=1e-4, atol=1e-7)
    else:
        scores, classes = found
        assert (classes.dtype, scores.shape) == (np.int64, (2, top_k))
        np.testing.assert_array_equal(classes, np.argsort(-values, axis=1, kind="stable")[:, :top_k])
        np.testing.assert_allclose(scores, np.take_along_axis(values, classes, 1), rtol=1e-4, atol=1e-7)
    prove_head(made, logits.astype(np.float32), shown, softmax, top_k)
    with pytest.raises(ParityError):
        prove_head(made, logits.astype(np.float32)[:, ::-1].copy(), shown, softmax, top_k)


def test_more_classes_than_there_are_and_a_second_softmax_are_refused() -> None:
    plain = embed(stem(np.ones((4, 3, 13, 17), np.float32), None), CONTRACT).model
    plain.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    with pytest.raises(InputError, match=r"--top-k 5.* 4 classes"):
        with_head(plain, False, 5)
    with pytest.raises(GraphError, match="ends in Softmax already"):
        with_head(with_head(plain, True, None), True, None)
