"""Pixels into quantised files: the very same integers, without a float where the target has unsigned ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.graph import Network
from calibration.lattice import PIXELS, on_lattice
from calibration.lint import lint
from calibration.observers import Observer
from calibration.parameters import initial
from calibration.placement import place, target
from calibration.preprocess import PRESETS, Preprocessing
from calibration.qdq import write
from exporter.graph.embed import embed
from exporter.graph.embed_lattice import find_lattice
from runtimes.int8_sim import Int8SimRuntime
from tests.calibration.networks import SIZE, Net, observers_of, run

IMAGENET = replace(PRESETS["imagenet"], size=(SIZE, SIZE), resize=None, crop="none")
CONTRACTS = {
    "ImageNet": IMAGENET,
    "BGR": replace(IMAGENET, color="BGR", scale=1.0, mean=(103.53, 116.28, 123.675), std=(1.0,) * 3),
    "a tie": replace(IMAGENET, mean=(0.5,) * 3, std=(0.5,) * 3),
    "no mean": replace(IMAGENET, mean=(0.0,) * 3, std=(1.0,) * 3),
    "beyond the pixels": replace(IMAGENET, mean=(-0.2, 1.5, 0.5)),
}
GOALS = {
    "tensorrt": target("tensorrt"),
    "onnxruntime": target("onnxruntime"),
    "arm": target("onnxruntime", cpu="arm"),
    "openvino": target("openvino"),
}


def pixels(count: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    values = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    values[0].reshape(-1, 3)[:2] = [[0] * 3, [255] * 3]
    return values


def quantised(contract: Preprocessing, goal: str, *, lattice: bool = True, **attributes: Any) -> onnx.ModelProto:
    """A stem and a head, 8 bits each."""
    net = Net()
    net.relu(net.conv("input", "stem", 4, 3, **attributes), "relu")
    network = net.head("relu").network()
    images = contract.normalise(pixels())
    seen = Observer()
    seen.update(images)
    fixed = {}
    if lattice:
        found = on_lattice(network, contract, GOALS[goal], seen)
        assert found.quantisation is not None
        network, fixed = found.network, {PIXELS: found.quantisation}
    placement = place(network, GOALS[goal])
    return write(network, placement, initial(network, placement, observers_of(network, images), "minmax", fixed))


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("pads", [[1] * 4, [0, 1, 2, 0], [0] * 4], ids=["padded", "unevenly", "not padded"])
def test_pixels_give_what_the_preprocessed_images_gave_bit_for_bit(goal: str, name: str, pads: list[int]) -> None:
    contract = CONTRACTS[name]
    model = quantised(contract, goal, pads=pads)
    made = embed(model, contract)
    assert made.how == "lattice"
    onnx.checker.check_model(made.model, full_check=True)
    np.testing.assert_array_equal(run(made.model, pixels()), run(model, contract.normalise(pixels())))


@pytest.mark.parametrize("goal", ["onnxruntime", "openvino"])
def test_with_unsigned_integers_no_float_is_made_before_the_first_convolution(goal: str) -> None:
    made = embed(quantised(IMAGENET, goal, pads=[1] * 4), IMAGENET).model
    front = [node.op_type for node in made.graph.node if node.name.startswith("input.")]
    before = front[: front.index("DequantizeLinear")]
    assert set(before) == {"Transpose", "Slice", "Pad", "Concat"}
    assert "QuantizeLinear" not in before
    assert "Cast" not in before


def test_tensorrt_gets_a_cast_at_the_input_and_whole_numbers_after_it() -> None:
    made = embed(quantised(IMAGENET, "tensorrt", pads=[1] * 4), IMAGENET).model
    takers = [node.op_type for node in made.graph.node if "input" in node.input]
    assert takers == ["Cast"]
    for item in made.graph.initializer:
        if item.name.startswith("input.") and item.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(item)
            np.testing.assert_array_equal(values, np.rint(values))


@pytest.mark.parametrize("goal", ["onnxruntime", "openvino", "tensorrt"])
def test_the_simulation_runs_them_and_lint_finds_nothing_new(goal: str) -> None:
    model = quantised(IMAGENET, goal, pads=[1] * 4)
    made = embed(model, IMAGENET).model
    with Int8SimRuntime(model.SerializeToString()) as before, Int8SimRuntime(made.SerializeToString()) as after:
        np.testing.assert_array_equal(after.run(pixels()), before.run(IMAGENET.normalise(pixels())))
    known = {(each.rule, each.node) for each in lint(model, goal)}
    assert {(each.rule, each.node) for each in lint(made, goal)} <= known


@pytest.mark.parametrize("goal", GOALS)
def test_a_file_without_the_prologue_or_for_another_contract_gets_two_nodes(goal: str) -> None:
    bare = quantised(IMAGENET, goal, lattice=False, pads=[1] * 4)
    assert embed(bare, IMAGENET).how == "nodes"
    other = replace(IMAGENET, std=(0.5,) * 3)
    model = quantised(IMAGENET, goal, pads=[1] * 4)
    assert find_lattice(Network(model, ""), other) is None
    assert embed(model, other).how == "nodes"
    wanted = run(model, other.normalise(pixels()))
    assert np.mean(np.abs(run(embed(model, other).model, pixels()) - wanted) <= 1e-5) > 0.9
