"""The sections of the page, from the documents; those that would be empty are left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from markupsafe import Markup

from exporter.report import tables, text
from exporter.report.blocks import Block, Gallery, Pairs, Section, Text, Thumbnail, picture
from exporter.report.charts import confusion, drift, ranges, tradeoff
from exporter.report.charts.pipeline import pipeline_chart
from exporter.report.measures import accuracy_rows, agreement_rows, latency_rows, sqnr_rows
from exporter.report.model import Report
from exporter.report.points import PRECISIONS, precisions

_SHOWN: Final = 3
"""Charts of one kind that are open; the reader opens the others."""

_DRIFT_KEY: Final = (("key-bound", "bound"), ("key-cross", "out of its bound"))
_IMAGE: Final = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")


def sections_of(report: Report) -> tuple[Section, ...]:
    """All sections that have something to show, in reading order."""
    makers: tuple[Callable[[Report], Section | None], ...] = (
        _pipeline, _trade_off, _parity, _drift, _accuracy, _images, _latency, _layers, _tolerances, _environment,
    )  # fmt: skip
    found = (make(report) for make in makers)
    return tuple(section for section in found if section and section.blocks)


def _pipeline(report: Report) -> Section:
    blocks = picture(
        "chart-pipeline", "Each stage and its SQNR", lambda ident, width: pipeline_chart(ident, report.stages, width)
    )
    lead = "Every stage is compared with the first. SQNR is signal over error: 20 dB more is a tenth of the error."
    return Section("pipeline", "The way of the model", lead, blocks)


def _trade_off(report: Report) -> Section:
    found = report.trade_off
    key = _precision_key({point.precision for point in found.points})
    blocks: list[Block] = [
        *picture(
            "chart-trade-off",
            tradeoff.summary(found),
            lambda ident, width: tradeoff.trade_off_chart(ident, found, width),
            key,
        )
    ]
    if blocks and found.left_out:
        blocks.append(Text(f"Not drawn, for want of a latency or an accuracy: {text.listing(found.left_out, 8)}."))
    if blocks:
        blocks.append(tables.points_table(found))
    lead = "Further left is faster, higher is more accurate, a smaller bubble is a smaller file."
    return Section("trade-off", "Accuracy, latency, size", lead, tuple(blocks))


def _parity(report: Report) -> Section | None:
    rows = text.rows_of(report.parity)
    if report.parity is None:
        return None
    reference = text.mapping(report.parity, "reference")
    lead = (
        "Each runtime is held against its signal on the same images. "
        f"The reference is {text.plain(reference.get('runtime', 'not named'))}."
    )
    key = (*_precision_key({str(row.get("precision")) for row in rows}), ("key-limit", "bound"))
    blocks: list[Block] = [
        *picture("chart-sqnr", "SQNR of the outputs; it may not lie left of the bound", sqnr_rows(rows), key),
        *picture(
            "chart-agreement",
            "Images with the same first answer, with the 95 % interval",
            agreement_rows(rows),
            key[:-1],
        ),
        tables.parity_table(rows) if rows else Text("Nothing was compared."),
    ]
    return Section("parity", "Does it still compute the same?", lead, tuple(blocks))


def _drift(report: Report) -> Section:
    blocks: list[Block] = []
    said: set[str] = set()
    # Those with a fault first: they are what this section is read for.
    found = sorted(enumerate(text.rows_of(report.parity, "drift")), key=lambda item: drift.first_name(item[1]) is None)
    for place, (index, document) in enumerate(found):
        title = f"{text.short(text.label_of(document))}: {drift.summary(document)}"
        chart = _drawer(drift.drift_chart, document)
        blocks += picture(f"chart-drift-{index}", title, chart, _DRIFT_KEY, folded=place >= _SHOWN)
        if text.rows_of(document, "layers"):
            blocks.append(tables.drift_table(f"table-drift-{index}", document))
        told = str(document.get("probed") or "")
        if told and told not in said:
            said.add(told)
            blocks.append(Text(f"{told[:1].upper()}{told[1:].rstrip('.')}."))
    lead = "The error of each layer's output along the depth: where it first falls below the bound, the fault lies."
    return Section("drift", "Where the error comes from", lead, tuple(blocks))


def _accuracy(report: Report) -> Section | None:
    rows, told = text.rows_of(report.evaluate), text.measured_or_failed(report.evaluate)
    if report.evaluate is None:
        return None
    known = precisions(report.parity, rows)
    key = _precision_key(set(known.values()))
    blocks: list[Block] = [
        *picture(
            "chart-accuracy",
            "Top-1 accuracy with the 95 % interval",
            accuracy_rows(rows, known),
            key,
        ),
        tables.accuracy_table(told) if told else Text("No runtime was evaluated."),
    ]
    if any(text.rows_of(row, "per_class") for row in rows):
        blocks.append(tables.class_table(rows))
    drawn = 0
    for index, row in enumerate(rows):
        found = _changes(index, row, folded=drawn >= _SHOWN)
        drawn += any(block.kind == "picture" for block in found)
        blocks += found
    lead = "On labelled images. Where two intervals overlap, McNemar's test on the same images tells more than they do."
    return Section("accuracy", "Is it still right?", lead, tuple(blocks))


def _changes(index: int, row: dict[str, Any], *, folded: bool) -> list[Block]:
    pairs, changes = text.rows_of(row, "confusion"), text.rows_of(row, "changes")
    name = text.short(text.label_of(row))
    title = f"{name}: {confusion.summary(pairs)}"
    chart = _drawer(confusion.confusion_chart, pairs)
    blocks: list[Block] = [*picture(f"chart-confusion-{index}", title, chart, folded=folded)]
    if pairs:
        blocks.append(tables.confusion_table(f"table-confusion-{index}", pairs))
    if changes:
        blocks.append(tables.changes_table(f"table-changes-{index}", changes))
    return blocks


def _images(report: Report) -> Section:
    blocks = (Gallery(tuple(_thumbnail(row) for row in report.images)),) if report.images else ()
    lead = "What the reference answers, and what the runtime answers instead."
    return Section("images", "Images whose answer changed", lead, blocks)


def _thumbnail(row: Mapping[str, Any]) -> Thumbnail:
    source = str(row.get("image") or "")
    return Thumbnail(
        # Nothing but an embedded picture: a page that fetches something is no longer self-contained.
        source=source if _IMAGE.fullmatch(source) else "",
        file=text.plain(row.get("file")),
        truth=text.plain(row.get("label")),
        before=text.plain(row.get("from")),
        after=text.plain(row.get("to")),
        runtime=str(row.get("runtime") or ""),
    )


def _latency(report: Report) -> Section | None:
    rows, told = text.rows_of(report.bench), text.measured_or_failed(report.bench)
    if report.bench is None:
        return None
    known = precisions(report.parity, rows)
    blocks: list[Block] = []
    batches = sorted({text.number(row.get("batch")) or 0.0 for row in rows})
    for index, batch in enumerate(batches):
        chosen = [row for row in rows if (text.number(row.get("batch")) or 0.0) == batch]
        key = _precision_key({known.get(text.label_of(row), "other") for row in chosen})
        title = f"Batch {text.count(batch)}: median, with marks at the 90th and 99th percentile" if batch else "Latency"
        blocks += picture(
            f"chart-latency-{index}",
            title,
            latency_rows(chosen, known),
            (*key, ("key-whisker", "median to p90 and p99")),
        )
    if any(row.get("noisy") for row in rows):
        blocks.append(Text("Small differences mean nothing in rows marked noisy: they varied much, or had few rounds."))
    blocks.append(tables.latency_table(told) if told else Text("Nothing was timed."))
    lead = "Beside the median: time over that of the first runtime, with the 95 % interval where there is one."
    return Section("latency", "How fast is it?", lead, tuple(blocks))


def _layers(report: Report) -> Section:
    blocks: list[Block] = [
        *picture(
            "chart-layers",
            ranges.summary(report.layers),
            lambda ident, width: ranges.ranges_chart(ident, report.layers, width),
        )
    ]
    if report.layers:
        blocks.append(tables.layers_table(report.layers))
    lead = "The range that each layer's output was given, and how well 8 bits hold it."
    return Section("layers", "Ranges of the layers", lead, tuple(blocks))


def _tolerances(report: Report) -> Section:
    table = tables.tolerance_table(text.rows_of(report.parity))
    lead = "How much each runtime may differ from its signal, and why."
    return Section("tolerances", "Tolerances", lead, (table,) if table.rows else ())


def _environment(report: Report) -> Section:
    blocks: list[Block] = [table] if (table := tables.files_table(report)) else []
    # Documents of one run agree in most of this: what they share is shown once.
    shared: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for name, document in report.documents():
        used = {text.label_of(row): row["used"] for row in text.rows_of(document) if row.get("used")}
        told = {
            "Images": _flat(text.mapping(document, "data")),
            "Machine and versions": _flat(text.mapping(document, "environment")),
            "Read back from the runtimes": tuple((key, text.plain(value)) for key, value in used.items()),
        }
        for title, pairs in told.items():
            shared.setdefault((title, pairs), []).append(name)
    blocks += [Pairs(f"{title} ({', '.join(names)})", pairs) for (title, pairs), names in shared.items() if pairs]
    return Section("environment", "Files and environment", "What it takes to measure this again.", tuple(blocks))


def _flat(values: dict[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key} · ")
        else:
            rows.append((f"{prefix}{key}", text.plain(value)))
    return tuple(rows)


def _drawer(draw: Callable[[str, Any, float], Markup | None], content: Any) -> Callable[[str, float], Markup | None]:
    return lambda ident, width: draw(ident, content, width)


def _precision_key(found: set[str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"tone-{name}", name.upper()) for name in PRECISIONS if name in found)
