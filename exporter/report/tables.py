"""The documents as tables: what every chart shows, and what no chart does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exporter.report import text
from exporter.report.blocks import Cell, Column, Table, name_cell, number_cell
from exporter.report.charts.confusion import counts_of
from exporter.report.model import Report
from exporter.report.points import TradeOff

_MOST_ROWS = 1000
"""Rows of a table; the data in the page hold the rest."""


def parity_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row per judged runtime."""
    columns = _columns("Runtime", "Verdict", "#SQNR", "#Decision SQNR", "#Largest ULP", "#Agreement", "#Images")
    cells = tuple(
        (
            Cell(text.label_of(row), note=_judged_as(row), tone="name"),
            _verdict(row),
            number_cell(row.get("sqnr_db"), text.decibels, _bound(row, "min_sqnr_db", text.decibels)),
            number_cell(row.get("decision_sqnr_db"), text.decibels, _bound(row, "min_decision_db", text.decibels)),
            number_cell(row.get("max_ulp"), text.significant, _bound(row, "max_ulp", text.exact, "at most")),
            number_cell(row.get("top1_agreement"), text.percent, _interval(row.get("top1_ci95"))),
            number_cell(row.get("n"), text.count),
        )
        for row in rows
    )
    return Table("table-parity", "Every runtime against its signal", columns, cells)


def tolerance_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row per bound that was applied, with its reason; runtimes of one bound share a row."""
    shared: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        bounds = row.get("tolerance")
        if not isinstance(bounds, dict):
            continue
        key = (
            text.decibels(bounds.get("min_sqnr_db")),
            text.decibels(bounds.get("min_decision_db")),
            text.exact(bounds.get("max_ulp")),
            text.percent(bounds.get("min_top1")),
            text.plain(bounds.get("reason")),
        )
        shared.setdefault(key, []).append(text.label_of(row))
    cells = tuple(
        (Cell(text.listing(names, 12), tone="name"), *(Cell(part) for part in key[:-1]), Cell(key[-1], tone="prose"))
        for key, names in shared.items()
    )
    columns = _columns(
        "Runtimes", "#SQNR at least", "#Decision SQNR at least", "#ULP at most", "#Agreement at least", "Reason"
    )
    used = [index for index in range(len(columns)) if any(row[index].shown != text.MISSING for row in cells)]
    kept = tuple(tuple(row[index] for index in used) for row in cells)
    return Table("table-tolerances", "Bounds and their reasons", tuple(columns[index] for index in used), kept)


def drift_table(ident: str, document: dict[str, Any]) -> Table:
    """A row per layer."""
    cells = tuple(
        (
            number_cell(row.get("depth"), text.count),
            name_cell(row.get("layer")),
            Cell(text.plain(row.get("op"))),
            number_cell(row.get("sqnr_db"), text.decibels),
            number_cell(row.get("bound_db"), text.decibels),
            number_cell(row.get("mean_abs"), text.significant),
            number_cell(row.get("max_abs"), text.significant),
            number_cell(row.get("rms"), text.significant),
            _verdict(row),
        )
        for row in text.rows_of(document, "layers")[:_MOST_ROWS]
    )
    columns = _columns(
        "#Depth", "Layer", "Operator", "#SQNR", "#Bound", "#Mean error", "#Largest error", "#RMS", "Verdict"
    )
    return Table(ident, "Drift, layer by layer", columns, cells, folded=True)


def accuracy_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row per runtime."""
    columns = _columns(
        "Runtime",
        "#Top-1",
        "#Top-5",
        "#Changed answers",
        "#Only the reference right",
        "#Only this right",
        "#McNemar p",
        "#Images",
    )
    cells = tuple(
        (
            name_cell(text.label_of(row)),
            number_cell(row.get("top1"), text.percent, _interval(row.get("top1_ci95"))),
            number_cell(row.get("top5"), text.percent, _interval(row.get("top5_ci95"))),
            number_cell(row.get("changed"), text.count),
            number_cell(row.get("only_reference_right"), text.count),
            number_cell(row.get("only_this_right"), text.count),
            number_cell(row.get("mcnemar_p"), text.significant),
            number_cell(row.get("n"), text.count, f"error: {row['error']}" if row.get("error") else ""),
        )
        for row in rows
    )
    return Table("table-accuracy", "Accuracy on labelled images", columns, cells)


def class_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Accuracy on each class, a column per runtime."""
    known = {text.label_of(row): text.rows_of(row, "per_class") for row in rows if text.rows_of(row, "per_class")}
    by_label = {label: {_class_name(each): each for each in found} for label, found in known.items()}
    classes = list(dict.fromkeys(name for found in by_label.values() for name in found))[:_MOST_ROWS]
    cells = []
    for name in classes:
        images = next((found[name].get("n") for found in by_label.values() if name in found), None)
        values = (number_cell(found.get(name, {}).get("top1"), text.percent) for found in by_label.values())
        cells.append((name_cell(name), number_cell(images, text.count), *values))
    columns = (*_columns("Class", "#Images"), *(Column(label, numeric=True) for label in by_label))
    return Table("table-classes", "Top-1 accuracy on each class", columns, tuple(cells), folded=True)


def _class_name(row: Mapping[str, Any]) -> str:
    return text.plain(row.get("name") or row.get("class"))


def confusion_table(ident: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Pairs of answers, the most frequent first."""
    ranked = sorted(counts_of(rows).items(), key=lambda item: (-item[1], item[0]))[:_MOST_ROWS]
    cells = tuple((name_cell(a), name_cell(b), number_cell(count, text.count)) for (a, b), count in ranked)
    return Table(ident, "Which answers became which", _columns("From", "To", "#Images"), cells, folded=True)


def changes_table(ident: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Images with another answer."""
    cells = tuple(
        tuple(name_cell(row.get(key)) for key in ("file", "label", "from", "to")) for row in rows[:_MOST_ROWS]
    )
    return Table(
        ident, "Images whose answer changed", _columns("Image", "True class", "From", "To"), cells, folded=True
    )


def latency_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row per runtime and batch."""
    columns = _columns(
        "Runtime",
        "#Batch",
        "#Median",
        "#p90",
        "#p99",
        "#Smallest",
        "#Images/s",
        "#Against the first",
        "#Spread",
        "#Memory",
        "#Cold start",
        "#File",
        "#Threads",
    )
    cells = tuple(
        (
            name_cell(text.label_of(row)),
            number_cell(row.get("batch"), text.count),
            number_cell(row.get("p50_ms"), text.milliseconds, f"error: {row['error']}" if row.get("error") else ""),
            number_cell(row.get("p90_ms"), text.milliseconds),
            number_cell(row.get("p99_ms"), text.milliseconds),
            number_cell(row.get("min_ms"), text.milliseconds),
            number_cell(row.get("images_per_s"), text.significant),
            Cell(text.ratio(row.get("ratio_to_first")), text.number(text.mapping(row, "ratio_to_first").get("ratio"))),
            number_cell(row.get("spread"), lambda value: text.percent(value, 1), "noisy" if row.get("noisy") else ""),
            number_cell(row.get("peak_rss_mb"), text.megabytes),
            number_cell(row.get("cold_start_ms"), text.milliseconds),
            number_cell(row.get("bytes"), text.size),
            number_cell(row.get("threads"), text.count),
        )
        for row in rows
    )
    return Table("table-latency", "Latency, throughput and memory", columns, cells)


def points_table(found: TradeOff) -> Table:
    """What the bubbles are."""
    cells = tuple(
        (
            name_cell(point.label),
            Cell(point.precision),
            number_cell(point.latency_ms, text.milliseconds),
            number_cell(point.quality, text.percent, _interval(point.interval)),
            number_cell(point.size, text.size),
        )
        for point in found.points
    )
    columns = _columns("Runtime", "Precision", "#Median latency", f"#{found.measure}", "#File")
    return Table("table-trade-off", "The points of the chart", columns, cells, folded=True)


def layers_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row per layer."""
    cells = tuple(
        (
            name_cell(row.get("layer")),
            number_cell(row.get("low"), text.significant),
            number_cell(row.get("high"), text.significant),
            number_cell(row.get("scale"), text.significant),
            number_cell(row.get("sqnr_db"), text.decibels),
        )
        for row in rows[:_MOST_ROWS]
    )
    return Table(
        "table-layers",
        "Range, scale and SQNR of each layer",
        _columns("Layer", "#Low", "#High", "#Scale", "#SQNR"),
        cells,
        folded=True,
    )


def files_table(report: Report) -> Table | None:
    """The model files that the documents name, with their hashes; None where they name none."""
    files: dict[tuple[str, str], Any] = {}
    found = [
        text.mapping(report.parity, "reference"),
        *(row for _, each in report.documents() for row in text.rows_of(each)),
    ]
    for row in found:
        if row.get("file"):
            key = str(row["file"]), str(row.get("sha256") or "")
            files[key] = row.get("bytes") or files.get(key)
    hashed = {name for name, digest in files if digest}
    cells = tuple(
        (name_cell(name), number_cell(length, text.size), Cell(digest or text.MISSING, tone="name"))
        for (name, digest), length in files.items()
        if digest or name not in hashed
    )
    return Table("table-files", "Files and hashes", _columns("File", "#Size", "SHA-256"), cells) if cells else None


def _columns(*titles: str) -> tuple[Column, ...]:
    """Columns by their titles; a leading ``#`` marks numbers."""
    return tuple(Column(title.removeprefix("#"), title.startswith("#")) for title in titles)


def _verdict(row: Mapping[str, Any]) -> Cell:
    if row.get("error"):
        return Cell("Not run", 1.0, str(row["error"]), "failed")
    if row.get("passed") is True:
        return Cell("Passed", 2.0, "", "passed")
    return Cell("Failed", 0.0, str(row.get("finding") or ""), "failed")


def _judged_as(row: Mapping[str, Any]) -> str:
    against = f"against {row['against']}" if row.get("against") else ""
    return ", ".join(filter(None, (str(row.get("precision") or ""), against)))


def _bound(row: Mapping[str, Any], key: str, show: Any, word: str = "at least") -> str:
    bounds = row.get("tolerance")
    known = bounds.get(key) if isinstance(bounds, dict) else None
    return "" if text.number(known) is None else f"{word} {show(known)}"


def _interval(bounds: object) -> str:
    shown = text.interval(bounds)
    return "" if shown == text.MISSING else shown
