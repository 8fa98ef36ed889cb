"""What the charts of rows show: which number is the value, which the bound, which the interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from exporter.report import text
from exporter.report.charts.rows import Row, rows_chart
from exporter.report.charts.scale import Scale, fitting, linear
from exporter.report.points import PRECISIONS
from runtimes.statistics import SQNR_CAP_DB

Drawer = Callable[[str, float], Markup | None]


def sqnr_rows(rows: Sequence[dict[str, Any]]) -> Drawer:
    """SQNR of the outputs of each runtime against its bound."""
    found = []
    for row in rows:
        value = text.number(row.get("sqnr_db"))
        if value is not None and not row.get("error"):
            bound = text.number(text.mapping(row, "tolerance").get("min_sqnr_db"))
            note, failed = text.decibels(value), row.get("passed") is not True
            found.append(
                Row(text.label_of(row), value, note, bound=bound, tone=_tone(row.get("precision")), failed=failed)
            )
    description = "; ".join(f"{row.name} {row.note}" for row in found)
    return _chart(found, "SQNR of each runtime", description, "SQNR, dB", _decibel_scale)


def agreement_rows(rows: Sequence[dict[str, Any]]) -> Drawer:
    """Top-1 agreement with the interval."""
    return _fractions(rows, "top1_agreement", "top1_ci95", "Agreement of each runtime", "same first answer, %")


def accuracy_rows(rows: Sequence[dict[str, Any]], precisions: Mapping[str, str]) -> Drawer:
    """Top-1 accuracy with the interval."""
    return _fractions(rows, "top1", "top1_ci95", "Top-1 accuracy of each runtime", "top-1, %", precisions)


def latency_rows(rows: Sequence[dict[str, Any]], precisions: Mapping[str, str]) -> Drawer:
    """Median latency as a bar, with marks at the 90th and 99th percentile."""
    found = []
    for row in rows:
        value = text.number(row.get("p50_ms"))
        if value is None or value <= 0 or row.get("error"):
            continue
        tails = [
            tail for key in ("p90_ms", "p99_ms") if (tail := text.number(row.get(key))) is not None and tail >= value
        ]
        note = text.milliseconds(value)
        against = text.ratio(row.get("ratio_to_first"))
        note += "" if against == text.MISSING else f" · {against}"
        note += " · noisy" if row.get("noisy") else ""
        name = text.label_of(row)
        interval = (value, max(tails)) if tails else None
        found.append(Row(name, value, note, interval, tuple(tails), tone=_tone(precisions.get(name))))
    description = "; ".join(f"{row.name} {row.note}" for row in found)
    return _chart(found, "Latency of each runtime", description, "latency, ms", _latency_scale, bars=True)


def _fractions(
    rows: Sequence[dict[str, Any]],
    key: str,
    bounds: str,
    title: str,
    axis: str,
    precisions: Mapping[str, str] | None = None,
) -> Drawer:
    found = []
    for row in rows:
        value = text.number(row.get(key))
        if value is None or row.get("error"):
            continue
        low, high = text.pair(row.get(bounds))
        interval = None if low is None or high is None else (100 * low, 100 * high)
        name = text.label_of(row)
        precision = row.get("precision") or (precisions or {}).get(name)
        failed = row.get("passed") is False
        found.append(Row(name, 100 * value, text.percent(value), interval, tone=_tone(precision), failed=failed))
    description = "; ".join(f"{row.name} {row.note}" for row in found)
    return _chart(found, title, description, axis, _percent_scale)


def _chart(
    rows: Sequence[Row],
    title: str,
    description: str,
    axis: str,
    make_scale: Callable[[Sequence[float], float, float, int], Scale],
    *,
    bars: bool = False,
) -> Drawer:
    def draw(ident: str, width: float) -> Markup | None:
        return rows_chart(
            ident, rows, width, title=title, description=description, axis=axis, make_scale=make_scale, bars=bars
        )

    return draw


def _decibel_scale(values: Sequence[float], start: float, end: float, wanted: int) -> Scale:
    # The cap stands for "identical" and is drawn at the end of the axis.
    return linear([value for value in values if abs(value) < SQNR_CAP_DB], start, end, wanted=wanted)


def _percent_scale(values: Sequence[float], start: float, end: float, wanted: int) -> Scale:
    return linear(values, start, end, limits=(0.0, 100.0), wanted=wanted)


def _latency_scale(values: Sequence[float], start: float, end: float, wanted: int) -> Scale:
    return fitting(values, start, end, zero=True, wanted=wanted)


def _tone(precision: object) -> str:
    return f"tone-{precision}" if precision in PRECISIONS else "tone-other"
