"""Signal and noise of one tensor, channel by channel, summed in float64 over any number of images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from runtimes.errors import TensorError
from runtimes.statistics import SQNR_CAP_DB

_Doubles = npt.NDArray[np.float64]


class ChannelNoise:
    """Signal and noise of each channel of one tensor, over any number of images, in constant memory."""

    def __init__(self) -> None:
        self._signal: _Doubles | None = None
        self._noise: _Doubles | None = None
        self._count = 0  # values of each channel
        self._absolute = 0.0
        self._largest = 0.0
        self._problem: str | None = None
        self._bad_channel = 0

    def update(self, reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> None:
        """Take in a tensor of both sides.

        Args:
            reference: ``[N, C, ...]``, any float type, finite.
            candidate: The same. Another shape and values that are not finite are no error here: they are the worst
                there is, and are reported as such.

        Raises:
            TensorError: The number of channels is not that of the tensors before.
        """
        signal = _by_channel(reference)
        if self._signal is None or self._noise is None:
            self._signal, self._noise = np.zeros(len(signal)), np.zeros(len(signal))
        if len(signal) != len(self._signal):
            raise TensorError(f"received {len(signal)} channels, expected {len(self._signal)} as before")
        self._count += signal.shape[1]
        self._signal += np.square(signal).sum(axis=1)
        if reference.shape != candidate.shape:
            self._problem = f"it is {list(candidate.shape)}, and {list(reference.shape)} in the reference"
            return
        error = np.abs(_by_channel(candidate) - signal)
        finite = np.isfinite(error).all(axis=1)
        if not finite.all():
            self._bad_channel = int(np.flatnonzero(~finite)[0])
            self._problem = self._problem or f"channel {self._bad_channel} holds NaN or Inf"
            return
        self._noise += np.square(error).sum(axis=1)
        self._absolute += float(error.sum())
        self._largest = max(self._largest, float(error.max(initial=0.0)))

    @property
    def problem(self) -> str | None:
        """Why the sides cannot be compared; None where they can."""
        return self._problem

    @property
    def rms(self) -> float:
        """Root mean square of the reference."""
        signal = self._known(self._signal)
        return math.sqrt(float(signal.sum()) / (self._count * len(signal)))

    @property
    def mean_abs(self) -> float | None:
        """Mean absolute difference."""
        return None if self._problem else self._absolute / (self._count * len(self._known(self._signal)))

    @property
    def max_abs(self) -> float | None:
        """Largest absolute difference."""
        return None if self._problem else self._largest

    def total_db(self) -> float:
        """Ratio over all channels."""
        signal, noise = self._known(self._signal), self._known(self._noise)
        return -SQNR_CAP_DB if self._problem else _decibels(float(signal.sum()), float(noise.sum()))

    def worst(self) -> tuple[float, int]:
        """Ratio in the worst channel, as :mod:`runtimes.drift` defines it, and which channel that is."""
        signal, noise = self._known(self._signal), self._known(self._noise)
        if self._problem:
            return -SQNR_CAP_DB, self._bad_channel
        heard = np.maximum(signal, signal.mean())
        ratios = [_decibels(float(each), float(other)) for each, other in zip(heard, noise, strict=True)]
        channel = int(np.argmin(ratios))
        return ratios[channel], channel

    def _known(self, sums: _Doubles | None) -> _Doubles:
        if sums is None or not self._count:
            raise TensorError("no images were compared, expected at least one")
        return sums


def _by_channel(values: npt.NDArray[Any]) -> _Doubles:
    """``[N, C, ...]`` -> ``[C, all the rest]`` in float64; a tensor of one dimension is one channel."""
    if values.ndim < 2:
        return values.reshape(1, -1).astype(np.float64)
    moved = np.moveaxis(values, 1, 0)
    return moved.reshape(len(moved), -1).astype(np.float64)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return SQNR_CAP_DB
    if signal == 0.0:
        return -SQNR_CAP_DB
    return min(max(10.0 * (math.log10(signal) - math.log10(noise)), -SQNR_CAP_DB), SQNR_CAP_DB)
