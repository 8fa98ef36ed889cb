"""From values to places: linear and logarithmic axes with round ticks.

The ticks are 1, 2 or 5 times a power of ten (Heckbert, "Nice Numbers for Graph Labels", Graphics Gems, 1990).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

LOG_FROM = 20.0
"""Values whose largest is this many times the smallest are drawn on a logarithmic axis."""

_HUGE = 1e60


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        low, high: Values at its ends, ``low < high``.
        start, end: Places of the ends, in user units; ``start > end`` for an axis that points up.
        ticks: Values at which it is marked.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; one beyond an end is put at that end."""
        clamped = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(clamped / self.low) / math.log(self.high / self.low)
        else:
            share = (clamped - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value is on the axis, and not beyond its ends."""
        return self.low <= value <= self.high

    def text(self, tick: float) -> str:
        """A tick as text, with as many decimals as tell it from its neighbour."""
        if self.log:
            return f"{tick:g}"
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if decimals > 5 or max(map(abs, self.ticks)) >= 1e6:
            return f"{tick:.4g}".replace("-", "−")
        return f"{tick:,.{decimals}f}".replace("-", "−")


def linear(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    zero: bool = False,
    limits: tuple[float, float] | None = None,
    wanted: int = 5,
) -> Scale:
    """An axis that holds all values and ends at round ones.

    Args:
        values: Finite; none gives an axis from 0 to 1.
        start: Place of the low end.
        end: Place of the high end.
        zero: Whether the axis holds 0 in any case.
        limits: Values that the axis does not pass where the data do not, for example 0 and 1 for fractions.
        wanted: About how many ticks.
    """
    known = [*map(_tame, values), *([0.0] if zero else [])]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    largest = max(abs(low), abs(high))
    if high - low <= 1e-9 * largest or largest == 0:
        room = 0.1 * largest or 1.0
        low, high = low - room, high + room
    step = _nice((high - low) / max(wanted - 1, 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if limits:
        first = max(first, min(math.ceil(limits[0] / step - 1e-9), math.floor(low / step)))
        last = min(last, max(math.floor(limits[1] / step + 1e-9), math.ceil(high / step)))
        last = max(last, first + 1)
    ticks = tuple(float(f"{index * step:.12g}") for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], start, end, ticks)


def logarithmic(values: Iterable[float], start: float, end: float, *, wanted: int = 6) -> Scale:
    """A logarithmic axis that holds all values; they are positive, and there is at least one."""
    known = [_tame(value) or 1.0 / _HUGE for value in values]
    low, high = min(known), max(known)
    steps = (1.0, 2.0, 5.0) if math.log10(high / low) < wanted / 2 else (1.0,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    candidates = [float(f"{step}e{power}") for power in powers for step in steps]
    below = max(value for value in candidates if value <= low)
    above = min(value for value in candidates if value >= high and value > below)
    ticks = tuple(value for value in candidates if below <= value <= above)
    every = max(math.ceil(len(ticks) / (2 * wanted)), 1)
    return Scale(below, above, start, end, ticks[::every], log=True)


def fitting(values: Iterable[float], start: float, end: float, *, zero: bool, wanted: int = 5) -> Scale:
    """Logarithmic where positive values span decades, else linear."""
    known = list(values)
    if known and min(known) > 0 and max(known) >= LOG_FROM * min(known):
        return logarithmic(known, start, end, wanted=wanted)
    return linear(known, start, end, zero=zero, wanted=wanted)


def _tame(value: float) -> float:
    """The value, within bounds that nothing measured passes: arithmetic near the ends of float64 gives no ticks."""
    return 0.0 if abs(value) < 1 / _HUGE else min(max(value, -_HUGE), _HUGE)


def _nice(step: float) -> float:
    power = math.floor(math.log10(step))
    for factor in (1.0, 2.0, 5.0, 10.0):
        if step <= factor * 10.0**power * (1 + 1e-9):
            break
    return float(f"{factor}e{power}")
