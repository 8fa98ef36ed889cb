"""Latency with scripted runtimes: what is reported is what the script says."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from runtimes.errors import InputError, UnavailableError
from runtimes.isolated import ColdStart
from runtimes.latency import Candidate, measure
from runtimes.turns import Plan
from tests.runtimes.models import images
from tests.runtimes.scripted import MS, FakeClock, ScriptedRuntime

PLAN = Plan(rounds=10, turn_ms=20, isolated=False)


def measured(clock, *durations, batches=(1,), plan=PLAN, **options):
    candidates = [
        Candidate(name, partial(ScriptedRuntime, clock, duration, name))
        for name, duration in zip("abcd", durations, strict=False)
    ]
    return measure(candidates, batches, images(3), plan, clock=clock, **options)


def test_percentiles_mean_and_throughput_are_those_of_the_script():
    clock = FakeClock()
    # 100 measured runs, one in a turn; twelve runs come before, of which one is unseen in each turn.
    log: list[int] = []

    def duration(i):
        log.append(i)
        return 50 * MS if i < 10 else (i % 97 + 50) * MS

    (found,) = measured(clock, duration, batches=(4,), plan=replace(PLAN, rounds=100, max_runs=1)).results
    runs = np.array([duration(i) / MS for i in range(11, 210, 2)])
    assert found.runs == found.rounds == 100
    assert found.p50_ms == pytest.approx(np.percentile(runs, 50))
    assert found.p90_ms == pytest.approx(np.percentile(runs, 90))
    assert found.p99_ms == pytest.approx(np.percentile(runs, 99))
    assert (found.mean_ms, found.min_ms) == pytest.approx((runs.mean(), runs.min()))
    assert found.images_per_s == pytest.approx(4000 / found.p50_ms)


def test_a_steady_runtime_is_not_noisy_and_a_restless_one_is():
    clock = FakeClock()
    restless = np.random.default_rng(0).uniform(1, 2, 10_000)
    steady, noisy = measured(clock, lambda _: 5 * MS, lambda i: int(restless[i] * 30 * MS)).results
    assert (steady.spread, steady.noisy) == (0.0, False)
    assert noisy.noisy


def test_a_tail_within_the_rounds_is_noise_and_a_rare_run_is_not():
    clock = FakeClock()
    durations = [lambda i, every=every: MS * (9 if i % every == 0 else 1) for every in (5, 50)]
    tail, rare = measured(clock, *durations).results
    assert (tail.spread, rare.spread) == (0.0, 0.0)
    assert tail.noisy
    assert not rare.noisy


@pytest.mark.parametrize(("rounds", "p90", "p99", "noisy"), [(4, 0, 0, 1), (9, 0, 0, 0), (10, 1, 0, 0), (100, 1, 1, 0)])
def test_percentiles_and_calm_need_runs_enough(rounds, p90, p99, noisy):
    plan = replace(PLAN, rounds=rounds, max_runs=1)
    (found,) = measured(FakeClock(), lambda _: 5 * MS, plan=plan).results
    assert (found.p90_ms is not None, found.p99_ms is not None, found.noisy) == (bool(p90), bool(p99), bool(noisy))


@pytest.mark.parametrize(("factor", "faster"), [(0.5, True), (2.0, False), (1.0, None)])
def test_faster_is_told_from_the_interval(factor, faster):
    clock = FakeClock()
    first, second = measured(clock, lambda _: 10 * MS, lambda _: int(10 * factor * MS)).results
    assert first.ratio_to_first is None
    assert second.ratio_to_first.ratio == pytest.approx(factor)
    assert second.ratio_to_first.faster is faster


def test_a_difference_that_drowns_in_noise_is_not_told():
    clock = FakeClock()
    noise = np.random.default_rng(5).lognormal(0, 0.5, 10_000)
    _, second = measured(
        clock, lambda i: int(noise[i] * 100 * MS), lambda i: int(noise[-i - 1] * 99 * MS), plan=PLAN
    ).results
    assert second.ratio_to_first.faster is None


def test_every_batch_size_is_run_with_as_many_images_even_more_than_there_are():
    clock = FakeClock()
    runtimes = []

    def make():
        runtimes.append(ScriptedRuntime(clock, lambda _: MS))
        return runtimes[0]

    found = measure([Candidate("a", make)], (1, 2, 8), images(3), PLAN, clock=clock)
    assert [row.batch for row in found.results] == [1, 2, 8]
    assert sorted(set(runtimes[0].sizes)) == [1, 2, 8]
    assert len(runtimes) == 1
    assert not runtimes[0].is_open


def test_a_fixed_batch_fails_at_other_sizes_alone_and_the_others_are_not_compared_with_it():
    clock = FakeClock()
    candidates = [
        Candidate("fixed", lambda: ScriptedRuntime(clock, lambda _: MS, batch=2)),
        Candidate("free", lambda: ScriptedRuntime(clock, lambda _: MS)),
    ]
    found = measure(candidates, (1, 2), images(2), PLAN, clock=clock)
    assert [(row.label, row.batch) for row in found.results] == [("free", 1), ("fixed", 2), ("free", 2)]
    assert [(row.label, row.batch) for row in found.failures] == [("fixed", 1)]
    assert found.results[0].ratio_to_first is None
    assert found.results[2].ratio_to_first is not None


def test_a_runtime_that_cannot_be_opened_is_an_error_and_those_before_it_are_closed():
    clock = FakeClock()
    first = ScriptedRuntime(clock, lambda _: MS)

    def missing():
        raise UnavailableError("tensorrt is not installed")

    with pytest.raises(UnavailableError, match="tensorrt"):
        measure([Candidate("a", lambda: first), Candidate("b", missing)], (1,), images(1), PLAN)
    assert not first.is_open


def test_a_runtime_that_came_open_stays_open():
    clock = FakeClock()
    with ScriptedRuntime(clock, lambda _: MS) as runtime:
        measure([Candidate("a", lambda: runtime)], (1,), images(1), PLAN, clock=clock)
        assert runtime.is_open


def test_a_result_is_json_with_cold_start_and_threads():
    (found,) = measured(FakeClock(), lambda _: MS).results
    document = json.loads(json.dumps(replace(found, cold=ColdStart(12.5, 80.0)).to_json()))
    assert (document["cold_start_ms"], document["peak_rss_mb"], document["threads"]) == (12.5, 80.0, 2)
    assert document["ratio_to_first"] is None
    assert "cold" not in document


def test_progress_counts_the_rounds_of_all_batch_sizes():
    heard: list[tuple[int, int]] = []
    plan = replace(PLAN, rounds=2)
    measured(FakeClock(), lambda _: MS, batches=(1, 2), plan=plan, on_progress=lambda *both: heard.append(both))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_cold_start_and_memory_are_measured_for_each_batch_size(monkeypatch):
    asked = []

    def fake(create, shape, dtype):
        asked.append((*shape, dtype))
        return ColdStart(1.0, 2.0)

    monkeypatch.setattr("runtimes.latency.cold_start", fake)
    found = measured(FakeClock(), lambda _: MS, batches=(1, 4), plan=replace(PLAN, isolated=True))
    assert asked == [(1, 3, 4, 4, "float32"), (4, 3, 4, 4, "float32")]
    assert [row.cold for row in found.results] == [ColdStart(1.0, 2.0)] * 2


@pytest.mark.parametrize(
    ("labels", "batches", "message"),
    [("", (1,), "0 runtimes"), ("a", (), "0 batch sizes"), ("aa", (1,), "one of its own"), ("a", (1, 1), "each once"),
     ("a", (0,), "from 1")],
)  # fmt: skip
def test_nothing_to_measure_or_the_same_twice_is_refused(labels, batches, message):
    with pytest.raises(InputError, match=message):
        measure([Candidate(label, pytest.fail) for label in labels], batches, images(1), PLAN)


def test_no_images_are_refused():
    with pytest.raises(InputError, match=r"\[0, 3, 4, 4\]"):
        measure([Candidate("a", pytest.fail)], (1,), images(1)[:0], PLAN)
