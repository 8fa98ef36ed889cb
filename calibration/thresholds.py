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

from collections.abc import Callable, Sequence
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from calibration.grids import Affine, Grid, affine
from calibration.histogram import BINS, Histogram
from calibration.observers import Observer
from runtimes.errors import DataError, InputError

Method = Literal["minmax", "average", "percentile", "entropy", "mse"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
#: Per cent of the values that ``percentile`` keeps.
PERCENTILE: Final = 99.99
# Fractions of the full range that the searches try first: 3 % apart, down to a heavy tail of 64 times the rest.
_FRACTIONS: Final = np.geomspace(1 / 64, 1.0, 141)
# For the mean squared error, whose minimum is smooth, every other of them, and then, around the best, 0.2 % apart.
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
            return _search(observer, grid, _divergences, _FRACTIONS)
        case "mse":
            return _nearer(observer, _search(observer, grid, _squared_errors, _FRACTIONS[::2]))
    raise InputError(f"received the method {method!r}, expected one of {', '.join(METHODS)}")


def squared_error(observer: Observer, quantisation: Affine) -> float:
    """Expected squared difference between a value and what ``quantisation`` keeps of it, over all values."""
    return float(_squared_errors(observer, [quantisation])[0])


def divergence(observer: Observer, quantisation: Affine) -> float:
    """Kullback-Leibler divergence, in nats, from the clipped values to those that 8 bits can tell apart.

    ``P`` are the counts with everything outside the range moved to its ends. ``Q`` spreads the count of each integer
    evenly over the bins that became it and are not empty; it leaves out what lies outside. Exact zeros are in
    neither: they stay zeros under every range. Infinite where nothing lies inside.
    """
    return float(_divergences(observer, [quantisation])[0])


# Both scores need only sums over the bins that become the same integer, which are differences of running sums: a
# candidate costs as many look-ups as there are integers, however many bins there are, and all are scored together.


def _squared_errors(observer: Observer, candidates: Sequence[Affine]) -> Float64:
    """Of ``Q`` candidates, ``[Q]``: with the sums n, m, s of 1, x, x^2 over a value v's bins, ``s - 2 v m + v^2 n``."""
    centres, counts, _ = observer.histogram.occupied()
    first = counts * centres
    values, halfway = _levels(candidates)
    edges = _bins_below(observer.histogram, halfway)  # [Q,L-1]
    edges = np.pad(edges, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(centres))))  # the ends take what is beyond
    n, m = (np.diff(_running(each)[edges]) for each in (counts, first))  # [Q,L]
    errors = float(first @ centres) + np.einsum("ql,ql->q", values, values * n - 2 * m)
    # A difference of large sums: where next to nothing is lost, rounding may leave less than nothing.
    found: Float64 = np.maximum(errors, 0.0) / max(observer.histogram.total, 1)
    return found


def _divergences(observer: Observer, candidates: Sequence[Affine]) -> Float64:
    """Of ``Q`` candidates, ``[Q]``: ``sum p log p`` from running sums, ``sum p log q`` integer by integer."""
    centres, counts, _ = observer.histogram.occupied()
    low, high = np.array([(each.low, each.high) for each in candidates]).T
    first = _bins_below(observer.histogram, low)
    last = len(centres) - 1 - _bins_below(observer.histogram, high, above=True)
    some = np.flatnonzero(first <= last)  # something lies inside
    found: Float64 = np.full(len(candidates), np.inf)
    if not some.size:
        return found
    first, last = first[some], last[some]
    edges = _bins_below(observer.histogram, _levels([candidates[i] for i in some.tolist()])[1])
    edges = np.column_stack([first, np.clip(edges, first[:, None], last[:, None] + 1), last + 1])  # [Q,L+1]
    running = _running(counts)
    kept = np.diff(running[edges])  # [Q,L]
    log_q = np.log(np.maximum(kept, 1) / np.maximum(np.diff(edges), 1))
    p_log_p = np.diff(_running(_times_log(counts))[np.stack([first, last + 1])], axis=0)[0]
    p_log_q = np.einsum("ql,ql->q", kept, log_q)
    filled = kept > 0
    ends = np.stack([filled.argmax(axis=1), filled.shape[1] - 1 - filled[:, ::-1].argmax(axis=1)], axis=1)
    q_first, q_last = np.take_along_axis(log_q, ends, axis=1).T
    below, above = running[first], running[-1] - running[last + 1]
    at_first = counts[first]
    at_last = counts[last] + np.where(first == last, below, 0)  # a bin may be both ends
    for own, more, there in ((at_first, below, q_first), (at_last, above, q_last)):
        p_log_p = p_log_p + _times_log(own + more) - _times_log(own)
        p_log_q = p_log_q + more * there
    inside = running[last + 1] - running[first]
    found[some] = (p_log_p - p_log_q) / running[-1] + np.log(inside / running[-1])
    return found


def _levels(candidates: Sequence[Affine]) -> tuple[Float64, Float64]:
    """What the integers of each candidate stand for, ``[Q, L]``, and where one gives way to the next, ``[Q, L-1]``."""
    grid = candidates[0].grid
    zeros = np.array([[each.zero_point] for each in candidates], np.float64)
    scales = np.array([[each.scale] for each in candidates], np.float64)
    steps = np.arange(grid.low, grid.high + 1) - zeros
    return steps * scales, (steps[:, :-1] + 0.5) * scales


def _bins_below(histogram: Histogram, values: Float64, above: bool = False) -> npt.NDArray[np.int64]:
    """How many occupied bins have their centre below each value; or above it. A search for uniform bins."""
    place = values / histogram.width - 0.5  # exact: the width is a power of two
    place = (np.floor(place) + 1 if above else np.ceil(place)) + BINS
    ranks = np.concatenate([[0], np.cumsum(histogram.counts > 0)])
    found: npt.NDArray[np.int64] = ranks[np.clip(place, 0, len(ranks) - 1).astype(np.int64)]
    return ranks[-1] - found if above else found


def _running(values: Float64) -> Float64:
    """Sums of the first 0, 1, 2, ... values."""
    return np.concatenate([np.zeros(1), np.cumsum(values)])


def _times_log(values: Float64) -> Float64:
    return values * np.log(values)


def _percentile(observer: Observer, symmetric: bool) -> tuple[float, float]:
    centres, counts, width = observer.histogram.occupied()
    if not counts.size:
        return observer.low, observer.high  # only zeros were counted
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


_Score = Callable[[Observer, Sequence[Affine]], Float64]


def _search(observer: Observer, grid: Grid, scores: _Score, fractions: Float64) -> Affine:
    """The best fraction of the range seen; a tie goes to the larger range."""
    full = affine(observer.low, observer.high, grid)
    if observer.low == observer.high == 0.0:
        return full
    candidates = [affine(observer.low * f, observer.high * f, grid) for f in fractions[::-1]]
    return candidates[int(np.argmin(scores(observer, candidates)))]


def _nearer(observer: Observer, start: Affine) -> Affine:
    """Descend from ``start``: both ends in turn, by steps that shrink; symmetric grids have only one."""
    best, error = start, squared_error(observer, start)
    for _ in range(_ROUNDS):
        candidates = [affine(low, high, best.grid) for low, high in _moves(best)]
        errors = _squared_errors(observer, candidates)
        place = int(np.argmin(errors))
        if not errors[place] < error:
            break
        best, error = candidates[place], float(errors[place])
    return best


def _moves(start: Affine) -> list[tuple[float, float]]:
    low, high = _range(start)
    if start.grid.symmetric:
        return [(low * f, high * f) for f in _NEARER]
    coarse = _FRACTIONS[_FRACTIONS > 1 / 4]
    ends = [*_NEARER, *coarse, *(1 / coarse[coarse > 1 / 2])]
    # An end at zero stays there.
    return [(low * f, high) for f in (ends if low else [])] + [(low, high * f) for f in (ends if high else [])]


def _range(quantisation: Affine) -> tuple[float, float]:
    """The arguments with which :func:`affine` gives the same again."""
    if not quantisation.grid.symmetric:
        return quantisation.low, quantisation.high
    return min(-quantisation.high, 0.0) if quantisation.low < 0 else 0.0, quantisation.high
