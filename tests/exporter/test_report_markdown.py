"""The text for a pull request."""

from __future__ import annotations

import re

from exporter.report.markdown import render_markdown
from exporter.report.model import Report
from tests.exporter import report_samples as samples
from tests.exporter.report_documents import bench, evaluate, parity


def test_the_verdict_stands_first_then_a_compact_table_then_folded_details() -> None:
    text = render_markdown(samples.full())
    lines = text.splitlines()
    assert lines[0].startswith("## ✅ ")
    assert "All 5 runtimes" in lines[2]
    table, folded = text.index("| Runtime |"), text.index("<details>")
    assert text.index("All 5 runtimes") < table < folded
    assert text.count("<details>") == text.count("</details>") >= 5


def test_failures_are_listed_with_their_findings() -> None:
    text = render_markdown(Report(parity=parity(5, failing=(1,), crashed=(4,))))
    assert text.startswith("## ❌")
    assert "- **openvino r50.onnx** (parity): SQNR is 14.2 dB, at least 100 dB is required" in text
    assert "❌ not run" in text


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    text = render_markdown(samples.hostile())
    tables = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    assert tables
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_columns_without_a_number_are_left_out() -> None:
    head = next(line for line in render_markdown(Report(parity=parity(2))).splitlines() if line.startswith("| Runtime"))
    assert head == "| Runtime |  | SQNR | Agreement |"


def test_names_are_inert() -> None:
    document = parity(1)
    document["results"][0]["label"] = "@team #12 :tada: `x` [a](http://198.51.100.1) <img src=x>\n## head | cell"
    text = render_markdown(Report(parity=document))
    assert "<img" not in text
    assert "\n## head" not in text
    assert "\\@team \\#12 \\:tada: \\`x\\` \\[a\\](http\\://198.51.100.1) &lt;img src=x&gt;" in text


def test_latencies_are_those_of_one_batch() -> None:
    text = render_markdown(Report(evaluate=evaluate(1), bench=bench(1, (1, 8))))
    row = next(line for line in text.splitlines() if line.startswith("| onnxruntime r50"))
    assert "Latency, batch 1" in text.replace("\\:", ":")
    assert "21.4 ms" in row


def test_nothing_at_all_is_said_in_a_sentence() -> None:
    assert render_markdown(Report()) == "## ➖ Export report\n\n**This report holds no results.**\n"
