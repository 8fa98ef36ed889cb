"""Accuracy against latency against size: a bubble per runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from exporter.report import text
from exporter.report.charts import svg
from exporter.report.charts.frame import Frame
from exporter.report.charts.labels import Box, Disc, Placed, place
from exporter.report.charts.scale import Scale, fitting, linear
from exporter.report.points import Point, TradeOff

_SMALLEST, _LARGEST, _LARGEST_NARROW = 5.0, 20.0, 12.0
_KEY_PITCH = 20.0


def trade_off_chart(ident: str, found: TradeOff, width: float) -> Markup | None:
    """The bubbles with their names; on a narrow chart numbers stand for them, with a key below.

    None where no runtime has both a latency and an accuracy.

    Args:
        ident: Unique in the page.
        found: The points.
        width: In user units.
    """
    if not found.points:
        return None
    narrow = width < 500
    frame = Frame(56, 40, width - 16, 300 if narrow else 380)
    x = fitting(
        [point.latency_ms for point in found.points],
        frame.left + 22,
        frame.right - 22,
        zero=False,
        wanted=4 if narrow else 7,
    )
    y = _quality_axis(found.points, frame)
    largest = max((point.size or 0.0 for point in found.points), default=0.0)
    discs = [
        Disc(
            x(point.latency_ms),
            y(100 * point.quality),
            _radius(point, largest, _LARGEST_NARROW if narrow else _LARGEST),
        )
        for point in found.points
    ]
    names = [str(index + 1) if narrow else text.short(point.label, 34) for index, point in enumerate(found.points)]
    places = place(
        discs, [svg.text_width(name) + 4 for name in names], Box(frame.left, frame.top, frame.right, frame.bottom)
    )
    # The largest first, so that no bubble hides a smaller one.
    order = sorted(range(len(discs)), key=lambda index: -discs[index].radius)
    batch = "" if found.batch is None else f" at batch {found.batch}"
    parts = [
        *frame.x_axis(x, f"median latency{batch}, ms"),
        *frame.y_axis(y, f"{found.measure}, %"),
        *(_interval(found.points[index], discs[index], y) for index in order),
        *(_leader(discs[index], places[index]) for index in order if places[index].distant),
        *(_bubble(found.points[index], discs[index]) for index in order),
        *(_name(name, placed, point.label) for name, placed, point in zip(names, places, found.points, strict=True)),
        *(_key(found.points, frame) if narrow else ()),
    ]
    height = frame.bottom + 44 + (_KEY_PITCH * len(found.points) + 4 if narrow else 0)
    return svg.chart(ident, (width, height), f"{found.measure} against latency and size", summary(found), parts)


def summary(found: TradeOff) -> str:
    """What the chart shows, as a sentence."""
    if not found.points:
        return "No runtime has both a latency and an accuracy."
    fastest = min(found.points, key=lambda point: point.latency_ms)
    best = max(found.points, key=lambda point: point.quality)
    return (
        f"{text.plural(len(found.points), 'runtime')}. The fastest is {text.short(fastest.label)} with "
        f"{text.milliseconds(fastest.latency_ms)} and {text.percent(fastest.quality)}; the highest is "
        f"{text.short(best.label)} with {text.percent(best.quality)} and {text.milliseconds(best.latency_ms)}."
    )


def _quality_axis(points: Sequence[Point], frame: Frame) -> Scale:
    ends = [100 * value for point in points for value in (point.quality, *(point.interval or ()))]
    return linear(ends, frame.bottom - 22, frame.top + 22, limits=(0.0, 100.0))


def _radius(point: Point, largest: float, most: float) -> float:
    """The area is in proportion to the bytes."""
    if point.size is None or largest <= 0:
        return _SMALLEST
    return max(most * math.sqrt(point.size / largest), _SMALLEST)


def _interval(point: Point, disc: Disc, y: Scale) -> Markup:
    if point.interval is None:
        return Markup("")
    low, high = (y(100 * end) for end in point.interval)
    caps = (svg.line(disc.x - 4, end, disc.x + 4, end, "whisker faint") for end in (low, high))
    return svg.group(svg.line(disc.x, low, disc.x, high, "whisker faint"), *caps)


def _bubble(point: Point, disc: Disc) -> Markup:
    tone = f"bubble tone-{point.precision}" + (" bubble-failed" if point.passed is False else "")
    verdict = {True: "", False: "; parity failed", None: ""}[point.passed]
    title = (
        f"{point.label}, {point.precision}: {text.milliseconds(point.latency_ms)}, {text.percent(point.quality)}, "
        f"{text.size(point.size)}{verdict}"
    )
    centre = svg.tag("circle", cx=disc.x, cy=disc.y, r=1.6, class_="centre")
    return svg.group(svg.tag("circle", cx=disc.x, cy=disc.y, r=disc.radius, class_=tone), centre, title=title)


def _name(name: str, placed: Placed, full: str) -> Markup:
    box = placed.box
    return svg.label(
        name, (box.left + box.right) / 2, (box.top + box.bottom) / 2, anchor="middle", tone="name halo", full=full
    )


def _leader(disc: Disc, placed: Placed) -> Markup:
    box = placed.box
    x = min(max(disc.x, box.left), box.right)
    y = min(max(disc.y, box.top), box.bottom)
    return svg.line(disc.x, disc.y, x, y, "leader")


def _key(points: Sequence[Point], frame: Frame) -> list[Markup]:
    top = frame.bottom + 54
    room = svg.characters(frame.right - 44)
    parts = []
    for index, point in enumerate(points):
        y = top + index * _KEY_PITCH
        parts.append(svg.label(str(index + 1), 18, y, anchor="end", tone="name"))
        parts.append(svg.tag("circle", cx=30, cy=y, r=5, class_=f"bubble tone-{point.precision}"))
        parts.append(svg.label(text.short(point.label, room), 44, y, tone="name", full=point.label))
    return parts
