"""Runtimes that take turns, so that what disturbs a machine for a second disturbs all of them alike.

They are warmed up one after the other, and then run in rounds, in an order that is drawn anew for each round::

    warm up A, warm up B
    round 1:  B (1 run unseen) b b b b    A (1 run unseen) a a a
    round 2:  A (1 run unseen) a a a      B (1 run unseen) b b b b      ...

The unseen run after each change refills the caches, and lets the threads of the runtime before fall asleep.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from runtimes.base import Array, Runtime
from runtimes.batching import as_input
from runtimes.errors import InputError, ResnetExportError

_WINDOW: Final = 5  # warm when the medians of two windows of runs, one after the other, ...
_STABLE: Final = 0.05  # ... differ by no more than this fraction

Clock = Callable[[], int]
"""Nanoseconds of a steady clock."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: Turns that every runtime gets; one alone would not show how much they differ.
        turn_ms: About how long a turn is, in milliseconds: at least one run, at most ``max_runs``.
        max_runs: Runs in a turn, at most.
        warmup_s: Seconds after which a runtime counts as warm even where its times still move.
        seed: Of the order of turns, and of the intervals.
        isolated: Whether cold start and memory are measured, in a process for each runtime and batch size.

    Raises:
        InputError: ``rounds`` is below 2, ``max_runs`` below 1, ``seed`` below 0, or a time is not above 0.
    """

    rounds: int = 20
    turn_ms: float = 100.0
    max_runs: int = 50
    warmup_s: float = 5.0
    seed: int = 0
    isolated: bool = True

    def __post_init__(self) -> None:
        times_fit = all(0 < each < math.inf for each in (self.turn_ms, self.warmup_s))  # NaN is not between
        if self.rounds < 2 or self.max_runs < 1 or self.seed < 0 or not times_fit:
            raise InputError(
                f"received {self.rounds} rounds of {self.turn_ms} ms or {self.max_runs} runs, {self.warmup_s} s of "
                f"warm-up and seed {self.seed}: give 2 rounds or more, 1 run or more, times above 0, a seed from 0"
            )


class Runner:
    """An open runtime with the images of one batch size, and its times.

    Args:
        runtime: Open.
        images: ``[N, C, H, W]``: what every run gets.
        clock: Nanoseconds of a steady clock.

    Attributes:
        rounds: Nanoseconds of each run, one list for each turn.
        failed: The error that ended its turns, or None.
    """

    def __init__(self, runtime: Runtime, images: Array, clock: Clock = time.perf_counter_ns) -> None:
        self.rounds: list[list[int]] = []
        self.failed: ResnetExportError | None = None
        self._runtime = runtime
        self._images = np.ascontiguousarray(as_input(runtime, images))
        self._clock = clock
        self._runs = 1

    def warm_up(self, plan: Plan) -> None:
        """Run until the times are stable, and settle how many runs fill a turn."""
        with self._put_aside():
            self._refuse_other_batch()
            times: list[int] = []
            limit = self._clock() + round(plan.warmup_s * 1e9)
            while not times or not (_stable(times) or self._clock() >= limit):
                times += timed_runs(self._runtime, self._images, 1, self._clock)
            runs = round(plan.turn_ms * 1e6 / median(times[-_WINDOW:]))
            self._runs = max(1, min(plan.max_runs, runs))

    def turn(self) -> None:
        """One turn, unless it has failed before."""
        if self.failed is not None:
            return
        with self._put_aside():
            self._runtime.run(self._images)
            self.rounds.append(timed_runs(self._runtime, self._images, self._runs, self._clock))

    def _refuse_other_batch(self) -> None:
        # Filling a batch up would time images that nobody asked for, and one cut into pieces is not one batch.
        low, high = self._runtime.batch_range
        size = len(self._images)
        if size < low or (high is not None and size > high):
            told = str(low) if low == high else f"{low} to {high}" if high is not None else f"{low} or more"
            raise InputError(f"{self._runtime.name} takes batches of {told}, not of {size}: measure {told}")

    @contextmanager
    def _put_aside(self) -> Iterator[None]:
        try:
            yield
        except ResnetExportError as error:
            self.failed = error


def take_turns(runners: Sequence[Runner], plan: Plan, on_round: Callable[[int], None] | None = None) -> None:
    """Warm all runners up, then run them in rounds.

    Args:
        runners: Those that fail are left out from then on.
        plan: How long.
        on_round: Hears of the number of rounds done after each.
    """
    for runner in runners:
        runner.warm_up(plan)
    draw = np.random.default_rng(plan.seed)
    for done in range(1, plan.rounds + 1):
        for place in draw.permutation(len(runners)):
            runners[place].turn()
        if on_round:
            on_round(done)


def timed_runs(runtime: Runtime, images: Array, runs: int, clock: Clock = time.perf_counter_ns) -> list[int]:
    """Run one batch several times.

    Args:
        runtime: Open.
        images: ``[N, C, H, W]`` in the element type of the model.
        runs: How often.
        clock: Nanoseconds of a steady clock.

    Returns:
        Nanoseconds of each run, at least 1: a clock can be coarser than a run.
    """
    times = []
    for _ in range(runs):
        begin = clock()
        runtime.run(images)
        times.append(max(clock() - begin, 1))
    return times


def _stable(times: Sequence[int]) -> bool:
    if len(times) < 2 * _WINDOW:
        return False
    before, now = median(times[-2 * _WINDOW : -_WINDOW]), median(times[-_WINDOW:])
    return abs(now - before) <= _STABLE * before
