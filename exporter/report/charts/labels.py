"""Where the names of points go so that they cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle, in user units."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return across * down if across > 0 and down > 0 else 0.0

    def outside(self, bounds: Box) -> float:
        """Area that lies beyond ``bounds``."""
        area = (self.right - self.left) * (self.bottom - self.top)
        return area - self.overlap(bounds)


class Disc(NamedTuple):
    """A drawn point."""

    x: float
    y: float
    radius: float

    def box(self) -> Box:
        """The square around it."""
        return Box(self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


class Placed(NamedTuple):
    """A label's place, and whether it is so far from its point that a line has to lead there."""

    box: Box
    distant: bool


_HEIGHT = 15.0
_GAP = 4.0
_RINGS = (0.0, 14.0, 30.0, 48.0, 68.0, 92.0, 120.0)
_ANGLES = (0, 180, 270, 90, 315, 45, 225, 135, 337, 22, 202, 157, 292, 67, 247, 112)


def place(discs: Sequence[Disc], widths: Sequence[float], bounds: Box) -> list[Placed]:
    """Give every point's label a place, greedily, in the order of the points.

    A label is tried around its point in growing circles, right of it first; the first free place is taken, else the one
    that covers least.

    Args:
        discs: The points.
        widths: Width of each label.
        bounds: Where labels may be.
    """
    taken = [disc.box() for disc in discs]
    placed = []
    for disc, width in zip(discs, widths, strict=True):
        best: Placed | None = None
        least = math.inf
        for ring in _RINGS:
            for angle in _ANGLES:
                box = _around(disc, width, ring, angle)
                cost = sum(box.overlap(other) for other in taken) + 4 * box.outside(bounds)
                if cost < least - 1e-9:
                    least, best = cost, Placed(box, ring > 0)
            if least <= 0:
                break
        assert best is not None  # every ring offers places
        taken.append(best.box)
        placed.append(best)
    return placed


def _around(disc: Disc, width: float, ring: float, angle: int) -> Box:
    reach = disc.radius + _GAP + ring
    x = disc.x + reach * math.cos(math.radians(angle))
    y = disc.y + reach * math.sin(math.radians(angle))
    # The box touches the circle with the side that faces the point.
    left = x - width * (1 - math.cos(math.radians(angle))) / 2
    top = y - _HEIGHT * (1 - math.sin(math.radians(angle))) / 2
    return Box(left, top, left + width, top + _HEIGHT)
