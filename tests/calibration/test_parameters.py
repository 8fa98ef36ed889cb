"""Scales and integers of weights, against searches and roundings written out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.grids import S7_NARROW, S8_NARROW, Affine
from calibration.parameters import Parameters, biases, initial, largest, least_error, with_room_for_biases
from calibration.placement import place, target
from calibration.saturation import spared
from calibration.thresholds import choose
from runtimes.errors import DataError
from tests.calibration.networks import Net, basic, flattened, images, observers_of, option_a

PLAIN, SPARING = target("tensorrt"), target("onnxruntime")
SEVEN = target("onnxruntime", cpu="avx2")
WEIGHTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(1, 2)),
    elements=st.floats(-4, 4, width=32),
)


def parameters_of(weight, scales):
    return Parameters({}, {"w": np.asarray(weight, np.float32)}, {"w": np.asarray(scales, np.float32)}, {})


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(weight, scale, goal):
    """Squared error of one output channel, ``[I, kh, kw]``, in float64."""
    steps = np.clip(np.rint(weight / np.float32(scale)), -goal.weights.high, goal.weights.high).astype(np.float32)
    if goal.spares_pairs:
        steps = spared(steps[None], 0)[0]
    return float(((steps.astype(np.float64) * float(scale) - weight) ** 2).sum())


@settings(deadline=None)
@given(WEIGHTS, st.sampled_from([S8_NARROW, S7_NARROW]))
def test_scales_of_the_largest_weight_clip_nothing(weight, grid):
    scales = largest(weight, 0, grid)
    for channel, scale in zip(weight, scales, strict=True):
        peak = np.abs(channel).max()
        assert scale == pytest.approx(peak / grid.high) if peak > 1e-20 else scale > 0
        assert np.rint(peak / scale) <= grid.high


def heavy_tailed(*shape):
    return gaussian(*shape) ** 3


GOALS = pytest.mark.parametrize("goal", [PLAIN, SPARING, SEVEN], ids=["eight", "sparing", "seven"])


def even(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@GOALS
@pytest.mark.parametrize("make", [gaussian, heavy_tailed, even])
@pytest.mark.parametrize("shape", [(6, 8, 3, 3), (6, 3, 3, 3), (6, 5, 1, 1), (6, 33)], ids=str)
def test_the_scale_that_is_found_has_the_least_error_of_all_that_are_tried(shape, make, goal):
    weight = make(*shape)
    found = least_error(weight, 0, goal)
    # Every fiftieth of the largest weight; and more than it, by twentieths, where pairs have to be spared.
    fractions = [each / 50 for each in range(15, 51)] + [each / 20 for each in range(21, 41) if goal.spares_pairs]
    for channel, scale, widest in zip(weight, found, largest(weight, 0, goal.weights), strict=True):
        searched = min(error(channel, widest * np.float32(fraction), goal) for fraction in fractions)
        assert error(channel, scale, goal) <= 1.001 * searched


@GOALS
def test_a_finer_search_gains_less_than_a_decibel(goal):
    weight = gaussian(3, 64, 3, 3)
    found = least_error(weight, 0, goal)
    for channel, scale, widest in zip(weight, found, largest(weight, 0, goal.weights), strict=True):
        searched = min(error(channel, widest * fraction, goal) for fraction in np.linspace(0.2, 2.0, 601))
        assert 10 * math.log10(error(channel, scale, goal) / searched) < 1.0


def test_a_channel_with_an_outlier_is_clipped_and_one_without_is_not():
    tailed = gaussian(1, 4096)
    tailed[0, 0] = 12.0
    assert least_error(tailed, 0, SEVEN)[0] < 0.95 * largest(tailed, 0, S7_NARROW)[0]
    flat = np.full((1, 4), 3.0, np.float32)
    assert least_error(flat, 0, PLAIN)[0] == largest(flat, 0, S8_NARROW)[0]


def test_weights_that_would_overflow_get_wider_steps_instead():
    crowded = np.full((1, 8), 3.0, np.float32)
    assert least_error(crowded, 0, SPARING)[0] > 1.9 * largest(crowded, 0, S8_NARROW)[0]


@GOALS
def test_scales_follow_the_axis_of_the_output_channels(goal):
    weight = gaussian(7, 5)
    np.testing.assert_array_equal(least_error(weight.T, 1, goal), least_error(weight, 0, goal))
    np.testing.assert_array_equal(largest(weight.T, 1, goal.weights), largest(weight, 0, goal.weights))


def test_a_channel_of_zeros_has_the_scale_1():
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[1] = 2.0
    for scales in (largest(weight, 0, S8_NARROW), least_error(weight, 0, PLAIN)):
        assert scales[0] == 1.0
        assert scales[1] == np.float32(2.0) / np.float32(127)


def test_the_smallest_weights_have_a_scale_whose_inverse_is_a_number():
    scale = largest(np.full((1, 1), 1e-45, np.float32), 0, S8_NARROW)
    assert np.isfinite(np.float32(1) / scale)
    assert scale > 0


@settings(deadline=None)
@given(WEIGHTS)
def test_integers_are_the_nearest_steps_within_the_grid(weight):
    scales = np.full(len(weight), 0.03125, np.float32)  # clips at 3.97
    found = parameters_of(weight, scales).integers("w", 0, PLAIN)
    assert found.dtype == np.int8
    exactly = weight.astype(np.float64) * 32
    inside = np.abs(exactly) <= 127
    assert (np.abs(found - exactly)[inside] <= 0.5).all()
    np.testing.assert_array_equal(found[~inside], 127 * np.sign(exactly[~inside]))


def test_integers_are_scaled_along_their_axis():
    weight, scales = gaussian(3, 4), np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
    found = parameters_of(weight, scales).integers("w", 1, PLAIN)
    np.testing.assert_array_equal(found, np.clip(np.rint(weight / scales), -127, 127))


def test_integers_are_spared_for_the_targets_that_need_it():
    full = parameters_of(np.full((1, 2), 127.0), [1.0])
    assert full.integers("w", 0, SPARING).tolist() == [[64, 64]]
    assert full.integers("w", 0, PLAIN).tolist() == [[127, 127]]
    assert full.integers("w", 0, SEVEN).tolist() == [[63, 63]]


@pytest.mark.parametrize("goal", ["tensorrt", "onnxruntime", "openvino"])
def test_activations_get_the_range_of_their_source_and_the_grid_of_their_site(goal):
    network = option_a().network()
    placement = place(network, target(goal))
    observers = observers_of(network, images())
    found = initial(network, placement, observers, "minmax", {})
    assert set(found.activations) == set(placement.sites)
    for name, site in placement.sites.items():
        assert found.activations[name] == choose(observers[site.source], "minmax", site.grid)


def test_a_quantisation_that_is_known_is_taken_for_all_that_share_it():
    network = option_a().network()
    placement = place(network, target("onnxruntime"))
    known = Affine(0.5, 0, placement.sites["relu"].grid)
    found = initial(network, placement, observers_of(network, images()), "minmax", {"relu": known})
    assert {name for name, each in found.activations.items() if each == known} == {"relu", "slice", "pad"}


def test_a_tensor_that_was_not_observed_is_named():
    network = basic().network()
    observers = observers_of(network, images())
    del observers["relu1"]
    with pytest.raises(DataError, match="no tensor relu1: calibrate this model again"):
        initial(network, place(network, PLAIN), observers, "minmax", {})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(bad):
    net = basic()
    net.constants = [item for item in net.constants if item.name != "conv1.weight"]
    net.constant("conv1.weight", np.full((4, 4, 3, 3), bad))
    network = net.network()
    with pytest.raises(DataError, match=r"weights conv1\.weight hold NaN or infinity"):
        initial(network, place(network, PLAIN), observers_of(basic().network(), images()), "minmax", {})


def test_every_layer_has_a_bias_for_each_channel():
    net = Net()
    net.conv(net.stem(), "conv1", 6, 4, bias=False)
    net.op("GlobalAveragePool", "conv1", "pool")
    net.constant("fc.weight", gaussian(6, 5))
    net.constant("fc.bias", [0.5])
    net.op("Gemm", f"{net.op('Flatten', 'pool', 'flat')} fc.weight fc.bias", "logits")
    network = net.network()
    found = biases(network, place(network, PLAIN))
    np.testing.assert_array_equal(found["stem"], network.initializers["stem.bias"])
    np.testing.assert_array_equal(found["conv1"], np.zeros(6))
    np.testing.assert_array_equal(found["logits"], np.full(5, 0.5))
    matmul = flattened(matmul=True).network()
    assert biases(matmul, place(matmul, PLAIN))["product"].shape == (5,)


def crowded(goal):
    """Parameters of which channel 1 of conv1 has next to no weights, but a bias."""
    network = basic().network()
    placement = place(network, goal)
    found = initial(network, placement, observers_of(network, images()), "minmax", {})
    scales = {**found.scales, "conv1.weight": np.array([0.01, 1e-14, 0.01, 0.01], np.float32)}
    biased = {**found.biases, "conv1": np.array([1.0, 2.0, 0.0, -1.0], np.float32)}
    return placement, replace(found, scales=scales, biases=biased)


def test_room_is_made_for_a_bias_that_is_more_than_32_bits_of_steps():
    placement, before = crowded(SPARING)
    after = with_room_for_biases(before, placement)
    steps = after.activations["relu"].scale * after.scales["conv1.weight"].astype(np.float64)
    assert np.abs(before.biases["conv1"] / steps).max() == pytest.approx(2**30)
    changed = after.scales["conv1.weight"] != before.scales["conv1.weight"]
    assert changed.tolist() == [False, True, False, False]
    again = with_room_for_biases(after, placement)
    np.testing.assert_array_equal(again.scales["conv1.weight"], after.scales["conv1.weight"])
    np.testing.assert_array_equal(after.scales["stem.weight"], before.scales["stem.weight"])


def test_float_biases_need_no_room():
    placement, before = crowded(PLAIN)
    assert with_room_for_biases(before, placement) is before
