"""A histogram in constant memory whose counts do not depend on the order in which values arrive.

Bins have the width ``w = 2**k`` and one edge at zero, ``BINS`` of them on either side::

    index i counts    (i - BINS) * w <= x < (i - BINS + 1) * w

When a value falls outside, ``k`` grows and neighbouring bins are added up. Because ``floor(floor(x / w) / 2)`` is
``floor(x / (2 * w))``, and a division by a power of two is exact, the result is, count by count, what one pass over
all values with the final width gives. So any order, any batching and any merge of partial histograms agree exactly.

Peers fix the range at the first batch and clip what comes later, or stretch the bins and interpolate the counts, so
that the same images give other ranges in another order.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from runtimes.errors import DataError

#: Bins on each side of zero: 16 for each step of a symmetric 8-bit grid at least, 32 for most.
BINS: Final = 4096
# Narrower bins than these would make a subnormal of the factor 1 / w. All-zero tensors stay here.
_SMALLEST: Final = -100
_LARGEST: Final = 128 - BINS.bit_length() + 1
# Values that are handled at a time: two buffers of this length fit into a core's own cache.
_BLOCK: Final = 1 << 16

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


class Histogram:
    """Counts of float32 values, exact zeros apart from all others.

    Attributes:
        exponent: ``k``; the bins are ``2**k`` wide.
        counts: int64 ``[2 * BINS]``, of values other than zero; only to be read.
        zeros: Number of values that are exactly zero, which every quantisation grid keeps as they are.
    """

    __slots__ = ("_occupied", "_total", "counts", "exponent", "zeros")

    def __init__(self) -> None:
        self.exponent = _SMALLEST
        self.counts: Int64 = np.zeros(2 * BINS, np.int64)
        self.zeros = 0
        # What occupied() and total found, until the next change: the searches for a range ask hundreds of times.
        self._occupied: tuple[Float64, Float64, float] | None = None
        self._total: int | None = None

    def add(self, values: Float32, low: float, high: float) -> None:
        """Count values.

        Args:
            values: float32, any shape, finite.
            low: Their minimum, which the caller has anyhow.
            high: Their maximum.

        Raises:
            DataError: ``low`` or ``high`` is not finite.
        """
        self.grow(needed_exponent(low, high))
        self._occupied = self._total = None
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)  # its bits are read below
        # Negative values so small that float32 would make -0 of the quotient would change their bin: hence float64,
        # and the faster type where a quotient of 0 is right.
        dtype = np.dtype(np.float64 if low < 0 else np.float32)
        inverse = dtype.type(math.ldexp(1.0, -self.exponent))
        size = min(_BLOCK, flat.size)
        scaled, narrow, index = np.empty(size, dtype), np.empty(size, np.int32), np.empty(size, np.int64)
        zeros = 0
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            part, small, position = scaled[: block.size], narrow[: block.size], index[: block.size]
            # Without the sign's bit, all that is left of either zero is 0; integers are counted faster than floats.
            np.left_shift(block.view(np.int32), 1, out=small)
            zeros += block.size - int(np.count_nonzero(small))
            np.multiply(block, inverse, out=part)
            if low < 0:
                np.floor(part, out=part)
                np.add(part, BINS, out=part)  # exact: whole numbers
            # Truncation is floor here. By way of int32, for which processors have an instruction of their own.
            small[:] = part
            position[:] = small
            if low < 0:
                self.counts += np.bincount(position, minlength=2 * BINS)
            else:  # half of the bins stay empty
                self.counts[BINS:] += np.bincount(position, minlength=BINS)
        # Zeros were counted with the bin above them: one subtraction is cheaper than a mask.
        self.counts[BINS] -= zeros
        self.zeros += zeros

    def grow(self, exponent: int) -> None:
        """Widen the bins to ``2**exponent`` where they are narrower."""
        steps = exponent - self.exponent
        if steps <= 0:
            return
        # More steps than this put everything into the two bins beside zero anyhow.
        self.counts = _coarser(self.counts, min(steps, BINS.bit_length() - 1))
        self.exponent = exponent
        self._occupied = None

    def merged(self, other: Histogram) -> Histogram:
        """The histogram of the values of both; neither is changed."""
        total = Histogram()
        for part in (self, other):
            same = Histogram()
            same.exponent, same.counts, same.zeros = part.exponent, part.counts.copy(), part.zeros
            same.grow(max(self.exponent, other.exponent))
            total.exponent = same.exponent
            total.counts = total.counts + same.counts
            total.zeros += same.zeros
        return total

    @property
    def total(self) -> int:
        """Number of values, zeros included."""
        if self._total is None:
            self._total = int(self.counts.sum()) + self.zeros
        return self._total

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.exponent)

    def occupied(self) -> tuple[Float64, Float64, float]:
        """The bins that hold something, without zeros.

        Returns:
            Their centres, float64 ``[n]``, their counts, float64 ``[n]``, neither to be written to, and their width.
        """
        if self._occupied is not None:
            return self._occupied
        width = self.width
        index = np.flatnonzero(self.counts)
        centres = ((index - BINS + 0.5) * width).astype(np.float64)
        counts = self.counts[index].astype(np.float64)
        for array in (centres, counts):
            array.flags.writeable = False
        self._occupied = centres, counts, width
        return self._occupied

    def to_json(self) -> dict[str, Any]:
        """As JSON: the occupied stretch of bins, deflated, in base64."""
        index = np.flatnonzero(self.counts)
        first, last = (int(index[0]), int(index[-1]) + 1) if index.size else (BINS, BINS)
        packed = base64.b64encode(zlib.compress(self.counts[first:last].astype("<i8").tobytes(), 9)).decode("ascii")
        return {"exponent": self.exponent, "first": first, "counts": packed, "zeros": self.zeros}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Histogram:
        """What :meth:`to_json` wrote.

        Raises:
            DataError: The value is something else, or damaged.
        """
        histogram = cls()
        try:
            raw = zlib.decompress(base64.b64decode(value["counts"], validate=True))
            counts = np.frombuffer(raw, "<i8")
            first, histogram.exponent, histogram.zeros = (int(value[name]) for name in ("first", "exponent", "zeros"))
        except (KeyError, TypeError, ValueError, OverflowError, binascii.Error, zlib.error) as error:
            raise DataError(f"a histogram is damaged ({error}): collect the ranges again") from error
        sound = _SMALLEST <= histogram.exponent <= _LARGEST and histogram.zeros >= 0
        sound = sound and 0 <= first <= 2 * BINS - len(counts)
        if not sound or (counts < 0).any():
            raise DataError("a histogram is damaged (a number is out of range): collect the ranges again")
        histogram.counts[first : first + len(counts)] = counts
        return histogram


def needed_exponent(low: float, high: float) -> int:
    """The smallest ``k`` with ``-BINS * 2**k <= low`` and ``high < BINS * 2**k``.

    Raises:
        DataError: A bound is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"values reach from {low} to {high}: expected finite numbers")
    # frexp: x = m * 2**e with 0.5 <= m < 1, so that x < 2**e.
    above = math.frexp(high)[1] if high > 0 else _SMALLEST
    fraction, below = math.frexp(low) if low < 0 else (0.0, _SMALLEST)
    if fraction == -0.5:  # a negative power of two is the lower edge of its bin and still inside
        below -= 1
    return max(_SMALLEST, max(above, below) - (BINS.bit_length() - 1))


def _coarser(counts: Int64, steps: int) -> Int64:
    """Bins of ``2**steps`` times the width: each is the sum of as many neighbours."""
    kept = BINS >> steps  # on each side
    sums = counts.reshape(2 * kept, 1 << steps).sum(axis=1)  # [2*BINS] -> [2*kept, 2**steps] -> [2*kept]
    wide = np.zeros_like(counts)
    wide[BINS - kept : BINS + kept] = sums
    return wide
