"""Markdown for a pull request: the verdict, a compact table, and the rest folded."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Final

from exporter.report import tables, text
from exporter.report.blocks import Table
from exporter.report.charts import drift
from exporter.report.model import Report
from exporter.report.points import TradeOff

_SIGNS: Final = {"passed": "✅", "failed": "❌", "unproven": "➖"}
_RANKS: Final = ("measured", "passed", "failed", "error")
_ACTIVE: Final = re.compile(r"([\\`*_\[\]|~#@]|:(?=//|\w+:))")
"""What Markdown, or what a code forge makes of it (mentions, references, emoji, bare addresses), would act on."""


def render_markdown(report: Report) -> str:
    """The text, in GitHub's flavour of Markdown; names from documents are inert in it."""
    verdict = report.verdict
    parts = [
        f"## {_SIGNS[verdict.status]} {_inert(report.title)}",
        f"**{_inert(verdict.headline)}** {_inert(verdict.detail)}".strip(),
    ]
    bad = [outcome for outcome in report.outcomes() if outcome.status in ("failed", "error")]
    if bad:
        parts.append("\n".join(f"- **{_inert(each.name)}** ({each.document}): {_inert(each.finding)}" for each in bad))
    if compact := _compact(report):
        parts.append(compact)
    parts += [_folded(table.caption, _table(table)) for table in _details(report)]
    if drifts := _drifts(report):
        parts.append(_folded("Drift along the depth", drifts))
    if report.date:
        parts.append(f"<sub>{_inert(report.date)}</sub>")
    return "\n\n".join(parts).encode("utf-8", "replace").decode("utf-8") + "\n"


def _compact(report: Report) -> str:
    parity = {text.label_of(row): row for row in text.rows_of(report.parity)}
    accuracy = {text.label_of(row): row for row in text.measured_or_failed(report.evaluate)}
    timed = _timed(report.trade_off, report)
    labels = list(dict.fromkeys([*parity, *accuracy, *timed]))
    if not labels:
        return ""
    # The worst of a model's outcomes: one batch size can fail where another was measured.
    ranked = sorted(report.outcomes(), key=lambda outcome: _RANKS.index(outcome.status))
    statuses = {outcome.name: outcome.status for outcome in ranked}
    words = {"passed": "✅", "failed": "❌ failed", "error": "❌ not run", "measured": ""}
    rows = [
        (
            _inert(label),
            words[statuses.get(label, "measured")],
            text.decibels(parity.get(label, {}).get("sqnr_db")),
            text.percent(parity.get(label, {}).get("top1_agreement")),
            text.percent(accuracy.get(label, {}).get("top1")),
            timed.get(label, text.MISSING),
        )
        for label in labels
    ]
    kept = [index for index in range(6) if index < 2 or any(row[index] != text.MISSING for row in rows)]
    titles = ("Runtime", "", "SQNR", "Agreement", "Top-1", _latency_title(report.trade_off))
    return _grid([titles[index] for index in kept], ([row[index] for index in kept] for row in rows), kept)


def _timed(found: TradeOff, report: Report) -> dict[str, str]:
    rows = text.rows_of(report.bench)
    chosen = [row for row in rows if found.batch is None or row.get("batch") == found.batch]
    failed = {text.label_of(row): text.MISSING for row in text.rows_of(report.bench, "failures")}
    return failed | {text.label_of(row): text.milliseconds(row.get("p50_ms")) for row in chosen}


def _latency_title(found: TradeOff) -> str:
    return "Latency" if found.batch is None else f"Latency, batch {found.batch}"


def _details(report: Report) -> list[Table]:
    documents = (report.parity, report.evaluate, report.bench)
    parity, evaluate, bench = (text.measured_or_failed(each) for each in documents)
    found = [
        tables.parity_table(parity),
        tables.accuracy_table(evaluate),
        tables.latency_table(bench),
        tables.tolerance_table(parity),
        tables.files_table(report),
    ]
    return [table for table in found if table is not None and table.rows]


def _drifts(report: Report) -> str:
    found = text.rows_of(report.parity, "drift")
    return "\n".join(f"- {_inert(text.label_of(each))}: {_inert(drift.summary(each))}" for each in found)


def _folded(title: str, content: str) -> str:
    # The empty lines make the content Markdown again.
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def _table(table: Table) -> str:
    rows = ([_inert(f"{cell.shown} ({cell.note})" if cell.note else cell.shown) for cell in row] for row in table.rows)
    numeric = [2 if column.numeric else 0 for column in table.columns]
    return _grid([_inert(column.title) for column in table.columns], rows, numeric)


def _grid(titles: Sequence[str], rows: Iterable[Sequence[str]], alignment: Sequence[int]) -> str:
    """A table; columns whose ``alignment`` is 2 or more hold numbers and stand at the right."""
    rule = ["---:" if each >= 2 else "---" for each in alignment]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rule, *rows))


def _inert(content: str) -> str:
    one_line = " ".join(content.split())
    return _ACTIVE.sub(r"\\\1", html.escape(one_line, quote=False))
