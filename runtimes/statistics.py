r"""How far two arrays of outputs lie apart, in numbers that mean something. No verdict is given here.

With the reference :math:`r` as the signal and the candidate :math:`c`, over all elements::

    SQNR   = 10 · log10( Σ r² / Σ (r − c)² )        decibels
    cosine = Σ r·c / ( √Σr² · √Σc² )
    ULP    = max|r − c| / spacing(max|r|)           float32 steps of the largest reference magnitude

What all classes of a row share, and what a class has in every row, decides nothing: a large constant in the logits
would count as signal and hide any fault. So a second ratio keeps of the signal only what decides, ``d``: ``r`` less the
mean of its row and, where the rows are not all the same, less the mean of its class::

    decision SQNR = 10 · log10( Σ d² / Σ (r − c)² )

Everything is summed in float64. An :class:`Accumulator` holds a dozen numbers and one row however many rows it has
seen, and two of them merge: a stream, or many processes, need no other code than one array does.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtimes.errors import TensorError

SQNR_CAP_DB: Final = 300.0
"""Bound of every reported SQNR, in decibels: JSON has no infinity, and float64 resolves no more."""

_SAME_IMAGES: Final = 1e-12  # of the signal: a float32 result that moves by a millionth, or nothing

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)

_Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DifferenceStatistics:
    """The difference between a candidate and its reference; every number can be written as JSON.

    Attributes:
        n: Rows compared, at least 1.
        finite: Whether every value of both sides is finite. A magnitude that float32 cannot hold counts
            as infinite. Where this is False, nothing can be said about the difference: the four
            magnitudes below are None, ``sqnr_db`` is −300, ``cosine`` is 0.
        max_abs: Largest absolute difference, in units of the output.
        mean_abs: Mean absolute difference over all elements, in units of the output.
        max_rel: ``max_abs`` as a fraction of the reference's largest magnitude; also None for a reference
            that is all zero and a candidate that is not.
        max_ulp: ``max_abs`` in float32 steps (ULP) at the reference's largest magnitude.
        sqnr_db: Signal to noise ratio in decibels, the reference being the signal, within ±300: 300 for
            identical sides, −300 for a reference that is all zero and a candidate that is not.
        decision_sqnr_db: The same with only what decides as the signal: see the module. A single class has no
            row mean to take off.
        cosine: Cosine of the angle between both sides as vectors, in [−1, 1]; 1 where both are all zero,
            0 where one is.
        top1_agreement: Fraction of rows, in [0, 1], whose largest element has the same index on both sides
            (the first one among equals). A row that is not finite does not agree.
        worst_row: Index of the first row that is not finite, else of the first row that holds ``max_abs``.
    """

    n: int
    finite: bool
    max_abs: float | None
    mean_abs: float | None
    max_rel: float | None
    max_ulp: float | None
    sqnr_db: float
    decision_sqnr_db: float
    cosine: float
    top1_agreement: float
    worst_row: int

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


class Accumulator:
    """Statistics of a stream of rows, in constant memory.

    Rows are numbered in the order in which they arrive; merged ones follow those already here.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._classes: int | None = None
        self._agreeing = 0
        self._signal = self._energy = self._dot = self._noise = self._absolute = 0.0
        self._largest_reference = self._largest_error = 0.0
        self._worst_row = 0
        self._first_bad_row: int | None = None
        self._finite_rows = 0
        self._centred = 0.0
        self._class_sums: _Doubles | None = None

    def update(self, reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> None:
        """Take in rows of both sides.

        Args:
            reference: ``[N, classes]``, any float type. N may be 0.
            candidate: The same shape, any float type.

        Raises:
            TensorError: A side is not a two-dimensional float array, or the shapes differ from each other
                or in the number of classes from the rows before. Nothing is ever broadcast.
        """
        _check_sides(reference, candidate)
        self._check_classes(reference.shape[1])
        finite = _finite_rows(reference) & _finite_rows(candidate)
        bad = np.flatnonzero(~finite)
        if bad.size and self._first_bad_row is None:
            self._first_bad_row = self._rows + int(bad[0])
        kept = np.flatnonzero(finite)
        if kept.size:
            self._add(reference[kept].astype(np.float64), candidate[kept].astype(np.float64))
        self._rows += len(reference)

    def merge(self, other: Accumulator) -> None:
        """Take in all that ``other`` has seen, as rows that follow the ones here; ``other`` stays as it is.

        Raises:
            TensorError: The two have seen different numbers of classes.
        """
        if other._classes is not None:
            self._check_classes(other._classes)
        if other._first_bad_row is not None and self._first_bad_row is None:
            self._first_bad_row = self._rows + other._first_bad_row
        if other._largest_error > self._largest_error:
            self._largest_error = other._largest_error
            self._worst_row = self._rows + other._worst_row
        self._largest_reference = max(self._largest_reference, other._largest_reference)
        self._finite_rows += other._finite_rows
        self._centred += other._centred
        self._add_class_sums(other._class_sums)
        self._signal += other._signal
        self._energy += other._energy
        self._dot += other._dot
        self._noise += other._noise
        self._absolute += other._absolute
        self._agreeing += other._agreeing
        self._rows += other._rows

    def result(self) -> DifferenceStatistics:
        """The statistics of all rows so far.

        Raises:
            TensorError: There were no rows: nothing compared must not look like no difference.
        """
        if not self._rows or not self._classes:
            raise TensorError("no rows were compared, expected at least one")
        agreement = self._agreeing / self._rows
        if self._first_bad_row is not None:
            return DifferenceStatistics(
                n=self._rows,
                finite=False,
                max_abs=None,
                mean_abs=None,
                max_rel=None,
                max_ulp=None,
                sqnr_db=-SQNR_CAP_DB,
                decision_sqnr_db=-SQNR_CAP_DB,
                cosine=0.0,
                top1_agreement=agreement,
                worst_row=self._first_bad_row,
            )
        return DifferenceStatistics(
            n=self._rows,
            finite=True,
            max_abs=self._largest_error,
            mean_abs=self._absolute / (self._rows * self._classes),
            max_rel=_ratio(self._largest_error, self._largest_reference),
            max_ulp=self._largest_error / _float32_step(self._largest_reference),
            sqnr_db=self._sqnr_db(self._signal),
            decision_sqnr_db=self._sqnr_db(self._deciding()),
            cosine=self._cosine(),
            top1_agreement=agreement,
            worst_row=self._worst_row,
        )

    def _add(self, reference: _Doubles, candidate: _Doubles) -> None:
        error = np.abs(reference - candidate)
        per_row = error.max(axis=1)
        worst = int(per_row.argmax())
        if per_row[worst] > self._largest_error:
            self._largest_error = float(per_row[worst])
            self._worst_row = self._rows + worst
        self._largest_reference = max(self._largest_reference, float(np.abs(reference).max()))
        centred = reference - reference.mean(axis=1, keepdims=True) if reference.shape[1] > 1 else reference
        self._finite_rows += len(reference)
        self._centred += float(np.square(centred).sum())
        self._add_class_sums(centred.sum(axis=0))
        self._signal += float(np.square(reference).sum())
        self._energy += float(np.square(candidate).sum())
        self._dot += float((reference * candidate).sum())
        self._noise += float(np.square(error).sum())
        self._absolute += float(error.sum())
        self._agreeing += int((reference.argmax(axis=1) == candidate.argmax(axis=1)).sum())

    def _check_classes(self, classes: int) -> None:
        if self._classes not in (None, classes):
            raise TensorError(f"received rows of {classes} classes, expected {self._classes} as before")
        self._classes = classes

    def _add_class_sums(self, sums: _Doubles | None) -> None:
        if sums is not None:
            self._class_sums = sums if self._class_sums is None else self._class_sums + sums

    def _deciding(self) -> float:
        """Σ d²: Σ c² − n·|mean over rows|² of the row-centred c, or Σ c² where the rows do not vary."""
        if self._finite_rows < 2 or self._class_sums is None:
            return self._centred
        left = self._centred - float(np.square(self._class_sums).sum()) / self._finite_rows
        # Images that are all the same say no more than one of them; what is left is the rounding of kernels and sums.
        return left if left > _SAME_IMAGES * self._centred else self._centred

    def _sqnr_db(self, signal: float) -> float:
        if self._largest_error == 0.0:
            return SQNR_CAP_DB
        if signal == 0.0:
            return -SQNR_CAP_DB
        if self._noise == 0.0:  # differences so small that their squares vanish in float64
            return SQNR_CAP_DB
        # Two logarithms: the quotient itself could overflow.
        decibels = 10.0 * (math.log10(signal) - math.log10(self._noise))
        return min(max(decibels, -SQNR_CAP_DB), SQNR_CAP_DB)

    def _cosine(self) -> float:
        if self._signal == 0.0 or self._energy == 0.0:
            return 1.0 if self._signal == self._energy else 0.0
        return min(max(self._dot / (math.sqrt(self._signal) * math.sqrt(self._energy)), -1.0), 1.0)


def compare(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> DifferenceStatistics:
    """Compare two arrays of outputs.

    Args:
        reference: ``[N, classes]``, any float type, N ≥ 1: the signal.
        candidate: The same shape, any float type.

    Raises:
        TensorError: A side is not a two-dimensional float array with at least one row, or the shapes differ.
    """
    accumulator = Accumulator()
    accumulator.update(reference, candidate)
    return accumulator.result()


def _check_sides(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> None:
    for side, array in (("reference", reference), ("candidate", candidate)):
        if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind != "f":
            received = f"{array.dtype} {list(array.shape)}"
            raise TensorError(f"{side}: received {received}, expected floats [N, classes]")
    if reference.shape != candidate.shape:
        raise TensorError(
            f"candidate: received {list(candidate.shape)}, expected {list(reference.shape)} as the reference has"
        )


def _finite_rows(array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    # NaN compares False, so one comparison covers NaN, Inf and what float32 cannot hold.
    return np.asarray((np.abs(array.astype(np.float64)) <= _FLOAT32_MAX).all(axis=1), dtype=np.bool_)


def _ratio(part: float, whole: float) -> float | None:
    if part == 0.0:
        return 0.0
    return part / whole if whole > 0.0 and math.isfinite(part / whole) else None


def _float32_step(magnitude: float) -> float:
    """``numpy.spacing(float32(magnitude))``, which is also right at the largest float32."""
    _, exponent = math.frexp(float(np.float32(magnitude)))
    return math.ldexp(1.0, max(exponent - 24, -149))
