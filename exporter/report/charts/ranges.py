"""Ranges of the activations along the depth, with the SQNR of each layer below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from exporter.report import text
from exporter.report.charts import svg
from exporter.report.charts.frame import Frame
from exporter.report.charts.scale import Scale, linear
from runtimes.statistics import SQNR_CAP_DB


class _Layer(NamedTuple):
    name: str
    low: float
    high: float
    sqnr: float | None


def ranges_chart(ident: str, rows: Sequence[Mapping[str, Any]], width: float) -> Markup | None:
    """A vertical line from low to high per layer, and a dot for its SQNR; None where no layer has a range.

    Args:
        ident: Unique in the page.
        rows: ``{"layer", "low", "high", "scale", "sqnr_db"}`` each, in order of depth.
        width: In user units.
    """
    layers = _layers(rows)
    if not layers:
        return None
    measured = any(layer.sqnr is not None for layer in layers)
    upper = Frame(48, 34, width - 14, 190)
    lower = Frame(48, 250, width - 14, 350)
    last = lower if measured else upper
    step = (upper.right - upper.left) / len(layers)
    places = [upper.left + step * (index + 0.5) for index in range(len(layers))]
    y = linear([end for layer in layers for end in (layer.low, layer.high)], upper.bottom, upper.top, zero=True)
    parts = [*upper.y_axis(y, "range of the output"), *_bars(layers, places, y, min(0.6 * step, 9.0))]
    if measured:
        parts += _dots(layers, places, lower)
    parts.append(
        svg.label(
            "layers, from the first to the last",
            (last.left + last.right) / 2,
            last.bottom + 18,
            anchor="middle",
            tone="axis-name",
        )
    )
    return svg.chart(ident, (width, last.bottom + 34), "Range and SQNR of each layer", summary(rows), parts)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the chart shows, as a sentence."""
    layers = _layers(rows)
    if not layers:
        return "No layer has a range."
    widest = max(layers, key=lambda layer: layer.high - layer.low)
    return (
        f"{text.plural(len(layers), 'layer')}; the widest range is that of {widest.name}, "
        f"from {text.significant(widest.low)} to {text.significant(widest.high)}."
    )


def _layers(rows: Sequence[Mapping[str, Any]]) -> list[_Layer]:
    found = []
    for row in rows:
        low, high = text.number(row.get("low")), text.number(row.get("high"))
        if low is not None and high is not None:
            found.append(_Layer(str(row.get("layer", "")), low, high, text.number(row.get("sqnr_db"))))
    return found


def _bars(layers: Sequence[_Layer], places: Sequence[float], y: Scale, thickness: float) -> list[Markup]:
    parts = [svg.line(places[0] - 4, y(0.0), places[-1] + 4, y(0.0), "axis")]
    for layer, x in zip(layers, places, strict=True):
        top, bottom = y(layer.high), y(layer.low)
        title = f"{layer.name}: {text.significant(layer.low)} to {text.significant(layer.high)}"
        bar = svg.tag(
            "rect", x=x - thickness / 2, y=top, width=thickness, height=max(bottom - top, 1.0), rx=1, class_="range"
        )
        parts.append(svg.group(bar, title=title))
    return parts


def _dots(layers: Sequence[_Layer], places: Sequence[float], frame: Frame) -> list[Markup]:
    known = [(layer, x, layer.sqnr) for layer, x in zip(layers, places, strict=True) if layer.sqnr is not None]
    y = linear([sqnr for _, _, sqnr in known if abs(sqnr) < SQNR_CAP_DB], frame.bottom, frame.top, wanted=3)
    parts = frame.y_axis(y, "SQNR, dB")
    for layer, x, sqnr in known:
        dot = svg.tag("circle", cx=x, cy=y(sqnr), r=3, class_="dot")
        parts.append(svg.group(dot, title=f"{layer.name}: {text.decibels(sqnr)}"))
    return parts
