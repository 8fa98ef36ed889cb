"""How long runtimes take, beside each other.

All of them are open at once and take turns (:mod:`runtimes.turns`). Percentiles are of all measured runs. The median of
each round makes a pair with the first candidate's of the same round: what a round did to both cancels in their ratio
(:func:`runtimes.intervals.ratio_of_medians`).

Time is from a host array to a host array: on a GPU both copies are in it, and so are the checks and the copy of
:meth:`runtimes.base.Runtime.run`. The images are in the element type of the model before the clock starts; it is
``time.perf_counter_ns``, which is steady.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtimes.base import Array, Runtime
from runtimes.errors import InputError
from runtimes.intervals import RatioInterval, ratio_of_medians
from runtimes.isolated import ColdStart, cold_start
from runtimes.machine import Conditions, conditions
from runtimes.turns import Clock, Plan, Runner, take_turns

NOISY_SPREAD: Final = 0.1
"""A result is noisy when its rounds spread wider than this: (p90 − p10) / p50 of their medians."""

NOISY_TAIL: Final = 1.25
"""So is one whose p90 is above this many medians: a tenth of its runs took a quarter longer."""

NOISY_ROUNDS: Final = 5
"""So is one of fewer rounds: they do not show how much they differ."""

FEWEST_RUNS: Final[Mapping[int, int]] = MappingProxyType({90: 10, 99: 100})
"""Runs that a percentile takes: of fewer, it is made up between the two largest."""

_NOT_MEASURED: Final = ColdStart(None, None)


@dataclass(frozen=True)
class Candidate:
    """A runtime to measure.

    Attributes:
        label: Unlike every other candidate's.
        open: Makes the runtime. Cold start and memory need it picklable, and the runtime not open yet.
        feed: Makes its input of the images, before the clock starts; ``None``: they are its input.
    """

    label: str
    open: Callable[[], Runtime]
    feed: Callable[[Array], Array] | None = None


@dataclass(frozen=True)
class Latency:
    """The times of one candidate at one batch size.

    Attributes:
        label: The candidate.
        batch: Images in a run.
        p50_ms, mean_ms, min_ms: Of all measured runs, in milliseconds.
        p90_ms, p99_ms: Likewise; None for fewer runs than :data:`FEWEST_RUNS`.
        images_per_s: ``batch`` over the median.
        rounds: Turns that it had.
        runs: Measured runs in all.
        spread: (p90 − p10) / p50 of the rounds' medians.
        noisy: Whether ``spread`` is above :data:`NOISY_SPREAD`, the tail longer than :data:`NOISY_TAIL`, or ``rounds``
            below :data:`NOISY_ROUNDS`: measure again on a quieter machine, or longer.
        used: What the runtime really ran on.
        cold: Cold start and memory.
        ratio_to_first: Its time over the first candidate's; None for the first itself, and where that one failed.
    """

    label: str
    batch: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    mean_ms: float
    min_ms: float
    images_per_s: float
    rounds: int
    runs: int
    spread: float
    noisy: bool
    used: dict[str, Any]
    cold: ColdStart
    ratio_to_first: RatioInterval | None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values, those of ``cold`` beside the others; ``threads`` is what ``used`` says."""
        threads = self.used.get("threads")
        return {
            **{name: value for name, value in vars(self).items() if name != "cold"},
            **vars(self.cold),
            "threads": threads if isinstance(threads, int) else None,
            "ratio_to_first": self.ratio_to_first.to_json() if self.ratio_to_first else None,
        }


@dataclass(frozen=True)
class Failure:
    """A candidate that could not be measured at one batch size.

    Attributes:
        label: The candidate.
        batch: Images in a run.
        error: Why, in one line.
    """

    label: str
    batch: int
    error: str


@dataclass(frozen=True)
class Latencies:
    """All candidates at all batch sizes.

    Attributes:
        results: By batch size, then in the order of the candidates.
        failures: What is missing there.
        before: State of the machine before the first run.
        after: State of the machine after the last one.
    """

    results: tuple[Latency, ...]
    failures: tuple[Failure, ...]
    before: Conditions
    after: Conditions


def measure(
    candidates: Sequence[Candidate],
    batches: Sequence[int],
    images: Array,
    plan: Plan | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Latencies:
    """Measure every candidate at every batch size.

    Args:
        candidates: At least one; the others' times are given as ratios to the first's.
        batches: Images in a run; at least one size, each at least 1.
        images: ``[N, C, H, W]`` float32, or what the candidates' feeds take, N ≥ 1; a run gets the first of them, over
            again where there are fewer.
        plan: How long; ``None``: the defaults.
        on_progress: Hears of the rounds done and the rounds in all.
        clock: Nanoseconds of a steady clock.

    Returns:
        Results. A candidate that fails while it is measured is put aside for that batch size, and the others go on.

    Raises:
        InputError: There is nothing to measure, or something comes twice.
        ResnetExportError: A candidate cannot be opened.
    """
    plan = plan or Plan()
    _check(candidates, batches, images)
    # Before anything is open here, whose threads and memory these processes would have to share.
    cold = {
        (each.label, batch): _cold(each, batch, images) if plan.isolated else _NOT_MEASURED
        for batch in batches
        for each in candidates
    }
    results: list[Latency] = []
    failures: list[Failure] = []
    with ExitStack() as stack:
        opened = [(each.label, stack.enter_context(_open(each))) for each in candidates]
        before = conditions()
        for position, batch in enumerate(batches):
            fed = images[np.arange(batch) % len(images)]
            runners = {
                each.label: Runner(runtime, fed if each.feed is None else each.feed(fed), clock)
                for each, (_, runtime) in zip(candidates, opened, strict=True)
            }
            take_turns(list(runners.values()), plan, _progress(on_progress, position, len(batches), plan.rounds))
            found, missing = _results(runners, dict(opened), batch, cold, plan)
            results += found
            failures += missing
        after = conditions()
    return Latencies(tuple(results), tuple(failures), before, after)


def _cold(candidate: Candidate, batch: int, images: Array) -> ColdStart:
    one = images[:1] if candidate.feed is None else candidate.feed(images[:1])
    return cold_start(candidate.open, (batch, *one.shape[1:]), one.dtype.name)


def _check(candidates: Sequence[Candidate], batches: Sequence[int], images: Array) -> None:
    if not candidates or not batches:
        raise InputError(f"received {len(candidates)} runtimes and {len(batches)} batch sizes, expected one or more")
    labels = [each.label for each in candidates]
    if len(set(labels)) < len(labels):
        raise InputError(f"received the labels {', '.join(labels)}: give each runtime one of its own")
    if min(batches) < 1 or len(set(batches)) < len(batches):
        raise InputError(f"received the batch sizes {', '.join(map(str, batches))}, expected each once, from 1")
    if images.ndim != 4 or not images.size:
        raise InputError(f"received images {list(images.shape)}, expected [N, C, H, W], not empty")


def _open(candidate: Candidate) -> AbstractContextManager[Runtime]:
    """Of a runtime that somebody else has opened, nothing is closed here."""
    runtime = candidate.open()
    return nullcontext(runtime) if runtime.is_open else runtime


def _progress(
    heard: Callable[[int, int], None] | None, position: int, sizes: int, rounds: int
) -> Callable[[int], None] | None:
    if heard is None:
        return None
    return lambda done: heard(position * rounds + done, sizes * rounds)


def _results(
    runners: Mapping[str, Runner],
    runtimes: Mapping[str, Runtime],
    batch: int,
    cold: Mapping[tuple[str, int], ColdStart],
    plan: Plan,
) -> tuple[list[Latency], list[Failure]]:
    """Of one batch size."""
    first = next(iter(runners.values()))
    found, missing = [], []
    for label, runner in runners.items():
        if runner.failed is not None:
            missing.append(Failure(label, batch, str(runner.failed)))
            continue
        compared = runner is not first and first.failed is None
        ratio = ratio_of_medians(_medians(runner), _medians(first), plan.seed) if compared else None
        found.append(_latency(label, batch, runner, runtimes[label].used, cold[label, batch], ratio))
    return found, missing


def _latency(
    label: str, batch: int, runner: Runner, used: dict[str, Any], cold: ColdStart, ratio: RatioInterval | None
) -> Latency:
    milliseconds = 1e-6 * np.concatenate([np.asarray(each, np.float64) for each in runner.rounds])
    p50 = float(np.median(milliseconds))
    p90, p99 = (_tail(milliseconds, percent) for percent in FEWEST_RUNS)
    low, middle, high = np.percentile(_medians(runner), (10, 50, 90))
    spread = float((high - low) / middle)
    return Latency(
        label=label,
        batch=batch,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(milliseconds.mean()),
        min_ms=float(milliseconds.min()),
        images_per_s=batch * 1e3 / p50,
        rounds=len(runner.rounds),
        runs=len(milliseconds),
        spread=spread,
        noisy=spread > NOISY_SPREAD or (p90 or 0.0) > NOISY_TAIL * p50 or len(runner.rounds) < NOISY_ROUNDS,
        used=used,
        cold=cold,
        ratio_to_first=ratio,
    )


def _tail(milliseconds: npt.NDArray[np.float64], percent: int) -> float | None:
    return float(np.percentile(milliseconds, percent)) if len(milliseconds) >= FEWEST_RUNS[percent] else None


def _medians(runner: Runner) -> list[float]:
    return [float(np.median(each)) for each in runner.rounds]
