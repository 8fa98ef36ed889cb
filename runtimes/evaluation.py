"""Several runtimes over one stream of labelled images, which is read once for all of them.

The first runtime is the reference: the predictions of the others are compared with its own, image by image. A runtime
that fails on the way is put aside with its error, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from runtimes.accuracy import Accuracy, Evaluation, Integers, check_labels, predictions
from runtimes.base import Array, Floats, Runtime
from runtimes.batching import run_padded
from runtimes.changes import Changes, ChangeSummary
from runtimes.errors import DataError, InputError, ResnetExportError, TensorError

Batch = tuple[Array, Integers, Integers]
"""Images ``[N, C, H, W]``, labels ``[N]``, and places in the list ``[N]``."""


@dataclass(frozen=True)
class Evaluated:
    """What came of one runtime.

    Attributes:
        runtime: Its name.
        used: What it really ran on.
        seconds: Wall time of its runs alone.
        accuracy: Over all images; None where it failed.
        changes: Against the first runtime; None for the first, and where either of both failed.
        error: Why it failed, in one line, or None.
    """

    runtime: str
    used: dict[str, Any]
    seconds: float
    accuracy: Accuracy | None
    changes: ChangeSummary | None
    error: str | None


class Tally:
    """What one runtime got right so far. Tallies of parts of a stream, merged in order, are the tally of the whole.

    Args:
        runtime: Its name.
        keep: Changed images that are listed, at most.

    Attributes:
        runtime: Its name.
        used: What it really ran on.
        evaluation: Counts of what is right.
        changes: Against the first runtime.
        nanoseconds: Wall time of its runs alone.
        failed: The error that put it aside, or None.
    """

    def __init__(self, runtime: str, keep: int) -> None:
        self.runtime = runtime
        self.used: dict[str, Any] = {}
        self.evaluation = Evaluation()
        self.changes = Changes(keep)
        self.nanoseconds = 0
        self.failed: ResnetExportError | None = None

    def merge(self, other: Tally) -> None:
        """Take in what the same runtime made of the images after these.

        What comes after a failure does not count: one process would have put the runtime aside.

        Raises:
            TensorError: The two have seen different numbers of classes.
        """
        if self.failed is not None:
            return
        self.used = self.used or other.used
        self.evaluation.merge(other.evaluation)
        self.changes.merge(other.changes)
        self.nanoseconds += other.nanoseconds
        self.failed = other.failed


class _Candidate:
    """A runtime with its tally."""

    def __init__(self, runtime: Runtime, keep: int) -> None:
        self.runtime = runtime
        self.tally = Tally(runtime.name, keep)

    def logits(self, images: Array, clock: Callable[[], int]) -> Floats | None:
        if self.tally.failed is not None:
            return None
        begin = clock()
        try:
            return run_padded(self.runtime, images)
        except ResnetExportError as error:
            self.tally.failed = error
            return None
        finally:
            self.tally.nanoseconds += clock() - begin


def evaluate(
    runtimes: Sequence[Runtime],
    batches: Iterable[Batch],
    *,
    classes: int | None = None,
    keep: int = 1000,
    on_progress: Callable[[int], None] | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[Evaluated]:
    """Run all runtimes over all images.

    Args:
        runtimes: Open, at least one; the first is the reference.
        batches: Read once, until its end or until every runtime has failed.
        classes: How many classes the labels tell apart, where that is known.
        keep: Changed images that are listed by index, at most, for each runtime.
        on_progress: Hears of the number of images done after each batch.
        clock: Nanoseconds of a steady clock.

    Returns:
        One for each runtime, in order.

    Raises:
        DataError: There are no images, or a label is no class of the models.
        TensorError: The runtimes differ from each other, or from ``classes``, in the number of classes.
        InputError: There is no runtime.
    """
    if not runtimes:
        raise InputError("there is no runtime to evaluate: give at least one")
    candidates = [_Candidate(runtime, keep) for runtime in runtimes]
    tallies = [each.tally for each in candidates]
    done = 0
    for images, labels, indices in batches:
        _take(candidates, images, labels, indices, classes, clock)
        done += len(images)
        if on_progress:
            on_progress(done)
        if all(each.failed for each in tallies):
            break
    if not done:
        raise DataError("there are no images to evaluate: give at least one")
    for each in candidates:
        each.tally.used = each.runtime.used  # some know it only when they have run
    return evaluated(tallies)


def tally(runtimes: Sequence[Runtime], batch: Batch, *, classes: int | None = None, keep: int = 1000) -> list[Tally]:
    """Run all runtimes over one batch.

    Args:
        runtimes: Open, at least one; the first is the reference.
        batch: Not empty.
        classes: How many classes the labels tell apart, where that is known.
        keep: Changed images that are listed by index, at most, for each runtime.

    Raises:
        DataError: A label is no class of the models.
        TensorError: The runtimes differ from each other, or from ``classes``, in the number of classes.
    """
    candidates = [_Candidate(runtime, keep) for runtime in runtimes]
    _take(candidates, *batch, classes, time.perf_counter_ns)
    for each in candidates:
        each.tally.used = each.runtime.used
    return [each.tally for each in candidates]


def evaluated(tallies: Sequence[Tally]) -> list[Evaluated]:
    """What came of all runtimes, from their tallies over the same images.

    Args:
        tallies: The first is the reference's.

    Raises:
        DataError: There were no images.
    """
    return [_evaluated(each, tallies[0]) for each in tallies]


def _take(
    candidates: Sequence[_Candidate],
    images: Array,
    labels: Integers,
    indices: Integers,
    classes: int | None,
    clock: Callable[[], int],
) -> None:
    """One batch through every runtime that has not failed."""
    found = [(each, logits) for each in candidates if (logits := each.logits(images, clock)) is not None]
    if not found:
        return
    _check_classes(found, classes)
    check_labels(labels, indices, found[0][1].shape[1])
    reference = predictions(found[0][1]) if found[0][0] is candidates[0] else None
    for each, logits in found:
        each.tally.evaluation.update(logits, labels, indices)
        if reference is not None and each is not candidates[0]:
            each.tally.changes.update(reference, predictions(logits), labels, indices)


def _check_classes(found: Sequence[tuple[_Candidate, Floats]], classes: int | None) -> None:
    first, logits = found[0]
    wanted, owner = (logits.shape[1], first.runtime.name) if classes is None else (classes, "the labels")
    for each, own in found:
        if own.shape[1] != wanted:
            raise TensorError(
                f"{each.runtime.name} tells {own.shape[1]} classes apart, {owner} {wanted}: give models and images "
                f"of the same classes"
            )


def _evaluated(tally: Tally, reference: Tally) -> Evaluated:
    failed = tally.failed is not None
    compared = tally is not reference and not failed and reference.failed is None
    return Evaluated(
        runtime=tally.runtime,
        used=tally.used,
        seconds=tally.nanoseconds * 1e-9,
        accuracy=None if failed else tally.evaluation.result(),
        changes=tally.changes.result() if compared else None,
        error=str(tally.failed) if failed else None,
    )
