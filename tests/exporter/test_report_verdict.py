"""The verdict of a report and the points of its chart."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from exporter.report.html import render_html
from exporter.report.junit import render_junit
from exporter.report.markdown import render_markdown
from exporter.report.model import Report
from exporter.report.points import precisions
from runtimes.errors import InputError
from tests.exporter.report_documents import bench, evaluate, parity


def test_a_report_whose_results_all_pass_passes_and_says_what_was_compared() -> None:
    verdict = Report(parity=parity(5), evaluate=evaluate(5)).verdict
    assert verdict.status == "passed"
    assert "All 5 runtimes" in verdict.headline
    assert "98.54 %" in verdict.detail  # the lowest agreement of the five
    assert "8,000 images" in verdict.detail
    assert "0.34 points" in verdict.detail  # 76.13 % − 75.79 %


def test_a_failed_result_fails_the_report_even_where_the_document_says_passed() -> None:
    document = {**parity(3, failing=(1,)), "passed": True}
    verdict = Report(parity=document).verdict
    assert verdict.status == "failed"
    assert "1 of 3 runtimes" in verdict.headline
    assert "openvino r50.onnx" in verdict.headline


def test_a_document_that_failed_without_naming_a_result_fails_the_report() -> None:
    assert Report(parity={**parity(2), "passed": False}).verdict.status == "failed"
    assert Report(evaluate=evaluate(2, passed=False)).verdict.status == "failed"


def test_a_runtime_that_could_not_be_run_is_not_proven() -> None:
    verdict = Report(parity=parity(3, crashed=(2,))).verdict
    assert verdict.status == "failed"
    assert verdict.headline.startswith("Not proven: 1 of 3")


def test_where_every_runtime_failed_none_may_be_used() -> None:
    assert "any of the 2 runtimes" in Report(parity=parity(2, failing=(0, 1))).verdict.headline
    assert "this runtime" in Report(parity=parity(1, failing=(0,))).verdict.headline


@pytest.mark.parametrize("passed", [None, "true", 1, 0.0])
def test_only_true_passes(passed: object) -> None:
    document = parity(1)
    document["results"][0]["passed"] = passed
    assert Report(parity=document).verdict.status == "failed"


def test_nothing_compared_is_no_pass() -> None:
    assert Report().verdict.status == "unproven"
    assert Report(bench=bench(2)).verdict.status == "unproven"
    assert Report(parity={**parity(0), "results": []}).verdict.status == "failed"


def test_accuracy_alone_can_pass() -> None:
    verdict = Report(evaluate=evaluate(2)).verdict
    assert verdict.status == "passed"
    assert "Accuracy holds" in verdict.headline


def test_numbers_that_are_missing_or_not_finite_do_not_break_the_verdict() -> None:
    document = parity(2)
    document["results"][0] |= {"sqnr_db": float("nan"), "top1_agreement": None, "n": None}
    document["results"][1] |= {"sqnr_db": float("inf"), "top1_agreement": "many", "tolerance": None}
    verdict = Report(parity=document).verdict
    assert verdict.status == "passed"
    assert [fact.name for fact in verdict.facts] == ["Smallest file"]


def test_points_join_accuracy_latency_and_size_by_label() -> None:
    found = Report(parity=parity(2), evaluate=evaluate(2), bench=bench(2)).trade_off
    assert (found.measure, found.batch) == ("Top-1 accuracy", 1)
    (point,) = [each for each in found.points if each.label == "openvino r50.onnx"]
    assert (point.latency_ms, point.quality, point.size, point.precision) == (14.9, 0.7613, 102_240_000, "fp32")


def test_without_accuracy_the_points_show_agreement_and_the_reference_agrees_with_itself() -> None:
    found = Report(parity=parity(2), bench=bench(2)).trade_off
    assert found.measure == "Top-1 agreement with the reference"
    assert {point.label: point.quality for point in found.points}["eager r50.pth"] == 1.0


def test_latencies_of_the_batch_with_the_most_runtimes_are_shown() -> None:
    document = bench(3, batches=(1, 8))
    document["results"] = [row for row in document["results"] if row["batch"] == 8 or "eager" in row["label"]]
    found = Report(evaluate=evaluate(3), bench=document).trade_off
    assert found.batch == 8
    assert len(found.points) == 4


def test_a_runtime_without_a_latency_is_named_as_left_out() -> None:
    found = Report(evaluate=evaluate(3), bench=bench(2)).trade_off
    assert found.left_out == ("onnxruntime r50-fp16.onnx",)


def test_a_precision_that_is_not_known_is_not_taken_over() -> None:
    document = parity(1)
    document["results"][0]["precision"] = '"><b>'
    assert precisions(document, document["results"]) == {}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "received list"),
        ({"results": []}, "received schema None, expected 1"),
        ({"schema": 2, "results": []}, "received schema 2"),
        ({"schema": 1}, "no list of results"),
        ({"schema": 1, "results": ["x"]}, r"results\[0\]: received str"),
    ],
)
def test_a_document_that_is_none_is_refused_with_what_was_expected(document: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Report(parity=document)


def test_importing_the_report_loads_no_framework() -> None:
    code = "import sys, exporter.report.html, exporter.report.schema; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "jinja2", "jsonschema", "PIL"} & set(done.stdout.split())


def test_an_accuracy_that_was_only_measured_is_no_pass() -> None:
    document = {**evaluate(2), "passed": None}
    for row in document["results"]:
        row |= {"passed": None, "finding": None}
    assert Report(evaluate=document).verdict.status == "unproven"


@pytest.mark.parametrize("name", ["evaluate", "bench"])
def test_what_could_not_be_measured_fails_every_report_by_name(name: str) -> None:
    failure: dict[str, object] = {"runtime": "openvino", "file": "x.onnx", "label": "openvino x.onnx"}
    failure["error"] = "out of memory"
    document = {"evaluate": evaluate(1), "bench": bench(1)}[name]
    if name == "bench":
        failure = {**failure, "batch": 8}
    else:
        document["passed"] = False
    report = Report(**{name: {**document, "failures": [failure]}})  # type: ignore[arg-type]
    assert report.verdict.headline == "Not proven: 1 of 3 runtimes could not be run (openvino x.onnx)."
    cases = ET.fromstring(render_junit(report)).findall(".//testcase[@name='openvino x.onnx']/error")
    assert [case.attrib["message"] for case in cases] == [("batch 8: " if name == "bench" else "") + "out of memory"]
    assert render_html(report).count("out of memory") >= 3  # the finding, the table, the data
    told = render_markdown(report)
    assert "| openvino x.onnx | ❌ not run |" in told
    assert "error: out of memory" in told


def test_a_batch_that_failed_is_not_hidden_by_one_that_was_measured() -> None:
    document = bench(0, batches=(1,))
    row = document["results"][0]
    failure = {"runtime": "eager", "label": row["label"], "batch": 8, "error": "out of memory"}
    assert "❌ not run" in render_markdown(Report(bench={**document, "failures": [failure]}))


def test_drift_that_failed_names_the_layer_in_every_report() -> None:
    document = parity(5, drift=True)
    row = document["drift"][0]
    row["first"], row["passed"] = "layer3.1.conv2", False
    report = Report(parity={**document, "passed": False})
    assert report.verdict.status == "failed"
    (case,) = ET.fromstring(render_junit(report)).findall(".//testcase/failure")
    assert case.attrib["message"] == "begins to differ at layer3.1.conv2"
    assert "(parity): begins to differ at layer3.1.conv2" in render_markdown(report)


def test_a_model_whose_layers_were_not_looked_at_is_no_outcome() -> None:
    document = parity(1, drift=True)
    before = len(Report(parity=document).outcomes())
    document["drift"].append({"label": "x", "runtime": "x", "layers": [], "first": None, "passed": True})
    assert len(Report(parity=document).outcomes()) == before


@pytest.mark.parametrize(("faster", "told"), [(True, True), (None, False), (False, False)])
def test_the_fastest_is_one_whose_interval_says_so(faster: bool | None, told: bool) -> None:
    ratio = {"ratio": 0.8, "ci95": [0.5, 1.1], "faster": faster}
    rows = [{"label": "a", "batch": 1, "ratio_to_first": None}, {"label": "b", "batch": 1, "ratio_to_first": ratio}]
    facts = Report(bench={"schema": 1, "results": rows}).verdict.facts
    assert [fact.value for fact in facts if fact.name.startswith("Fastest")] == ["0.80× the time"] * told
