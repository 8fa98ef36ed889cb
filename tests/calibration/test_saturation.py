"""Sparing weights from overflow, against a search over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.saturation import LARGEST_SUM, overflows, spared

BYTES = st.integers(-127, 127).map(float)
EXTREME = st.sampled_from([-127.0, -100.0, -65.0, 64.0, 65.0, 90.0, 127.0]) | BYTES
CONVOLUTIONS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    elements=EXTREME,
)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=EXTREME)


def pairs(row):
    return [(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]


def channels_innermost(kernel):
    """``[I,kh,kw]`` as ONNX Runtime sums it: row, column, channel."""
    return [kernel[i, y, x] for y in range(kernel.shape[1]) for x in range(kernel.shape[2]) for i in range(len(kernel))]


def by_position(kernel):
    """As oneDNN does: the channels of one position, then those of the next, padded to whole groups of four."""
    found = []
    for y in range(kernel.shape[1]):
        for x in range(kernel.shape[2]):
            channels = [kernel[i, y, x] for i in range(len(kernel))]
            found.extend([*channels, *[0.0] * (-len(channels) % 4)])
    return found


def saturates(a, b):
    """Whether 255 times two weights of one sign leaves 16 bits."""
    return not -(2**15) <= 255 * a + 255 * b <= 2**15 - 1


@settings(deadline=None)
@given(CONVOLUTIONS)
def test_no_pair_overflows_in_the_order_of_either_kernel(weights):
    for kernel in spared(weights, 0):
        for order in (channels_innermost, by_position):
            assert not [pair for pair in pairs(order(kernel)) if saturates(*pair) or abs(sum(pair)) > LARGEST_SUM]


@settings(deadline=None)
@given(MATRICES, st.sampled_from([0, 1]))
def test_no_pair_of_a_matrix_overflows_along_its_inputs(weights, axis):
    rows = spared(weights, axis) if axis == 0 else spared(weights, axis).T
    assert not [pair for row in rows for pair in pairs(row) if abs(sum(pair)) > LARGEST_SUM]


@settings(deadline=None)
@given(CONVOLUTIONS | MATRICES, st.sampled_from([0, 1]))
def test_what_was_spared_is_spared_and_no_sign_or_whole_number_is_lost(weights, axis):
    before = weights.copy()
    once = spared(weights, axis)
    np.testing.assert_array_equal(weights, before)
    assert once.shape == weights.shape
    assert once.dtype == np.float32
    np.testing.assert_array_equal(spared(once, axis), once)
    np.testing.assert_array_equal(np.sign(once), np.sign(weights))
    np.testing.assert_array_equal(np.rint(once), once)
    assert (np.abs(once) <= np.abs(weights)).all()


@settings(deadline=None)
@given(MATRICES)
def test_a_matrix_in_either_layout_is_spared_alike(weights):
    np.testing.assert_array_equal(spared(weights.T, 1), spared(weights, 0).T)


GRID = np.arange(-127, 128, dtype=np.float32)
LEGAL = np.array([(a, b) for a in GRID for b in GRID if abs(a + b) <= LARGEST_SUM], np.float32)


@settings(deadline=None, max_examples=60)
@given(EXTREME, EXTREME)
def test_each_pair_becomes_the_nearest_one_that_cannot_overflow(a, b):
    ((first, second),) = spared(np.array([[a, b]], np.float32), 0)
    nearest = np.square(LEGAL - np.array([a, b], np.float32)).sum(axis=1).min()
    assert (first - a) ** 2 + (second - b) ** 2 == nearest


def test_every_pair_there_is_ends_within_bounds_and_harmless_ones_stay():
    every = np.array([(a, b) for a in GRID for b in GRID], np.float32)
    found = spared(every, 0)
    harmless = np.abs(every.sum(axis=1)) <= LARGEST_SUM
    np.testing.assert_array_equal(found[harmless], every[harmless])
    assert np.abs(found.sum(axis=1)).max() == LARGEST_SUM
    assert overflows(every, 0) == np.count_nonzero(found != every) > 0


def test_the_bound_is_what_16_bits_hold_of_two_products():
    assert not saturates(LARGEST_SUM, 0)
    assert not saturates(-LARGEST_SUM, 0)
    assert saturates(LARGEST_SUM + 1, 0)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([127, 127, 127], [64, 64, 127]),  # the last one of an odd row has no neighbour
        ([127, -127, -127, -127], [127, -127, -64, -64]),
        ([127, 2], [126, 2]),
        ([100, 29], [99, 29]),
        ([-120, -30], [-109, -19]),
    ],
)
def test_pairs_give_way_as_little_as_they_can(weights, expected):
    assert spared(np.array([weights], np.float32), 0).tolist() == [expected]


def test_an_odd_number_of_channels_is_spared_across_positions_and_within_them():
    weights = np.zeros((1, 3, 1, 2), np.float32)
    weights[0, 2, 0, 0] = weights[0, 0, 0, 1] = 127  # neighbours for ONNX Runtime only
    weights[0, 1, 0, 1] = 100  # and of the second one for oneDNN only
    first, second, third = (int(spared(weights, 0)[0, i, 0, j]) for i, j in ((2, 0), (0, 1), (1, 1)))
    assert (first, second + third) == (64, 128)
