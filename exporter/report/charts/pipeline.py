"""The way of the model as boxes and arrows, each stage with its error."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from exporter.report import text
from exporter.report.charts import svg
from exporter.report.charts.frame import cross

_GAP, _HEIGHT, _ROW_GAP = 34.0, 92.0, 34.0


def pipeline_chart(ident: str, stages: Sequence[Mapping[str, Any]], width: float) -> Markup | None:
    """The stages from left to right, in as many lines as they need; None where there are none.

    Args:
        ident: Unique in the page.
        stages: ``{"name", "sqnr_db", "passed", "note"}`` each, in order.
        width: In user units.
    """
    if not stages:
        return None
    columns = 1 if width < 500 else min(4, len(stages)) if len(stages) != 5 else 3
    box = (width - 2 - _GAP * (columns - 1)) / columns if columns > 1 else width - 2
    parts: list[Markup] = []
    for index, stage in enumerate(stages):
        x, y = _corner(index, columns, box)
        if index:
            parts.append(_arrow(_corner(index - 1, columns, box), (x, y), box))
        parts.append(_stage(stage, x, y, box))
    lines = -(-len(stages) // columns)
    height = lines * (_HEIGHT + _ROW_GAP) - _ROW_GAP + 2
    return svg.chart(ident, (width, height), "The stages of the model and the error of each", summary(stages), parts)


def summary(stages: Sequence[Mapping[str, Any]]) -> str:
    """What the chart shows, as a sentence."""
    told = (
        f"{stage.get('name', 'unnamed')} ({text.decibels(stage.get('sqnr_db'))}, {_verdict(stage)})" for stage in stages
    )
    return f"{text.plural(len(stages), 'stage')}: {', then '.join(told)}."


def _verdict(stage: Mapping[str, Any]) -> str:
    return {True: "passed", False: "failed"}.get(stage.get("passed"), "not judged")  # type: ignore[arg-type]


def _corner(index: int, columns: int, box: float) -> tuple[float, float]:
    return 1 + index % columns * (box + _GAP), 1 + index // columns * (_HEIGHT + _ROW_GAP)


def _stage(stage: Mapping[str, Any], x: float, y: float, box: float) -> Markup:
    name, note = str(stage.get("name", "unnamed")), text.plain(stage["note"]) if stage.get("note") else ""
    passed = stage.get("passed")
    tone = {True: " stage-passed", False: " stage-failed"}.get(passed, "")  # type: ignore[arg-type]
    room = svg.characters(box - 24)
    sqnr = "" if text.number(stage.get("sqnr_db")) is None else text.decibels(stage["sqnr_db"])
    lines = textwrap.wrap(note, room, max_lines=2, placeholder="…") if note else []
    parts = [
        svg.tag("rect", x=x, y=y, width=box, height=_HEIGHT, rx=8, class_=f"stage{tone}"),
        svg.label(text.middle_cut(name, room - 5), x + 14, y + 20, tone="stage-name"),
        svg.label(sqnr or ("reference" if passed is None else text.MISSING), x + 14, y + 42, tone="stage-value"),
        *(svg.label(part, x + 14, y + 63 + 15 * row, tone="note") for row, part in enumerate(lines)),
        _sign(passed, x + box - 18, y + 20),
    ]
    return svg.group(*parts, title=": ".join(filter(None, (name, sqnr, note))))


def _sign(passed: object, x: float, y: float) -> Markup:
    if passed is True:
        return svg.path([(x - 5, y), (x - 1.5, y + 4), (x + 5, y - 4)], "tick-sign")
    return cross("cross", x, y) if passed is False else Markup("")


def _arrow(start: tuple[float, float], end: tuple[float, float], box: float) -> Markup:
    if start[1] == end[1]:
        y = start[1] + _HEIGHT / 2
        tip = end[0] - 3
        return svg.group(
            svg.line(start[0] + box + 4, y, tip, y, "arrow"),
            svg.path([(tip - 6, y - 4), (tip, y), (tip - 6, y + 4)], "arrow"),
        )
    x, tip = end[0] + box / 2, end[1] - 3
    from_x, from_y = start[0] + box / 2, start[1] + _HEIGHT + 4
    bend = from_y + (tip - from_y) / 2 - 2
    return svg.group(
        svg.path(
            [(from_x, from_y), (from_x, bend), (x, bend), (x, tip)] if from_x != x else [(x, from_y), (x, tip)], "arrow"
        ),
        svg.path([(x - 4, tip - 6), (x, tip), (x + 4, tip - 6)], "arrow"),
    )
