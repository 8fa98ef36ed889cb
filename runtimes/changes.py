"""On which images two models differ, over one stream of labelled images.

Counts are exact. The changes themselves are a list whose length is bounded: those with the smallest indices are kept,
so that the list does not depend on how the stream was divided. Memory grows with the pairs of classes that were met,
at most classes × classes, never with the images.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from runtimes.accuracy import NO_CLASS, Integers
from runtimes.errors import TensorError
from runtimes.intervals import mcnemar


class Change(NamedTuple):
    """An image whose prediction changed.

    Attributes:
        image: Place of the image in its list.
        label: Its class.
        before: Class that the reference predicts; ``NO_CLASS`` where its logits are not finite.
        after: Class that the candidate predicts, likewise.
    """

    image: int
    label: int
    before: int
    after: int


@dataclass(frozen=True)
class ChangeSummary:
    """What changed between a reference and a candidate.

    Attributes:
        n: Images compared.
        changed: Images with another prediction.
        only_reference_right: Images that the reference alone gets right.
        only_this_right: Images that the candidate alone gets right.
        mcnemar_p: Two-sided p-value of McNemar's test, exact binomial; see :func:`runtimes.intervals.mcnemar`.
        changes: The first of them by index, in order; not all where there are more than are kept.
        confusion: ``(from, to, count)``, the most frequent first, then by class.
    """

    n: int
    changed: int
    only_reference_right: int
    only_this_right: int
    mcnemar_p: float
    changes: tuple[Change, ...]
    confusion: tuple[tuple[int, int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values; a class that is not there (logits not finite) is null."""
        return {
            "mcnemar_p": self.mcnemar_p,
            "only_reference_right": self.only_reference_right,
            "only_this_right": self.only_this_right,
            "changed": self.changed,
            "changes": [
                {"index": each.image, "label": each.label, "from": _class(each.before), "to": _class(each.after)}
                for each in self.changes
            ],
            "confusion": [
                {"from": _class(before), "to": _class(after), "count": count} for before, after, count in self.confusion
            ],
        }


class Changes:
    """Counts of changed predictions. Merging parts of a stream, in any order, gives what the whole gives.

    Args:
        keep: Changes in the list, at most.

    Raises:
        ValueError: ``keep`` is negative.
    """

    def __init__(self, keep: int = 1000) -> None:
        if keep < 0:
            raise ValueError(f"received {keep} changes to keep, expected 0 or more")
        self._keep = keep
        self._rows = 0
        self._only_reference = 0
        self._only_this = 0
        self._confusion: Counter[tuple[int, int]] = Counter()
        self._kept: list[Change] = []

    def update(self, reference: Integers, candidate: Integers, labels: Integers, indices: Integers) -> None:
        """Take in a batch.

        Args:
            reference: ``[N]`` predictions of the reference, from :func:`runtimes.accuracy.predictions`.
            candidate: ``[N]`` predictions of the candidate.
            labels: ``[N]`` class of each image, 0 or more.
            indices: ``[N]`` place of each image in its list; no place comes twice.

        Raises:
            TensorError: The four differ in shape.
        """
        shapes = {each.shape for each in (reference, candidate, labels, indices)}
        if len(shapes) > 1 or reference.ndim != 1:
            raise TensorError(f"predictions, labels and indices: received shapes {sorted(shapes)}, expected one, [N]")
        was_right, is_right = reference == labels, candidate == labels
        self._rows += len(labels)
        self._only_reference += int((was_right & ~is_right).sum())
        self._only_this += int((is_right & ~was_right).sum())
        changed = np.flatnonzero(reference != candidate)
        columns = [each[changed].tolist() for each in (indices, labels, reference, candidate)]
        self._add(list(map(Change, *columns)))

    def merge(self, other: Changes) -> None:
        """Take in all that ``other`` has seen; ``other`` stays as it is.

        Raises:
            ValueError: The two keep lists of different lengths.
        """
        if other._keep != self._keep:
            raise ValueError(f"received a list of at most {other._keep} changes, expected {self._keep}")
        self._rows += other._rows
        self._only_reference += other._only_reference
        self._only_this += other._only_this
        self._confusion.update(other._confusion)
        self._kept = sorted([*self._kept, *other._kept])[: self._keep]

    def result(self) -> ChangeSummary:
        """All changes so far."""
        pairs = sorted(self._confusion.items(), key=lambda item: (-item[1], item[0]))
        return ChangeSummary(
            n=self._rows,
            changed=sum(self._confusion.values()),
            only_reference_right=self._only_reference,
            only_this_right=self._only_this,
            mcnemar_p=mcnemar(self._only_reference, self._only_this),
            changes=tuple(self._kept),
            confusion=tuple((before, after, count) for (before, after), count in pairs),
        )

    def _add(self, found: list[Change]) -> None:
        if found:
            self._confusion.update((each.before, each.after) for each in found)
            self._kept = sorted([*self._kept, *found])[: self._keep]


def _class(index: int) -> int | None:
    return None if index == NO_CLASS else index
