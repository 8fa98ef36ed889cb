"""From the statistics of a tensor to the range that its 8 bits should cover.

============  ==========================================================================================
method        range
============  ==========================================================================================
minmax        from the smallest to the largest value seen: nothing is clipped
average       from the mean over images of each image's smallest value to that of its largest: what a moving
              average estimates, without its dependence on the order of the images
percentile    without the rarest values: 0.005 % at either end, or 0.01 % of the magnitudes where symmetric
entropy       the least Kullback-Leibler divergence between the values and what 8 bits keep of them
              (S. Migacz, "8-bit Inference with TensorRT", GTC 2017)
mse           the least mean squared error, clipping and rounding together
============  ==========================================================================================

All of them come from one :class:`~calibration.observers.Observer`, so that another method needs no new pass. The two
searches work on the histogram's bins: ``entropy`` and ``mse`` see each value as the centre of its bin, a sixteenth of
a step away at most, and exact zeros as zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from calibration.grids import Affine, Grid, affine
from calibration.observers import Observer
from runtimes.errors import DataError, InputError

Method = Literal["minmax", "average", "percentile", "entropy", "mse"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
#: Per cent of the values that ``percentile`` keeps.
PERCENTILE: Final = 99.99
# Fractions of the full range that the searches try first: 3 % apart, down to a heavy tail of 64 times the rest.
_FRACTIONS: Final = np.geomspace(1 / 64, 1.0, 141)
# Around the best of them, then, for the mean squared error, whose minimum is smooth: 0.2 % apart.
_NEARER: Final = np.linspace(0.97, 1.03, 31)
_ROUNDS: Final = 3

Float64 = npt.NDArray[np.float64]


def choose(observer: Observer, method: Method, grid: Grid) -> Affine:
    """Scale and zero point of one tensor.

    Args:
        observer: What the tensor's values were.
        method: How to choose; see the module's table.
        grid: The integers of the target.

    Returns:
        The quantisation; its range always covers zero.

    Raises:
        DataError: The observer has seen nothing.
        InputError: There is no such method.
    """
    if not observer.images:
        raise DataError("a tensor was never observed: collect its range first")
    match method:
        case "minmax":
            return affine(observer.low, observer.high, grid)
        case "average":
            return affine(observer.mean_low, observer.mean_high, grid)
        case "percentile":
            return affine(*_percentile(observer, grid.symmetric), grid)
        case "entropy":
            return _search(observer, grid, divergence)
        case "mse":
            return _nearer(observer, _search(observer, grid, squared_error))
    raise InputError(f"received the method {method!r}, expected one of {', '.join(METHODS)}")


def squared_error(observer: Observer, quantisation: Affine) -> float:
    """Expected squared difference between a value and what ``quantisation`` keeps of it, over all values."""
    centres, counts, _ = observer.histogram.occupied()
    apart = quantisation.rounded(centres) - centres
    return float(counts @ (apart * apart)) / max(observer.histogram.total, 1)


def divergence(observer: Observer, quantisation: Affine) -> float:
    """Kullback-Leibler divergence, in nats, from the clipped values to those that 8 bits can tell apart.

    ``P`` are the counts with everything outside the range moved to its ends. ``Q`` spreads the count of each integer
    evenly over the bins that became it and are not empty; it leaves out what lies outside. Exact zeros are in
    neither: they stay zeros under every range. Infinite where an end has only values from outside.
    """
    centres, counts, _ = observer.histogram.occupied()
    inside = (centres >= quantisation.low) & (centres <= quantisation.high)
    if not inside.any():
        return float("inf")
    kept = counts[inside]
    p = kept.copy()
    p[0] += counts[centres < quantisation.low].sum()
    p[-1] += counts[centres > quantisation.high].sum()
    step = np.rint(centres[inside] / quantisation.scale).astype(np.int64)
    step -= step.min()
    q = (np.bincount(step, kept) / np.maximum(np.bincount(step), 1))[step]
    p /= p.sum()
    q /= q.sum()
    return float(p @ np.log(p / q))


def _percentile(observer: Observer, symmetric: bool) -> tuple[float, float]:
    centres, counts, width = observer.histogram.occupied()
    if not counts.size:
        return 0.0, 0.0
    cut = (1 - PERCENTILE / 100) * observer.histogram.total
    if symmetric:
        order = np.argsort(np.abs(centres), kind="stable")
        amax = _reach(np.abs(centres)[order], counts[order], width, cut)
        return max(-amax, observer.low), min(amax, observer.high)
    high = _reach(centres, counts, width, cut / 2)
    low = -_reach(-centres[::-1], counts[::-1], width, cut / 2)
    return max(low, observer.low), min(high, observer.high)


def _reach(centres: Float64, counts: Float64, width: float, cut: float) -> float:
    """The value above which ``cut`` values lie, where those of a bin are spread evenly over it."""
    above = np.cumsum(counts[::-1])[::-1]  # in the bin and above it
    last = int(np.flatnonzero(above > cut)[-1]) if (above > cut).any() else 0
    beyond = above[last + 1] if last + 1 < len(above) else 0.0
    return float(centres[last] + width * (0.5 - min(1.0, (cut - beyond) / counts[last])))


_Score = Callable[[Observer, Affine], float]


def _search(observer: Observer, grid: Grid, score: _Score) -> Affine:
    """The best fraction of the range seen; a tie goes to the larger range."""
    full = affine(observer.low, observer.high, grid)
    if observer.low == observer.high == 0.0:
        return full
    candidates = [affine(observer.low * f, observer.high * f, grid) for f in _FRACTIONS[::-1]]
    return min(candidates, key=lambda candidate: score(observer, candidate))


def _nearer(observer: Observer, start: Affine) -> Affine:
    """Descend from ``start``: both ends in turn, by steps that shrink; symmetric grids have only one."""
    best, error = start, squared_error(observer, start)
    for _ in range(_ROUNDS):
        before = error
        for low, high in _moves(best):
            candidate = affine(low, high, best.grid)
            if candidate.scale > 0 and (found := squared_error(observer, candidate)) < error:
                best, error = candidate, found
        if error == before:
            break
    return best


def _moves(start: Affine) -> list[tuple[float, float]]:
    low, high = _range(start)
    if start.grid.symmetric:
        return [(low * f, high * f) for f in _NEARER]
    coarse = _FRACTIONS[_FRACTIONS > 1 / 4]
    ends = [*_NEARER, *coarse, *(1 / coarse[coarse > 1 / 2])]
    return [(low * f, high) for f in ends] + [(low, high * f) for f in ends]


def _range(quantisation: Affine) -> tuple[float, float]:
    """The arguments with which :func:`affine` gives the same again."""
    if not quantisation.grid.symmetric:
        return quantisation.low, quantisation.high
    return min(-quantisation.high, 0.0) if quantisation.low < 0 else 0.0, quantisation.high
