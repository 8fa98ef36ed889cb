"""JUnit XML: what continuous integration shows of the proof, a test case per result and gate."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree as ET

from exporter.report.model import Report
from exporter.report.verdict import Outcome, outcomes_of

_FORBIDDEN: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped (section 2.2, production 2)."""


def render_junit(report: Report) -> bytes:
    """The file, in UTF-8: a suite per document.

    A result that failed is a ``failure`` with its finding, a runtime that could not be run an ``error``.
    """
    suites = [(name, outcomes_of(name, document)) for name, document in report.documents()]
    everything = [outcome for _, outcomes in suites for outcome in outcomes]
    root = ET.Element("testsuites", {"name": _clean(report.title), **_counts(everything)})
    for name, outcomes in suites:
        suite = ET.SubElement(root, "testsuite", {"name": name, **_counts(outcomes)})
        for outcome in outcomes:
            _case(suite, outcome)
    ET.indent(root)
    data: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _case(suite: ET.Element, outcome: Outcome) -> None:
    attributes = {"name": _clean(outcome.name), "classname": f"resnet-export.{outcome.document}"}
    case = ET.SubElement(suite, "testcase", {**attributes, "time": f"{outcome.seconds or 0.0:.3f}"})
    finding = _clean(outcome.finding)
    if outcome.status == "failed":
        ET.SubElement(case, "failure", {"message": finding, "type": "GateError"}).text = finding
    elif outcome.status == "error":
        ET.SubElement(case, "error", {"message": finding, "type": "ResnetExportError"}).text = finding


def _counts(outcomes: tuple[Outcome, ...] | list[Outcome]) -> dict[str, str]:
    return {
        "tests": str(len(outcomes)),
        "failures": str(sum(outcome.status == "failed" for outcome in outcomes)),
        "errors": str(sum(outcome.status == "error" for outcome in outcomes)),
        "skipped": "0",
        "time": f"{sum(outcome.seconds or 0.0 for outcome in outcomes):.3f}",
    }


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
