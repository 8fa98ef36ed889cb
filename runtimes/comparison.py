"""Several runtimes over one stream of images, each held against the first; INT8 ones against their simulation as well.

An INT8 model is judged twice. Against the float reference: was the right thing asked for? Against
:class:`runtimes.int8_sim.Int8SimRuntime` of the same file: did the runtime compute what was asked? A runtime that fails
on the way is put aside with its error, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtimes.base import Array, Floats, Runtime
from runtimes.batching import run_padded
from runtimes.errors import DataError, ResnetExportError, TensorError
from runtimes.statistics import Accumulator, DifferenceStatistics


@dataclass(frozen=True)
class Pair:
    """What is held against what.

    Attributes:
        candidate: Index of the runtime that is judged.
        signal: Index of the one that it is held against.
        most: Images that are compared, at most; ``None``: all.
    """

    candidate: int
    signal: int
    most: int | None = None


@dataclass
class Ran:
    """A runtime, and how it fared.

    Attributes:
        runtime: Open.
        most: Images that it is run on, at most; ``None``: all.
        images: How many it was run on.
        seconds: Wall time of its runs alone.
        not_finite: Images on which it gave NaN or Inf.
        error: Why it was put aside; ``None`` where it was not.
    """

    runtime: Runtime
    most: int | None = None
    images: int = 0
    seconds: float = field(default=0.0)
    not_finite: int = 0
    error: ResnetExportError | None = None


def compare_over(
    runs: Sequence[Ran],
    pairs: Sequence[Pair],
    batches: Iterable[Array],
    *,
    on_progress: Callable[[int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[DifferenceStatistics | None]:
    """Run every runtime over the images, each batch once, and hold the pairs against each other.

    Args:
        runs: Open runtimes; what becomes of each is written into it.
        pairs: What is held against what.
        batches: ``[N, C, H, W]`` each.
        on_progress: Hears of the number of images done after each batch.
        clock: Seconds of a steady clock.

    Returns:
        The statistics of each pair; ``None`` where one of both failed.

    Raises:
        DataError: There are no images.
        TensorError: Two of a pair differ in the number of classes.
    """
    found = [Accumulator() for _ in pairs]
    done = 0
    for images in batches:
        wanted = _wanted(runs, pairs, done)
        outputs = [_logits(run, images, done, clock) if n in wanted else None for n, run in enumerate(runs)]
        for pair, accumulator in zip(pairs, found, strict=True):
            reference, candidate = outputs[pair.signal], outputs[pair.candidate]
            if reference is not None and candidate is not None:
                count = min(len(reference), len(candidate), len(images) if pair.most is None else pair.most - done)
                if count > 0:
                    _check_classes(runs[pair.signal], reference, runs[pair.candidate], candidate)
                    accumulator.update(reference[:count], candidate[:count])
        done += len(images)
        if on_progress:
            on_progress(done)
        if not _wanted(runs, pairs, done):
            break
    if not done:
        raise DataError("there are no images to compare on: give at least one")
    failed = {index for index, run in enumerate(runs) if run.error is not None}
    return [
        None if {pair.candidate, pair.signal} & failed else accumulator.result()
        for pair, accumulator in zip(pairs, found, strict=True)
    ]


def _wanted(runs: Sequence[Ran], pairs: Sequence[Pair], done: int) -> set[int]:
    """Runtimes that something is still to be learnt from: once a reference has failed, its candidates rest."""
    alive = [
        pair
        for pair in pairs
        if not runs[pair.signal].error and not runs[pair.candidate].error and (pair.most is None or done < pair.most)
    ]
    return {index for pair in alive for index in (pair.candidate, pair.signal)}


def _check_classes(one: Ran, first: Floats, other: Ran, second: Floats) -> None:
    if first.shape[1] != second.shape[1]:
        raise TensorError(
            f"{one.runtime.name} tells {first.shape[1]} classes apart and {other.runtime.name} {second.shape[1]}: "
            "give models of the same classes"
        )


def _logits(run: Ran, images: Array, done: int, clock: Callable[[], float]) -> Floats | None:
    """What a runtime says of a batch, or of its beginning; ``None`` where it is done or has failed."""
    wanted = images if run.most is None else images[: max(run.most - done, 0)]
    if run.error is not None or not len(wanted):
        return None
    begin = clock()
    try:
        logits = run_padded(run.runtime, wanted)
    except ResnetExportError as error:
        run.error = error
        return None
    finally:
        run.images += len(wanted)
        run.seconds += clock() - begin
    run.not_finite += int((~np.isfinite(logits).all(axis=1)).sum())
    return logits
