"""Ranges from statistics, against searches that know nothing of histograms or of our shortcuts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.grids import S8, S8_ASYMMETRIC, S8_SHIFTED, U8, Affine, Grid, affine
from calibration.observers import Observer
from calibration.thresholds import METHODS, choose, divergence, squared_error
from runtimes.errors import DataError, InputError

GRIDS = [S8, S8_SHIFTED, U8, S8_ASYMMETRIC]
TINY_SYMMETRIC, TINY_UNSIGNED = Grid(-4, 3, symmetric=True), Grid(0, 7, symmetric=False)


def observer_of(values):
    observer = Observer()
    observer.update(np.asarray(values, np.float32).reshape(1, 1, -1))
    return observer


def heavy_tailed(seed, signed):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 4000)
    return values if signed else np.maximum(values, 0)


def plain_error(values, low, high, grid):
    """Mean squared error by the definition of QuantizeLinear, nothing shared with the code."""
    if grid.symmetric:
        scale, zero = np.float32(max(high / grid.high, -low / grid.high)), 0
    else:
        scale = np.float32((high - low) / (grid.high - grid.low))
        zero = round(grid.low - low / scale)
    codes = np.clip(np.round(values / scale) + zero, grid.low, grid.high)
    return (((codes - zero) * scale - values) ** 2).mean()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grid", [S8, TINY_SYMMETRIC])
def test_mse_is_as_good_as_a_brute_force_search_of_symmetric_ranges(seed, grid):
    values = heavy_tailed(seed, signed=True).astype(np.float32).astype(np.float64)
    found = choose(observer_of(values), "mse", grid)
    brute = min(plain_error(values, -a, a, grid) for a in np.linspace(0.02, 1, 1500) * np.abs(values).max())
    assert plain_error(values, -found.high, found.high, grid) <= 1.01 * brute


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("grid", [U8, TINY_UNSIGNED])
def test_mse_is_as_good_as_a_brute_force_search_of_both_ends(seed, signed, grid):
    values = heavy_tailed(seed, signed).astype(np.float32).astype(np.float64)
    found = choose(observer_of(values), "mse", grid)
    lows = np.linspace(0.02, 1, 50) * values.min() if signed else [0.0]
    highs = np.linspace(0.02, 1, 50) * values.max()
    brute = min(plain_error(values, low, high, grid) for low in lows for high in highs)
    assert ((found.rounded(values) - values) ** 2).mean() <= 1.02 * brute


def plain_divergence(bins, counts, scale, low, high):
    """The textbook's two loops over ``bins``, with dictionaries."""
    inside = [b for b in bins if low * scale <= b <= high * scale]
    if not inside:
        return math.inf
    p = {b: counts[b] for b in inside}
    p[inside[0]] += sum(counts[b] for b in bins if b < low * scale)
    p[inside[-1]] += sum(counts[b] for b in bins if b > high * scale)
    level = {b: int(np.rint(b / scale)) for b in inside}
    q = {}
    for b in inside:
        same = [other for other in inside if level[other] == level[b]]
        q[b] = sum(counts[other] for other in same) / len(same)
    p_sum, q_sum = sum(p.values()), sum(q.values())
    return sum(p[b] / p_sum * math.log((p[b] / p_sum) / (q[b] / q_sum)) for b in inside)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-40, 40).filter(bool), min_size=3, max_size=60), st.floats(0.1, 1.0))
def test_divergence_is_that_of_the_textbook(codes, fraction):
    # 4096 / 64 bins to a unit: every value sits in a bin of its own
    observer = observer_of([c + 0.25 for c in codes])
    centres, counts, _ = observer.histogram.occupied()
    scale = 41 * fraction / TINY_SYMMETRIC.high
    quantisation = Affine(scale, 0, TINY_SYMMETRIC)
    expected = plain_divergence(list(centres), dict(zip(centres, counts, strict=True)), scale, -4, 3)
    assert divergence(observer, quantisation) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("signed", [True, False])
def test_entropy_is_the_best_of_a_brute_force_scan(grid, signed):
    observer = observer_of(heavy_tailed(5, signed))
    found = divergence(observer, choose(observer, "entropy", grid))
    scan = [affine(observer.low * f, observer.high * f, grid) for f in np.geomspace(1 / 64, 1, 300)]
    best = min(divergence(observer, candidate) for candidate in scan)
    assert found <= 1.05 * best + 1e-9


@pytest.mark.parametrize("signed", [True, False])
def test_the_squared_error_of_a_histogram_is_that_of_the_values(signed):
    values = heavy_tailed(7, signed).astype(np.float32).astype(np.float64)
    observer = observer_of(values)
    for grid in GRIDS:
        quantisation = affine(observer.low / 2, observer.high / 2, grid)
        plain = ((quantisation.rounded(values) - values) ** 2).mean()
        assert squared_error(observer, quantisation) == pytest.approx(plain, rel=0.02)


def test_minmax_covers_every_value():
    values = heavy_tailed(1, signed=True)
    for grid in (S8, U8):
        found = choose(observer_of(values), "minmax", grid)
        assert found.low <= values.min() + found.scale / 2
        assert found.high >= values.max() - found.scale / 2


def test_average_is_the_mean_of_each_images_extremes():
    images = np.random.default_rng(0).standard_normal((9, 3, 5)).astype(np.float32)
    observer = Observer()
    observer.update(images[:4])
    observer.update(images[4:])
    found = choose(observer, "average", U8)
    wide = images.max(axis=(1, 2)).mean() - images.min(axis=(1, 2)).mean()
    assert found.scale * 255 == pytest.approx(wide, rel=1e-6)


def test_percentile_is_that_of_the_sorted_values():
    values = np.random.default_rng(0).standard_normal((100, 1, 2000)).astype(np.float32)
    observer = Observer()
    observer.update(values)
    symmetric = choose(observer, "percentile", S8)
    assert symmetric.high == pytest.approx(np.percentile(np.abs(values), 99.99), rel=0.01)
    both = choose(observer, "percentile", U8)
    assert both.scale * 255 == pytest.approx(np.diff(np.percentile(values, [0.005, 99.995]))[0], rel=0.01)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "values",
    [[0.0, 0.0], [3.0], [-3.0], [1e-38, 0.0], [-3e38, 3e38], [5.0, 5.0, 5.0], [-1.0, -2.0]],
    ids=["zeros", "one", "negative", "tiny", "huge", "constant", "all negative"],
)
def test_every_method_survives_degenerate_tensors(method, grid, values):
    found = choose(observer_of(values), method, grid)
    assert 0 < found.scale < np.inf
    assert np.float32(found.scale) == found.scale
    assert grid.low <= found.zero_point <= grid.high


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from(GRIDS))
def test_zero_stays_zero(a, b, grid):
    found = affine(min(a, b), max(a, b), grid)
    assert found.rounded(np.zeros(1))[0] == 0
    assert grid.low <= found.zero_point <= grid.high


def test_a_shifted_grid_halves_the_step_of_what_is_never_negative():
    relu = observer_of(np.linspace(0, 6, 1000))
    plain, shifted = choose(relu, "minmax", S8), choose(relu, "minmax", S8_SHIFTED)
    assert shifted.scale == pytest.approx(plain.scale * 127 / 255, rel=1e-6)
    assert (shifted.low, shifted.zero_point) == (0, -128)


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_too_rare_to_be_counted_still_have_their_range(method):
    """A sample of a large tensor may hold zeros alone."""
    values = np.zeros((1, 64, 112, 112), np.float32)
    values[0, 3, 5, 7], values[0, 9, 1, 2] = 5.0, 9.0
    observer = Observer()
    observer.update(values)
    assert choose(observer, method, U8).high == pytest.approx(9.0)


def test_an_observer_that_saw_nothing_gives_no_range():
    with pytest.raises(DataError, match="never observed"):
        choose(Observer(), "mse", S8)


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="minmax, average, percentile, entropy, mse"):
        choose(observer_of([1.0]), "kl", S8)  # type: ignore[arg-type]
