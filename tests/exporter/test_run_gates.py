"""Gates over documents, and how a report shows them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from exporter.run.gates import annotated, judge
from exporter.run.reading import read_pipeline
from exporter.run.settings import Settings

EAGER, FLOAT, INT8 = "eager:net.pth", "onnxruntime:model.onnx", "onnxruntime:int8/onnxruntime.onnx"
DOCUMENTS: dict[str, dict[str, Any]] = {
    "parity": {"passed": True, "results": [
        {"label": FLOAT, "simulated": False, "sqnr_db": 120.0, "passed": True, "finding": None},
        {"label": INT8, "simulated": False, "sqnr_db": 30.0, "passed": True, "finding": None},
        {"label": INT8, "simulated": True, "sqnr_db": 20.0, "passed": True, "finding": None},
    ]},
    "evaluate": {"passed": True, "failures": [], "results": [
        {"label": EAGER, "top1": 0.9, "passed": True, "finding": None},
        {"label": FLOAT, "top1": 0.5, "passed": True, "finding": None},
        {"label": INT8, "top1": 0.893, "passed": True, "finding": None},
    ]},
    "bench": {"failures": [], "results": [
        {"label": FLOAT, "batch": 2, "p50_ms": 99.0}, {"label": INT8, "batch": 2, "p50_ms": 4.0},
        {"label": INT8, "batch": 8, "p50_ms": 16.0},
    ]},
}  # fmt: skip


def settings(folder: Path, gates: str) -> Settings:
    file = folder / "pipeline.toml"
    file.write_text(
        '[model]\nsource = "net.pth"\n[data]\ncalibration = "a"\nevaluation = "b"\n'
        f'[quantize]\ntargets = ["onnxruntime"]\n[bench]\nbatches = [2, 8]\n[gates]\n{gates}\n'
    )
    return read_pipeline(file)


@pytest.mark.parametrize(
    ("gates", "passed", "told"),
    [
        ("max_drop = 0.7", True, f"{INT8} loses 0.70 points of top-1, allowed are 0.7"),
        ("max_drop = 0.5", False, f"{INT8} loses 0.70 points of top-1, allowed are 0.5: 0.20 points too many"),
        ("min_sqnr_db = 30", True, f"{INT8} has an SQNR of 30.0 dB, wanted are 30"),
        ("min_sqnr_db = 32.5", False, f"{INT8} has an SQNR of 30.0 dB, wanted are 32.5: 2.5 dB too few"),
        ("max_latency_ms = 4", True, f"{INT8} takes 4 ms for a batch of 2, allowed are 4"),
        ("max_latency_ms = 3", False, f"{INT8} takes 4 ms for a batch of 2, allowed are 3: 1 ms too many"),
    ],
)
def test_a_gate_says_by_how_much(tmp_path: Path, gates: str, passed: bool, told: str) -> None:
    (gate,) = [gate for gate in judge(settings(tmp_path, gates), DOCUMENTS) if gate.limit is not None]
    assert (gate.passed, gate.message, gate.model) == (passed, told, INT8)


@pytest.mark.parametrize("gates", ["max_drop = 0.5", "min_sqnr_db = 32", "max_latency_ms = 3"])
def test_a_report_shows_a_failed_gate_as_a_failure_of_its_row_alone(tmp_path: Path, gates: str) -> None:
    before = deepcopy(DOCUMENTS)
    found = annotated(DOCUMENTS, judge(settings(tmp_path, gates), DOCUMENTS))
    assert before == DOCUMENTS
    failed = [row for document in found.values() for row in document["results"] if row.get("passed") is False]
    assert {row["label"] for row in failed} == {INT8}
    assert not any(row.get("simulated") for row in failed)
    assert all("too " in row["finding"] for row in failed)


def test_a_report_shows_a_drop_that_is_allowed_as_passed_and_what_nobody_judged_as_measured(tmp_path: Path) -> None:
    documents = deepcopy(DOCUMENTS)
    for row in documents["evaluate"]["results"]:
        row["passed"] = None
    gates = judge(settings(tmp_path, "max_drop = 5\nmax_latency_ms = 50"), documents)
    found = annotated(documents, gates)
    assert [row["passed"] for row in found["evaluate"]["results"]] == [None, None, True]
    assert not any("passed" in row for row in found["bench"]["results"])


@pytest.mark.parametrize(
    ("name", "gates"), [("parity", "min_sqnr_db = 1"), ("evaluate", "max_drop = 9"), ("bench", "max_latency_ms = 99")]
)
def test_what_was_not_measured_does_not_pass(tmp_path: Path, name: str, gates: str) -> None:
    documents = deepcopy(DOCUMENTS)
    documents[name]["results"] = [row for row in documents[name]["results"] if row["label"] != INT8]
    (gate,) = [gate for gate in judge(settings(tmp_path, gates), documents) if gate.limit is not None]
    assert (gate.passed, gate.message) == (False, "no file that it is for could be measured")
    assert not judge(settings(tmp_path, gates), {})[-1].passed


def test_a_drop_against_a_model_that_failed_is_not_known(tmp_path: Path) -> None:
    documents = deepcopy(DOCUMENTS)
    del documents["evaluate"]["results"][0]
    assert not judge(settings(tmp_path, "max_drop = 50"), documents)[-1].passed


def test_a_model_that_could_not_be_run_fails_with_its_reason(tmp_path: Path) -> None:
    documents = deepcopy(DOCUMENTS)
    documents["parity"]["results"][1] = {
        "label": INT8, "simulated": False, "n": 0, "passed": False, "finding": "could not be run: no memory",
    }  # fmt: skip
    documents["bench"]["failures"] = [{"label": FLOAT, "batch": 8, "error": "too slow"}]
    messages = [gate.message for gate in judge(settings(tmp_path, "min_sqnr_db = 1"), documents) if not gate.passed]
    assert messages == [
        f"{INT8}: could not be run: no memory",
        f"{FLOAT}: too slow",
        f"{INT8}: could not be run: no memory",
    ]


def test_drift_that_leaves_its_bounds_fails(tmp_path: Path) -> None:
    documents = deepcopy(DOCUMENTS)
    documents["parity"]["drift"] = [{"label": INT8, "first": "layer2.0.conv1", "passed": False}]
    (gate,) = [gate for gate in judge(settings(tmp_path, ""), documents) if not gate.passed]
    assert gate.message == f"{INT8}: begins to differ at layer2.0.conv1"
