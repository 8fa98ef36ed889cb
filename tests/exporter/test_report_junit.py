"""JUnit XML: its shape, its verdicts, and what XML cannot hold."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from exporter.report.junit import render_junit
from exporter.report.model import Report
from tests.exporter import report_samples as samples
from tests.exporter.report_documents import bench, evaluate, parity

# The common shape that CI systems read: element -> (attributes that must be there, those that may, children).
SHAPE: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"tests", "failures", "errors", "time", "name"}, {"skipped"}, {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors", "skipped", "time"}, set(), {"testcase"}),
    "testcase": ({"name", "classname", "time"}, set(), {"failure", "error"}),
    "failure": ({"message", "type"}, set(), set()),
    "error": ({"message", "type"}, set(), set()),
}


def _check(element: ET.Element) -> None:
    required, allowed, children = SHAPE[element.tag]
    assert required <= set(element.attrib) <= required | allowed
    assert {child.tag for child in element} <= children
    for key in {"tests", "failures", "errors", "skipped"} & set(element.attrib):
        assert int(element.attrib[key]) >= 0
    if "time" in element.attrib:
        assert float(element.attrib["time"]) >= 0
    if element.tag in ("testsuites", "testsuite"):
        cases = list(element.iter("testcase"))
        assert int(element.attrib["tests"]) == len(cases)
        assert int(element.attrib["failures"]) == sum(case.find("failure") is not None for case in cases)
        assert int(element.attrib["errors"]) == sum(case.find("error") is not None for case in cases)
    for child in element:
        _check(child)


@pytest.mark.parametrize(
    "report",
    [
        samples.full(),
        samples.hostile(),
        samples.long_names(),
        Report(),
        Report(parity=parity(5, failing=(1, 2), crashed=(4,))),
        Report(parity={"schema": 1, "results": [], "passed": True}),
    ],
    ids=["full", "hostile", "long names", "nothing", "failing", "no results"],
)
def test_the_file_has_the_common_shape_and_its_counts_are_right(report: Report) -> None:
    _check(ET.fromstring(render_junit(report)))


def test_a_result_that_failed_is_a_failure_with_its_finding_and_one_that_did_not_run_an_error() -> None:
    root = ET.fromstring(render_junit(Report(parity=parity(5, failing=(1,), crashed=(4,)))))
    cases = {case.attrib["name"]: case for case in root.iter("testcase")}
    failure, error = cases["openvino r50.onnx"].find("failure"), cases["onnxruntime r50-int8.onnx"].find("error")
    assert failure is not None
    assert failure.attrib["message"] == failure.text == "SQNR is 14.2 dB, at least 100 dB is required"
    assert error is not None
    assert "no CUDA device" in error.attrib["message"]
    assert not list(cases["onnxruntime r50.onnx"])


def test_the_accuracy_gate_is_a_case_of_its_own() -> None:
    root = ET.fromstring(render_junit(Report(evaluate=evaluate(2, passed=False))))
    assert [case.attrib["name"] for case in root.iter("testcase") if case.find("failure") is not None] == ["gate"]


def test_every_result_is_a_case() -> None:
    root = ET.fromstring(render_junit(Report(parity=parity(5), evaluate=evaluate(2), bench=bench(2, (1,)))))
    counts = {suite.attrib["name"]: len(list(suite)) for suite in root}
    assert counts == {"parity": 5, "evaluate": 4, "bench": 3}  # evaluate: the reference, two runtimes, the gate


def test_characters_that_xml_cannot_hold_are_replaced() -> None:
    document = parity(1, failing=(0,))
    document["results"][0] |= {"label": "a\x00b\x1b[31m\udce9\ufffe]]>", "finding": "\x08 <&>"}
    case = next(ET.fromstring(render_junit(Report(parity=document))).iter("testcase"))
    assert case.attrib["name"] == "a\ufffdb\ufffd[31m\ufffd\ufffd]]>"
    assert case[0].text == "\ufffd <&>"


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render_junit(samples.full()) == render_junit(samples.full())
