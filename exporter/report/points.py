"""One point per runtime for the chart of accuracy against latency against size."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from exporter.report import text
from exporter.report.verdict import Document

PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8")
"""Those that a document may name; anything else is shown as ``other``."""


@dataclass(frozen=True)
class Point:
    """A runtime as the chart shows it.

    Attributes:
        label: Its label.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, or ``other`` where no document tells.
        latency_ms: Median latency, in milliseconds.
        quality: A fraction in [0, 1]: see ``TradeOff.measure``.
        interval: Ends of the 95 % interval of ``quality``; None where it is unknown.
        size: Bytes of the file; None where it is unknown.
        passed: Whether parity passed; None where it was not judged.
    """

    label: str
    precision: str
    latency_ms: float
    quality: float
    interval: tuple[float, float] | None
    size: float | None
    passed: bool | None


@dataclass(frozen=True)
class TradeOff:
    """All points, on common axes.

    Attributes:
        measure: What ``quality`` is: top-1 accuracy where it was evaluated, else agreement with the reference.
        batch: Batch of the latencies.
        points: In the order of the bench document.
        left_out: Labels with a latency but without the measure, or the other way round.
    """

    measure: str
    batch: int | None
    points: tuple[Point, ...]
    left_out: tuple[str, ...]


def trade_off(parity: Document, evaluate: Document, bench: Document) -> TradeOff:
    """Join the documents by label.

    Latencies of one batch are comparable, so one batch is shown: the one with the most runtimes, the smallest among
    equals. Accuracy and agreement never share an axis.
    """
    latencies = _one_batch(text.rows_of(bench))
    accuracy = _by_label(text.rows_of(evaluate), "top1")
    agreement = _by_label([row for row in text.rows_of(parity) if not row.get("simulated")], "top1_agreement")
    judged = {text.label_of(row): row for row in text.rows_of(parity)}
    measured = accuracy if latencies.keys() & accuracy.keys() else {**_reference(parity, latencies), **agreement}
    key = "top1" if measured is accuracy else "top1_agreement"
    named = precisions(parity, list(latencies.values()))
    points = tuple(
        _point(label, named.get(label, "other"), key, row, measured[label], judged.get(label, {}))
        for label, row in latencies.items()
        if label in measured
    )
    drawn = {point.label for point in points}
    return TradeOff(
        measure="Top-1 accuracy" if key == "top1" else "Top-1 agreement with the reference",
        batch=next((row["batch"] for row in latencies.values() if isinstance(row.get("batch"), int)), None),
        points=points,
        left_out=tuple(label for label in {**latencies, **measured} if label not in drawn),
    )


def precisions(parity: Document, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Label -> precision of the rows of any document, as far as the parity document tells."""
    judged = {text.label_of(row): row for row in text.rows_of(parity)}
    reference = text.mapping(parity, "reference")
    found = {}
    for row in rows:
        label = text.label_of(row)
        named = judged.get(label, {}).get("precision") or (_is_of(reference, row) and reference.get("precision"))
        if named in PRECISIONS:
            found[label] = str(named)
    return found


def _by_label(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    return {text.label_of(row): row for row in rows if not row.get("error") and text.number(row.get(key)) is not None}


def _one_batch(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    known = [row for row in rows if (text.number(row.get("p50_ms")) or 0) > 0 and not row.get("error")]
    counts = Counter(text.number(row.get("batch")) or 0 for row in known)
    if not counts:
        return {}
    batch = min(counts, key=lambda each: (-counts[each], each))
    return {text.label_of(row): row for row in known if (text.number(row.get("batch")) or 0) == batch}


def _reference(parity: Document, latencies: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The reference agrees with itself; it has no result of its own in the parity document."""
    reference = text.mapping(parity, "reference")
    return {
        label: {"top1_agreement": 1.0, "bytes": reference.get("bytes")}
        for label, row in latencies.items()
        if _is_of(reference, row)
    }


def _is_of(reference: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row was measured on the reference of the parity document."""
    return bool(reference.get("runtime")) and all(row.get(key) == reference.get(key) for key in ("runtime", "file"))


def _point(
    label: str, precision: str, key: str, timed: dict[str, Any], measured: dict[str, Any], judged: dict[str, Any]
) -> Point:
    low, high = text.pair(measured.get("top1_ci95"))
    passed = judged.get("passed")
    return Point(
        label=label,
        precision=precision,
        latency_ms=float(timed["p50_ms"]),
        quality=float(measured[key]),
        interval=None if low is None or high is None else (low, high),
        size=next(filter(None, (text.number(row.get("bytes")) for row in (timed, judged, measured))), None),
        passed=passed if isinstance(passed, bool) else None,
    )
