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
    frame: Frame
    pitch: float
    stacked: bool

    def middle(self, index: int) -> float:
        return self.frame.top + self.pitch * (index + (0.68 if self.stacked else 0.5))


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
    stacked = width < STACKED_BELOW
    if stacked:
        return _Layout(Frame(8, 6, width - 12, 6 + 44 * len(rows)), 44, stacked)
    names = max(svg.text_width(row.name) for row in rows)
    notes = max(svg.text_width(row.note) for row in rows)
    return _Layout(
        Frame(min(names, 0.3 * width) + 14, 6, width - min(notes, 0.28 * width) - 22, 6 + 30 * len(rows)), 30, stacked
    )


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
    if not layout.stacked:
        shown = text.middle_cut(row.name, svg.characters(frame.left - 12))
        return [
            svg.label(shown, frame.left - 10, y, anchor="end", tone="name"),
            svg.label(row.note, frame.right + 18, y, tone="note"),
        ]
    above = y - 18
    room = frame.right - frame.left - svg.text_width(row.note) - 10
    return [
        svg.label(text.middle_cut(row.name, svg.characters(room)), frame.left, above, tone="name halo"),
        svg.label(row.note, frame.right, above, anchor="end", tone="note halo"),
    ]
