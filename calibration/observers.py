"""What is kept of one tensor's values over all images: enough for every way to choose a range, in constant memory.

An observer holds the exact extremes, those of each channel, the sums of each image's extremes, and a
:class:`~calibration.histogram.Histogram`. All of them are order-free: observers that saw the images in other
batches, another order, or on other machines and were merged afterwards are equal bit by bit.

The histogram of a large tensor counts a sample of each image's values, evenly spread over channels and positions and
the same whatever else is in the batch: a range is chosen from millions of values, and to count hundreds of millions
took as long as the network itself.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.histogram import Histogram
from runtimes.errors import DataError

Float32 = npt.NDArray[np.float32]

# Of each image's values, at most so many are counted.
_SAMPLE = 1 << 13
# Values that are gone through at a time: they stay in a core's own cache.
_BLOCK = 1 << 18
# A float32 is a whole multiple of 2**-149. In that unit sums are Python integers, and so exact in any order.
_UNIT = 2.0**149


class Reading(NamedTuple):
    """What an observer takes of a batch of ``N`` images.

    Attributes:
        lows: float32 ``[N, C]``, the smallest value of each channel.
        highs: float32 ``[N, C]``, the largest.
        sample: float32 ``[N, S]``, the values that are counted.
    """

    lows: Float32
    highs: Float32
    sample: Float32

    @property
    def low(self) -> float:
        """The smallest value of all."""
        return float(self.lows.min())

    @property
    def high(self) -> float:
        """The largest value of all."""
        return float(self.highs.max())


class Observer:
    """Statistics of one tensor.

    Attributes:
        images: Number of images so far.
        low: Smallest value so far; ``inf`` before the first.
        high: Largest value so far; ``-inf`` before the first.
        channel_low: float32 ``[C]``, the smallest value of each channel; empty before the first batch.
        channel_high: float32 ``[C]``, the largest.
        histogram: Counts of all values.
    """

    def __init__(self) -> None:
        self.images = 0
        self.low, self.high = float("inf"), float("-inf")
        self.channel_low: Float32 = np.zeros(0, np.float32)
        self.channel_high: Float32 = np.zeros(0, np.float32)
        self.histogram = Histogram()
        self._low_sum, self._high_sum = 0, 0  # of each image's extremes, in units of 2**-149

    def read(self, batch: Float32) -> Reading:
        """Look at a batch, where it can be taken in, and change nothing.

        Args:
            batch: float32 ``[N, C, ...]``, ``N`` images of ``C`` channels.

        Raises:
            DataError: The batch is empty, has another number of channels than those before, or holds NaN or
                infinity.
        """
        if batch.ndim < 2 or batch.size == 0 or (self.images and batch.shape[1] != len(self.channel_low)):
            channels = len(self.channel_low) if self.images else "C"
            raise DataError(f"a batch has the shape {list(batch.shape)}: expected [N,{channels},...], not empty")
        rows = batch.reshape(*batch.shape[:2], -1)  # [N,C,...] -> [N,C,M]
        images = batch.reshape(len(batch), -1)  # [N,C,...] -> [N,C*M]
        stride = _stride(images.shape[1])
        sample = np.empty((len(images), -(-images.shape[1] // stride)), np.float32)
        lows, highs = np.empty((2, *rows.shape[:2]), np.float32)  # NaN spreads
        together = max(1, _BLOCK // images.shape[1])
        for start in range(0, len(rows), together):  # so that what one line has read is at hand for the others
            part = slice(start, start + together)
            rows[part].min(axis=2, out=lows[part])
            rows[part].max(axis=2, out=highs[part])
            sample[part] = images[part, ::stride]
        # One zero of the two, or -0 and 0 would depend on the order of the images.
        lows += np.float32(0)
        highs += np.float32(0)
        reading = Reading(lows, highs, sample)
        if not np.isfinite(reading.low) or not np.isfinite(reading.high):
            kind = "NaN" if np.isnan(reading.low) or np.isnan(reading.high) else "infinity"
            raise DataError(f"values of {kind}: expected finite numbers")
        return reading

    def add(self, reading: Reading) -> None:
        """Take in what :meth:`read` gave."""
        self.histogram.add(reading.sample, reading.low, reading.high)
        lows, highs = reading.lows.min(axis=0), reading.highs.max(axis=0)
        first = not self.images
        self.channel_low = lows if first else np.minimum(self.channel_low, lows)
        self.channel_high = highs if first else np.maximum(self.channel_high, highs)
        self.low, self.high = min(self.low, reading.low), max(self.high, reading.high)
        self._low_sum += _exact_sum(reading.lows.min(axis=1))
        self._high_sum += _exact_sum(reading.highs.max(axis=1))
        self.images += len(reading.lows)

    def update(self, batch: Float32) -> None:
        """Take in one batch; an observer that refuses one is as before.

        Args:
            batch: float32 ``[N, C, ...]``, ``N`` images of ``C`` channels.

        Raises:
            DataError: See :meth:`read`.
        """
        self.add(self.read(batch))

    def merged(self, other: Observer) -> Observer:
        """The observer of the images of both; neither is changed.

        Raises:
            DataError: They are of tensors with different numbers of channels.
        """
        parts = [part for part in (self, other) if part.images]
        if len({len(part.channel_low) for part in parts}) > 1:
            counts = " and ".join(str(len(part.channel_low)) for part in parts)
            raise DataError(f"observers of {counts} channels cannot be merged: they are of different tensors")
        total = Observer()
        total.histogram = self.histogram.merged(other.histogram)
        total.images = self.images + other.images
        total.low, total.high = min(self.low, other.low), max(self.high, other.high)
        total._low_sum = self._low_sum + other._low_sum
        total._high_sum = self._high_sum + other._high_sum
        if parts:
            total.channel_low = np.min([part.channel_low for part in parts], axis=0)
            total.channel_high = np.max([part.channel_high for part in parts], axis=0)
        return total

    @property
    def mean_low(self) -> float:
        """Mean over the images of each one's smallest value."""
        return self._low_sum / self.images / _UNIT if self.images else float("nan")

    @property
    def mean_high(self) -> float:
        """Mean over the images of each one's largest value."""
        return self._high_sum / self.images / _UNIT if self.images else float("nan")

    def to_json(self) -> dict[str, Any]:
        """As JSON, exactly: float32 values are written in full."""
        return {
            "images": self.images,
            "low": self.low,
            "high": self.high,
            "low_sum": hex(self._low_sum),
            "high_sum": hex(self._high_sum),
            "channel_low": self.channel_low.tolist(),
            "channel_high": self.channel_high.tolist(),
            "histogram": self.histogram.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Observer:
        """What :meth:`to_json` wrote.

        Raises:
            DataError: The value is something else, or damaged.
        """
        observer = cls()
        try:
            observer.images = int(value["images"])
            observer.low, observer.high = float(value["low"]), float(value["high"])
            observer._low_sum, observer._high_sum = int(value["low_sum"], 16), int(value["high_sum"], 16)
            observer.channel_low = np.array(value["channel_low"], np.float32)
            observer.channel_high = np.array(value["channel_high"], np.float32)
            histogram = value["histogram"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"statistics of a tensor are damaged ({error}): collect the ranges again") from error
        observer.histogram = Histogram.from_json(histogram)
        lows, highs = observer.channel_low, observer.channel_high
        finite = all(np.isfinite(part).all() for part in ([observer.low, observer.high], lows, highs))
        shaped = lows.ndim == 1 and lows.shape == highs.shape
        if observer.images < 1 or not finite or not shaped or observer.low > observer.high:
            raise DataError("statistics of a tensor are damaged (not finite, or of no images): collect them again")
        return observer


def _stride(size: int) -> int:
    """Every so many-th value of an image; without a common divisor, so that no column or channel is left out."""
    stride = -(-size // _SAMPLE)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


def _exact_sum(values: Float32) -> int:
    return sum(int(float(value) * _UNIT) for value in values)
