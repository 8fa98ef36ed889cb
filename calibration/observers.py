"""What is kept of one tensor's values over all images: enough for every way to choose a range, in constant memory.

An observer holds the exact extremes, those of each channel, the sums of each image's extremes, and a
:class:`~calibration.histogram.Histogram`. All of them are order-free: observers that saw the images in other
batches, another order, or on other machines and were merged afterwards are equal bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.histogram import Histogram
from runtimes.errors import DataError

Float32 = npt.NDArray[np.float32]

# A float32 is a whole multiple of 2**-149. In that unit sums are Python integers, and so exact in any order.
_UNIT = 2.0**149


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

    def extremes(self, batch: Float32) -> tuple[Float32, Float32]:
        """The smallest and the largest value of each channel of each image, where the batch can be taken in.

        Args:
            batch: float32 ``[N, C, ...]``, ``N`` images of ``C`` channels.

        Returns:
            Two arrays, float32 ``[N, C]``.

        Raises:
            DataError: The batch is empty, has another number of channels than those before, or holds NaN or
                infinity.
        """
        if batch.ndim < 2 or batch.size == 0 or (self.images and batch.shape[1] != len(self.channel_low)):
            channels = len(self.channel_low) if self.images else "C"
            raise DataError(f"a batch has the shape {list(batch.shape)}: expected [N,{channels},...], not empty")
        flat = batch.reshape(*batch.shape[:2], -1)  # [N,C,...] -> [N,C,M]
        # [N,C]; NaN spreads. Adding 0 makes one zero of the two, or -0 and 0 would depend on the order of the images.
        lows, highs = flat.min(axis=2) + np.float32(0), flat.max(axis=2) + np.float32(0)
        low, high = float(lows.min()), float(highs.max())
        if not np.isfinite(low) or not np.isfinite(high):
            kind = "NaN" if np.isnan(low) or np.isnan(high) else "infinity"
            raise DataError(f"values of {kind}: expected finite numbers")
        return lows, highs

    def update(self, batch: Float32, extremes: tuple[Float32, Float32] | None = None) -> None:
        """Take in one batch; an observer that refuses one is as before.

        Args:
            batch: float32 ``[N, C, ...]``, ``N`` images of ``C`` channels.
            extremes: What :meth:`extremes` gave for it, for callers that looked at the batch before.

        Raises:
            DataError: See :meth:`extremes`.
        """
        lows, highs = extremes or self.extremes(batch)
        low, high = float(lows.min()), float(highs.max())
        self.histogram.add(batch, low, high)
        first = not self.images
        self.channel_low = lows.min(axis=0) if first else np.minimum(self.channel_low, lows.min(axis=0))
        self.channel_high = highs.max(axis=0) if first else np.maximum(self.channel_high, highs.max(axis=0))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._low_sum += _exact_sum(lows.min(axis=1))
        self._high_sum += _exact_sum(highs.max(axis=1))
        self.images += len(batch)

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


def _exact_sum(values: Float32) -> int:
    return sum(int(float(value) * _UNIT) for value in values)
