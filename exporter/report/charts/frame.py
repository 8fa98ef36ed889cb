"""The plot area of a chart, and its axes."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from exporter.report.charts import svg
from exporter.report.charts.scale import Scale

WIDE = 860
"""Width of charts on a desk, in pixels."""

NARROW = 320
"""Width of the same charts on a telephone: what a page of 360 pixels leaves."""


@dataclass(frozen=True)
class Frame:
    """Edges of the plot area, in user units from the top left corner."""

    left: float
    top: float
    right: float
    bottom: float

    def x_axis(self, scale: Scale, name: str) -> list[Markup]:
        """Grid, ticks and name along the lower edge; a tick whose text would touch the last one has none."""
        parts, free = [], -1e9
        for tick in scale.ticks:
            place, text = scale(tick), scale.text(tick)
            parts.append(svg.line(place, self.top, place, self.bottom, "grid"))
            half = svg.text_width(text) / 2
            if place - half >= free:
                parts.append(svg.label(text, place, self.bottom + 14, anchor="middle", tone="tick"))
                free = place + half + 6
        parts.append(svg.line(self.left, self.bottom, self.right, self.bottom, "axis"))
        middle = (self.left + self.right) / 2
        name += ", logarithmic" if scale.log else ""
        return [*parts, svg.label(name, middle, self.bottom + 33, anchor="middle", tone="axis-name")]

    def y_axis(self, scale: Scale, name: str) -> list[Markup]:
        """Grid and ticks along the left edge; the name is written level, above the axis."""
        parts = []
        for tick in scale.ticks:
            place = scale(tick)
            parts.append(svg.line(self.left, place, self.right, place, "grid"))
            parts.append(svg.label(scale.text(tick), self.left - 8, place, anchor="end", tone="tick"))
        return [*parts, svg.label(name, 0, self.top - 18, tone="axis-name")]


def cross(tone: str, x: float, y: float, size: float = 5.0) -> Markup:
    """A cross: what failed, told by form as well as by colour."""
    arms = [(x - size, y - size, x + size, y + size), (x - size, y + size, x + size, y - size)]
    return svg.group(*(svg.line(*arm, tone) for arm in arms))
