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


class _Candidate:
    """A runtime with its counts; ``failed`` holds the error that put it aside."""

    def __init__(self, runtime: Runtime, keep: int) -> None:
        self.runtime = runtime
        self.evaluation = Evaluation()
        self.changes = Changes(keep)
        self.nanoseconds = 0
        self.failed: ResnetExportError | None = None

    def logits(self, images: Array, clock: Callable[[], int]) -> Floats | None:
        if self.failed is not None:
            return None
        begin = clock()
        try:
            return run_padded(self.runtime, images)
        except ResnetExportError as error:
            self.failed = error
            return None
        finally:
            self.nanoseconds += clock() - begin


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
    done = 0
    for images, labels, indices in batches:
        _take(candidates, images, labels, indices, classes, clock)
        done += len(images)
        if on_progress:
            on_progress(done)
        if all(each.failed for each in candidates):
            break
    if not done:
        raise DataError("there are no images to evaluate: give at least one")
    return [_evaluated(each, candidates[0]) for each in candidates]


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
        each.evaluation.update(logits, labels, indices)
        if reference is not None and each is not candidates[0]:
            each.changes.update(reference, predictions(logits), labels, indices)


def _check_classes(found: Sequence[tuple[_Candidate, Floats]], classes: int | None) -> None:
    first, logits = found[0]
    wanted, owner = (logits.shape[1], first.runtime.name) if classes is None else (classes, "the labels")
    for each, own in found:
        if own.shape[1] != wanted:
            raise TensorError(
                f"{each.runtime.name} tells {own.shape[1]} classes apart, {owner} {wanted}: give models and images "
                f"of the same classes"
            )


def _evaluated(candidate: _Candidate, reference: _Candidate) -> Evaluated:
    failed = candidate.failed is not None
    compared = candidate is not reference and not failed and reference.failed is None
    return Evaluated(
        runtime=candidate.runtime.name,
        used=candidate.runtime.used,
        seconds=candidate.nanoseconds * 1e-9,
        accuracy=None if failed else candidate.evaluation.result(),
        changes=candidate.changes.result() if compared else None,
        error=str(candidate.failed) if failed else None,
    )
