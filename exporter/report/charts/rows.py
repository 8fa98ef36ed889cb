"""Rows of bars or dots on a common axis: latencies, accuracies, decibels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from exporter.report import text
from exporter.report.charts import svg
from exporter.report.charts.frame import Frame, cross
from exporter.report.charts.scale import Scale

STACKED_BELOW = 500
"""Charts narrower than this write a row's name above its bar instead of beside it."""

MakeScale = Callable[[Sequence[float], float, float, int], Scale]


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: Of the runtime.
        value: Where the bar ends, or the dot lies.
        note: The number as text, shown at the right.
        interval: Ends of an interval around the value, or of a tail behind it.
        ticks: Values that are marked across the interval.
        bound: Value that may not be passed; None: there is none.
        tone: Class of the colour.
        failed: Whether it is marked as failed.
    """

    name: str
    value: float
    note: str
    interval: tuple[float, float] | None = None
    ticks: tuple[float, ...] = ()
    bound: float | None = None
    tone: str = "tone-other"
    failed: bool = False

    def values(self) -> list[float]:
        """All values that the axis has to hold."""
        return [self.value, *(self.interval or ()), *self.ticks, *(() if self.bound is None else (self.bound,))]


@dataclass(frozen=True)
class _Layout:
    """Where rows lie; ``lines`` of text stand above each bar, none where the text stands beside it."""

    frame: Frame
    pitch: float
    lines: int

    def middle(self, index: int) -> float:
        return self.frame.top + self.pitch * (index + 1) - (15 if self.lines else self.pitch / 2)


def rows_chart(
    ident: str,
    rows: Sequence[Row],
    width: float,
    *,
    title: str,
    description: str,
    axis: str,
    make_scale: MakeScale,
    bars: bool,
) -> Markup | None:
    """The rows, from top to bottom; None where there are none.

    Args:
        ident: Unique in the page.
        rows: What is drawn.
        width: In user units.
        title: For those who do not see it.
        description: The same, longer.
        axis: Name of the axis with its unit.
        make_scale: Values, start, end and wanted ticks -> axis.
        bars: Whether values are bars from the start of a linear axis; dots otherwise, and on a logarithmic axis, where
            a length means nothing.
    """
    if not rows:
        return None
    layout = _layout(rows, width)
    frame = layout.frame
    values = [value for row in rows for value in row.values()]
    scale = make_scale(values, frame.left, frame.right, 6 if width > STACKED_BELOW else 4)
    parts = frame.x_axis(scale, axis)
    for index, row in enumerate(rows):
        parts.append(_row(row, layout, index, scale, bars and not scale.log))
    return svg.chart(ident, (width, frame.bottom + 44), title, description, parts)


def _layout(rows: Sequence[Row], width: float) -> _Layout:
    if width < STACKED_BELOW:
        widest = max(svg.text_width(row.name + row.note) for row in rows) + 12
        lines = 1 if widest < width - 20 else 2
        pitch = 28.0 + 16 * lines
        return _Layout(Frame(8, 4, width - 12, 4 + pitch * len(rows)), pitch, lines)
    names = min(max(svg.text_width(row.name) for row in rows), 0.3 * width)
    notes = min(max(svg.text_width(row.note) for row in rows), 0.28 * width)
    return _Layout(Frame(names + 14, 6, width - notes - 22, 6 + 30 * len(rows)), 30, 0)


def _row(row: Row, layout: _Layout, index: int, scale: Scale, bars: bool) -> Markup:
    frame, y = layout.frame, layout.middle(index)
    place = scale(row.value)
    parts = _names(row, layout, index)
    if bars:
        length = max(place - frame.left, 1.0)
        parts.append(svg.tag("rect", x=frame.left, y=y - 7, width=length, height=14, rx=2, class_=f"bar {row.tone}"))
    if row.interval:
        low, high = (scale(end) for end in row.interval)
        parts += [
            svg.line(low, y, high, y, "whisker"),
            *(svg.line(end, y - 4, end, y + 4, "whisker") for end in (low, high)),
        ]
    parts += [svg.line(scale(tick), y - 6, scale(tick), y + 6, "whisker") for tick in row.ticks]
    if row.bound is not None:
        parts.append(svg.line(scale(row.bound), y - 11, scale(row.bound), y + 11, "limit"))
    if row.failed:
        parts.append(cross("cross", place, y))
    elif not bars:
        parts.append(svg.tag("circle", cx=place, cy=y, r=5.5, class_=f"point {row.tone}"))
    bound = "" if row.bound is None else f"; bound {text.significant(row.bound, 4)}"
    return svg.group(*parts, title=f"{row.name}: {row.note}{bound}")


def _names(row: Row, layout: _Layout, index: int) -> list[Markup]:
    frame, y = layout.frame, layout.middle(index)
    if not layout.lines:
        shown = text.short(row.name, svg.characters(frame.left - 12))
        return [
            svg.label(shown, frame.left - 10, y, anchor="end", tone="name"),
            svg.label(row.note, frame.right + 18, y, tone="note"),
        ]
    if layout.lines == 1:
        return [
            svg.label(row.name, frame.left, y - 17, tone="name halo"),
            svg.label(row.note, frame.right, y - 17, anchor="end", tone="note halo"),
        ]
    return [
        svg.label(text.short(row.name, svg.characters(frame.right - frame.left)), frame.left, y - 33, tone="name halo"),
        svg.label(row.note, frame.left, y - 17, tone="note halo"),
    ]
