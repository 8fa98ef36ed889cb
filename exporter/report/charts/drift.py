"""Drift: how the error grows along the depth of the network, and where it first leaves its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from exporter.report import text
from exporter.report.charts import svg
from exporter.report.charts.frame import Frame, cross
from exporter.report.charts.scale import Scale, linear
from runtimes.statistics import SQNR_CAP_DB


@dataclass(frozen=True)
class _Layer:
    name: str
    depth: float
    sqnr: float
    bound: float | None
    passed: bool


def drift_chart(ident: str, document: dict[str, Any], width: float) -> Markup | None:
    """A line of SQNR over depth with the bound and the first layer out of it; None where no layer was measured.

    Args:
        ident: Unique in the page.
        document: Drift of one runtime.
        width: In user units.
    """
    layers = _layers(document)
    if not layers:
        return None
    frame = Frame(48, 40, width - 14, 248)
    x = _depths(layers, frame.left + 8, frame.right - 8, wanted=8 if width > 500 else 4)
    y = _decibels(layers, frame)
    first = next((layer for layer in layers if layer.name == first_name(document)), None)
    parts = [
        *frame.x_axis(x, "depth of the layer"),
        *frame.y_axis(y, "SQNR, dB"),
        *_bound(layers, x, y),
        svg.path([(x(layer.depth), y(layer.sqnr)) for layer in layers], "line"),
        *(_mark(layer, x, y) for layer in layers),
        *(_first(first, x, y, frame) if first else ()),
    ]
    return svg.chart(ident, (width, 290), "SQNR of each layer along the depth", summary(document), parts)


def summary(document: dict[str, Any]) -> str:
    """What the chart shows, as a sentence."""
    layers = _layers(document)
    if not layers:
        return "No layer was measured."
    worst = min(layers, key=lambda layer: layer.sqnr)
    name = first_name(document)
    tail = f"The first layer out of its bound is {name}." if name else "Every layer is within its bound."
    if not any(layer.bound is not None for layer in layers):
        tail = "No layer has a bound."
    return (
        f"{text.plural(len(layers), 'layer')}; the lowest SQNR is {text.decibels(worst.sqnr)}, at {worst.name}. {tail}"
    )


def first_name(document: dict[str, Any]) -> str | None:
    """Name of the first layer out of its bound: a document gives the name or the whole row."""
    first = document.get("first")
    found = first.get("layer") if isinstance(first, dict) else first
    return str(found) if found is not None else None


def _layers(document: dict[str, Any]) -> list[_Layer]:
    found = []
    for index, row in enumerate(text.rows_of(document, "layers")):
        sqnr, depth = text.number(row.get("sqnr_db")), text.number(row.get("depth"))
        if sqnr is not None:
            name, bound = str(row.get("layer", "")), text.number(row.get("bound_db"))
            found.append(_Layer(name, index if depth is None else depth, sqnr, bound, row.get("passed") is not False))
    return sorted(found, key=lambda layer: layer.depth)


def _depths(layers: Sequence[_Layer], start: float, end: float, wanted: int) -> Scale:
    """From the first layer to the last. They are counted: no tick lies between two of them."""
    rough = linear([layer.depth for layer in layers], start, end, wanted=wanted)
    low, high = layers[0].depth, layers[-1].depth
    if low == high:
        low, high = low - 1, high + 1
    ticks = tuple(tick for tick in rough.ticks if tick == int(tick) and low <= tick <= high)
    return Scale(low, high, start, end, ticks)


def _decibels(layers: Sequence[_Layer], frame: Frame) -> Scale:
    """Holds every layer and some room below the bound."""
    # Identical outputs have no finite ratio; their cap would flatten all that can be seen.
    values = [layer.sqnr for layer in layers if abs(layer.sqnr) < SQNR_CAP_DB]
    values += [layer.bound for layer in layers if layer.bound is not None]
    room = 0.1 * (max(values) - min(values)) if values else 0.0
    return linear([*values, min(values, default=0.0) - room], frame.bottom, frame.top)


def _bound(layers: Sequence[_Layer], x: Scale, y: Scale) -> list[Markup]:
    known = [(x(layer.depth), y(layer.bound)) for layer in layers if layer.bound is not None]
    if not known:
        return []
    points = known if len(known) > 1 else [(x.start, known[0][1]), (x.end, known[0][1])]
    below = [*points, (points[-1][0], y.start), (points[0][0], y.start)]
    return [
        svg.path(below, "forbidden"),
        svg.path(points, "bound"),
        svg.label("bound", points[0][0] + 4, points[0][1] + 9, tone="bound-name"),
    ]


def _mark(layer: _Layer, x: Scale, y: Scale) -> Markup:
    place = (x(layer.depth), y(layer.sqnr))
    bound = "" if layer.bound is None else f", bound {text.decibels(layer.bound)}"
    title = f"{layer.name}: {text.decibels(layer.sqnr)}{bound}"
    if not layer.passed:
        return svg.group(cross("cross", *place, size=4), title=title)
    return svg.group(svg.tag("circle", cx=place[0], cy=place[1], r=2.5, class_="dot"), title=title)


def _first(layer: _Layer, x: Scale, y: Scale, frame: Frame) -> list[Markup]:
    place = x(layer.depth)
    note = f"first out of its bound: {layer.name}, {text.decibels(layer.sqnr)}"
    if svg.text_width(note) > frame.right - frame.left:
        note = f"{layer.name}, {text.decibels(layer.sqnr)}"
    shown = text.middle_cut(note, svg.characters(frame.right - frame.left))
    half = svg.text_width(shown) / 2
    middle = min(max(place, frame.left + half), frame.right - half)
    return [
        svg.line(place, frame.top - 4, place, frame.bottom, "first"),
        svg.tag("circle", cx=place, cy=y(layer.sqnr), r=8, class_="ring"),
        svg.label(shown, middle, frame.top - 13, anchor="middle", tone="first-name halo", full=note),
    ]
