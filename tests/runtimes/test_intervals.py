"""Intervals and tests, held against SciPy, against brute force and against simulated data."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from runtimes.intervals import agreement_interval, mcnemar, ratio_of_medians, wilson


@settings(deadline=None)
@given(st.integers(1, 10**7).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilsons_interval_is_scipys(counts, confidence):
    successes, n = counts
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_fraction_and_stays_within_0_and_1(counts):
    successes, n = counts
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 5), (6, 5), (1, 5, 1.0), (1, 5, 0.0)])
def test_a_fraction_that_is_none_has_no_interval(arguments):
    with pytest.raises(ValueError, match="expected"):
        wilson(*arguments)


@settings(deadline=None)
@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_an_agreement_is_that_of_its_count(counts):
    same, n = counts
    assert agreement_interval(same / n, n) == wilson(same, n)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_is_the_sum_over_all_outcomes_that_are_no_likelier(first, second):
    n = first + second
    # All outcomes of n fair coins, counted in whole numbers.
    extreme = sum(comb(n, k) for k in range(n + 1) if comb(n, k) <= comb(n, first))
    assert mcnemar(first, second) == pytest.approx(extreme / 2**n, rel=1e-9)


def test_mcnemars_p_is_symmetric_and_1_without_any_difference():
    assert mcnemar(3, 17) == mcnemar(17, 3)
    assert mcnemar(0, 0) == mcnemar(40_000, 40_000) == 1.0
    assert mcnemar(100_000, 110_000) < 1e-90


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="-1"):
        mcnemar(-1, 3)


def test_a_runtime_that_takes_half_as_long_in_every_round_is_faster():
    rounds = [10.0, 12.0, 30.0, 11.0, 10.5, 10.2, 11.5, 10.1]
    found = ratio_of_medians([each / 2 for each in rounds], rounds)
    assert found.ratio == pytest.approx(0.5)
    assert found.faster is True
    assert ratio_of_medians(rounds, [each / 2 for each in rounds]).faster is False


@pytest.mark.parametrize("times", [[3.0] * 8, [1.0, 5.0, 2.0] * 3])
def test_a_runtime_is_not_faster_than_itself(times):
    found = ratio_of_medians(times, times)
    assert found.ratio == 1.0
    assert found.faster is None
    assert found.ci95 is not None
    assert found.ci95[0] <= 1.0 <= found.ci95[1]


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_few_rounds_decide_nothing_and_say_so(rounds):
    found = ratio_of_medians([1.0 + 0.01 * i for i in range(rounds)], [2.0] * rounds)
    assert (found.ci95, found.faster) == (None, None)
    assert found.remark == f"{rounds} rounds bear no interval: 8 at least do"
    assert found.ratio == pytest.approx(0.5, rel=0.1)


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(1)
    times, first = rng.lognormal(size=(2, 20)).tolist()
    assert ratio_of_medians(times, first, seed=7) == ratio_of_medians(times, first, seed=7)
    assert ratio_of_medians(times, first, seed=7) != ratio_of_medians(times, first, seed=8)


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(20240101)
    inside = 0
    for trial in range(200):
        # What a round does to both (a busy machine) is shared; the rest is each runtime's own noise.
        shared = rng.lognormal(0.0, 0.3, 30)
        times = 0.9 * shared * rng.lognormal(0.0, 0.05, 30)
        first = shared * rng.lognormal(0.0, 0.05, 30)
        low, high = ratio_of_medians(times.tolist(), first.tolist(), seed=trial).ci95 or (0.0, 0.0)
        inside += low <= 0.9 <= high
    assert 180 <= inside <= 200  # 190 expected; 4 standard deviations are 12


@settings(deadline=None)
@given(st.floats(1e-6, 1e6))
def test_the_unit_does_not_matter(unit):
    times, first = np.random.default_rng(3).lognormal(size=(2, 15))
    scaled = ratio_of_medians((times * unit).tolist(), (first * unit).tolist())
    assert scaled.ratio == pytest.approx(ratio_of_medians(times.tolist(), first.tolist()).ratio)


@pytest.mark.parametrize(("times", "first"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [float("nan")])])
def test_times_that_are_none_or_unpaired_are_refused(times, first):
    with pytest.raises(ValueError, match="expected as many"):
        ratio_of_medians(times, first)
