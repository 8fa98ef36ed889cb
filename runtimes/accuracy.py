"""How often the logits are right, over a stream of labelled images, in constant memory.

An image is right at ``k`` when fewer than ``k`` classes come before its label: those with a larger logit, and of equal
logits those with a smaller index. So top-1 is what ``argmax`` gives. An image with NaN or Inf among its logits is never
right and has no prediction: such logits are a fault, whatever the order of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtimes.errors import DataError, TensorError
from runtimes.intervals import wilson

NO_CLASS: Final = -1
"""The prediction for an image whose logits are not all finite."""

_FIVE: Final = 5

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassAccuracy:
    """One class.

    Attributes:
        index: Of the class, from 0.
        n: Images with this label.
        top1: Fraction of them that is right.
    """

    index: int
    n: int
    top1: float


@dataclass(frozen=True)
class Accuracy:
    """What a runtime got right.

    Attributes:
        n: Images.
        classes: Classes that the model tells apart.
        top1: Fraction that is right, with its 95 % interval after Wilson.
        top1_ci95: Lower and upper end.
        top5: Fraction whose label is among the five first; None for a model of fewer than five classes.
        top5_ci95: Lower and upper end, or None.
        not_finite: Images with NaN or Inf among their logits; they count as wrong.
        per_class: Each class that has images, in order.
    """

    n: int
    classes: int
    top1: float
    top1_ci95: tuple[float, float]
    top5: float | None
    top5_ci95: tuple[float, float] | None
    not_finite: int
    per_class: tuple[ClassAccuracy, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            "n": self.n,
            "classes": self.classes,
            "top1": self.top1,
            "top1_ci95": list(self.top1_ci95),
            "top5": self.top5,
            "top5_ci95": None if self.top5_ci95 is None else list(self.top5_ci95),
            "not_finite": self.not_finite,
            "per_class": [{"class": each.index, "n": each.n, "top1": each.top1} for each in self.per_class],
        }


class Evaluation:
    """Counts of what a runtime got right. Merging parts of a stream, in any order, gives the counts of the whole."""

    def __init__(self) -> None:
        self._images = _no_classes()
        self._right = _no_classes()
        self._right5 = 0
        self._not_finite = 0

    def update(self, logits: npt.NDArray[Any], labels: Integers, indices: Integers) -> None:
        """Take in a batch.

        Args:
            logits: ``[N, classes]``, any float type. N may be 0.
            labels: ``[N]`` class of each image.
            indices: ``[N]`` place of each image in its list, for messages.

        Raises:
            TensorError: ``logits`` are no such array, or of another number of classes than before.
            DataError: A label is no class of the model.
        """
        check_logits(logits, len(labels))
        classes = logits.shape[1]
        check_labels(labels, indices, classes)
        self._take_classes(classes)
        labels = labels.astype(np.int64, copy=False)
        finite = np.isfinite(logits).all(axis=1)
        own = np.take_along_axis(logits, labels[:, None], axis=1)
        # [N, classes] -> [N]: how many classes come before the label
        before = (logits > own) | ((logits == own) & (np.arange(classes) < labels[:, None]))
        rank = before.sum(axis=1)
        self._images += np.bincount(labels, minlength=classes)
        self._right += np.bincount(labels[finite & (rank == 0)], minlength=classes)
        self._right5 += int((finite & (rank < _FIVE)).sum())
        self._not_finite += int((~finite).sum())

    def merge(self, other: Evaluation) -> None:
        """Take in all that ``other`` has seen; ``other`` stays as it is.

        Raises:
            TensorError: The two have seen different numbers of classes.
        """
        if not len(other._images):
            return
        self._take_classes(len(other._images))
        self._images += other._images
        self._right += other._right
        self._right5 += other._right5
        self._not_finite += other._not_finite

    def result(self) -> Accuracy:
        """The accuracy over all images so far.

        Raises:
            DataError: There were no images: nothing evaluated must not look like a result.
        """
        n, classes = int(self._images.sum()), len(self._images)
        if not n:
            raise DataError("no images were evaluated: give at least one")
        right = int(self._right.sum())
        five = classes >= _FIVE
        return Accuracy(
            n=n,
            classes=classes,
            top1=right / n,
            top1_ci95=wilson(right, n),
            top5=self._right5 / n if five else None,
            top5_ci95=wilson(self._right5, n) if five else None,
            not_finite=self._not_finite,
            per_class=tuple(
                ClassAccuracy(index, int(count), int(self._right[index]) / int(count))
                for index, count in enumerate(self._images)
                if count
            ),
        )

    def _take_classes(self, classes: int) -> None:
        if not len(self._images):
            self._images, self._right = np.zeros((2, classes), np.int64)
        elif len(self._images) != classes:
            raise TensorError(f"received logits of {classes} classes, expected {len(self._images)} as before")


def predictions(logits: npt.NDArray[Any]) -> Integers:
    """The predicted class of each row: the first of the largest logits, or :data:`NO_CLASS`.

    Args:
        logits: ``[N, classes]``, any float type.

    Returns:
        ``[N]`` int64.
    """
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), NO_CLASS).astype(np.int64)


def check_logits(logits: npt.NDArray[Any], rows: int) -> None:
    """Refuse what is not a float array ``[rows, classes]`` with at least one class.

    Raises:
        TensorError: Naming what was received.
    """
    if logits.ndim != 2 or logits.dtype.kind != "f" or len(logits) != rows or not logits.shape[1]:
        received = f"{logits.dtype} {list(logits.shape)}"
        raise TensorError(f"logits: received {received}, expected floats [{rows}, classes]: one row for each label")


def check_labels(labels: Integers, indices: Integers, classes: int) -> None:
    """Refuse labels that are no class of the model.

    Args:
        labels: ``[N]``; below 0 is no label.
        indices: ``[N]`` places of the images, for the message.
        classes: Of the model.

    Raises:
        DataError: Naming the first such image.
    """
    if labels.ndim != 1 or labels.shape != indices.shape or labels.dtype.kind not in "iu":
        received = f"{labels.dtype} {list(labels.shape)} and indices {list(indices.shape)}"
        raise DataError(f"labels: received {received}, expected integers [N] and as many indices")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if not wrong.size:
        return
    label, index = int(labels[wrong[0]]), int(indices[wrong[0]])
    if label < 0:
        raise DataError(f"image {index} has no label: give class folders, or a list with a label on each line")
    raise DataError(f"image {index} has the label {label}, and the model has {classes} classes: labels count from 0")


def _no_classes() -> Integers:
    return np.zeros(0, np.int64)
