"""Turns, with a clock that the test moves."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from runtimes.errors import InputError
from runtimes.turns import Plan, Runner, take_turns, timed_runs
from tests.runtimes.models import images
from tests.runtimes.scripted import MS, FakeClock, ScriptedRuntime


def opened(*runtimes):
    for each in runtimes:
        each.__enter__()
    return [Runner(each, images(2), each.clock) for each in runtimes]


def test_each_run_is_timed_by_itself():
    clock = FakeClock()
    with ScriptedRuntime(clock, lambda i: (i + 1) * MS) as runtime:
        assert timed_runs(runtime, images(1), 3, clock) == [MS, 2 * MS, 3 * MS]


def test_a_run_that_the_clock_cannot_resolve_still_takes_time():
    clock = FakeClock()
    with ScriptedRuntime(clock, lambda _: 0) as runtime:
        assert timed_runs(runtime, images(1), 2, clock) == [1, 1]


def test_every_runner_gets_as_many_turns_and_they_alternate_in_changing_order():
    clock = FakeClock()
    log: list[str] = []
    runners = opened(*(ScriptedRuntime(clock, lambda _: 10 * MS, name, log=log) for name in "abc"))
    take_turns(runners, Plan(rounds=30, turn_ms=30))
    assert [len(each.rounds) for each in runners] == [30, 30, 30]
    assert {len(turn) for each in runners for turn in each.rounds} == {3}
    measured = log[3 * 10 :]  # ten runs each warm up
    turns = [measured[i : i + 4] for i in range(0, len(measured), 4)]  # one unseen run and three measured ones
    assert all(len(set(turn)) == 1 for turn in turns)
    rounds = ["".join(turn[0] for turn in turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 3


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_depends_on_the_seed_alone(seed):
    def order(own):
        clock = FakeClock()
        log: list[str] = []
        runners = opened(*(ScriptedRuntime(clock, lambda _: MS, name, log=log) for name in "ab"))
        take_turns(runners, Plan(rounds=20, seed=own))
        return [name for name, _ in groupby(log)]

    assert order(seed) == order(seed)
    assert order(seed) != order(seed + 1)


def test_a_disturbance_between_rounds_hits_all_alike():
    clock = FakeClock()
    # The machine is ten times slower in the second half of the time.
    slow = lambda _: MS * (1 if clock.now < 1000 * MS else 10)  # noqa: E731
    first, second = opened(ScriptedRuntime(clock, slow, "a"), ScriptedRuntime(clock, slow, "b"))
    take_turns([first, second], Plan(rounds=20, turn_ms=50))
    slow_rounds = [sum(np.median(turn) > 5 * MS for turn in each.rounds) for each in (first, second)]
    assert abs(slow_rounds[0] - slow_rounds[1]) <= 1
    assert 0 < slow_rounds[0] < 20


def test_warming_up_goes_on_until_the_times_are_stable_and_none_of_it_is_measured():
    clock = FakeClock()
    (runner,) = opened(ScriptedRuntime(clock, lambda i: MS if i >= 20 else (40 - i) * 10 * MS))
    take_turns([runner], Plan(rounds=5, turn_ms=10, warmup_s=60))
    assert {time for turn in runner.rounds for time in turn} == {MS}


def test_warming_up_ends_in_time_where_the_times_never_settle():
    clock = FakeClock()
    runtime = ScriptedRuntime(clock, lambda i: MS << min(i, 40))
    (runner,) = opened(runtime)
    runner.warm_up(Plan(warmup_s=1.0))
    assert clock.now >= 1000 * MS
    assert runtime.runs == 10  # 1 + 2 + 4 + ... ms: 1023 after ten runs


def test_a_slow_runtime_has_one_run_in_a_turn_and_a_fast_one_no_more_than_allowed():
    clock = FakeClock()
    slow, fast = opened(ScriptedRuntime(clock, lambda _: 3000 * MS), ScriptedRuntime(clock, lambda _: 10))
    take_turns([slow, fast], Plan(rounds=3, turn_ms=100, max_runs=7))
    assert {len(turn) for turn in slow.rounds} == {1}
    assert {len(turn) for turn in fast.rounds} == {7}


def test_a_runner_that_fails_is_left_out_from_then_on():
    clock = FakeClock()
    broken = ScriptedRuntime(clock, lambda _: MS, "broken", fails_at=15)
    first, second = opened(broken, ScriptedRuntime(clock, lambda _: MS))
    take_turns([first, second], Plan(rounds=8, turn_ms=2))
    assert str(first.failed) == "broken: out of memory"
    assert broken.runs == 15
    assert len(second.rounds) == 8


def test_a_model_of_another_fixed_batch_is_refused_instead_of_filled_up():
    clock = FakeClock()
    runtime = ScriptedRuntime(clock, lambda _: MS, batch=8)
    (runner,) = opened(runtime)
    take_turns([runner], Plan(rounds=2))
    assert str(runner.failed) == "scripted takes batches of 8, not of 2: measure 8"
    assert runtime.runs == 0


def test_rounds_are_told_as_they_are_done():
    clock = FakeClock()
    heard: list[int] = []
    take_turns(opened(ScriptedRuntime(clock, lambda _: MS)), Plan(rounds=3), heard.append)
    assert heard == [1, 2, 3]


@pytest.mark.parametrize(
    "fields", [{"rounds": 1}, {"max_runs": 0}, {"turn_ms": 0.0}, {"warmup_s": float("nan")}, {"seed": -1}]
)
def test_a_plan_that_measures_too_little_is_refused(fields):
    with pytest.raises(InputError, match="give 2 rounds or more"):
        Plan(**fields)
