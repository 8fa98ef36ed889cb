"""``parity``, ``evaluate``, ``bench`` and ``report``, on the embedded network and its images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter.cli import main
from exporter.engine import build_engine
from exporter.report.schema import validate
from runtimes.errors import UnavailableError
from runtimes.tensorrt.build import BuildOptions
from tests.exporter.test_cli_engine import cli

__all__ = ["cli"]
DIGITS = Path(__file__).parents[2] / "examples" / "digits"
CHECKPOINT, TEST = DIGITS / "digits_resnet14.pth", DIGITS / "images" / "test"
EAGER = f"eager:{CHECKPOINT}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float file, INT8 files of two targets, and one with a wrong weight."""
    folder = tmp_path_factory.mktemp("digits")
    made = {name: folder / f"{name}.onnx" for name in ("float", "ort", "trt", "wrong")}
    runs = [["onnx", CHECKPOINT, "-o", made["float"], "-q"]]
    for name, target in (("ort", "onnxruntime"), ("trt", "tensorrt")):
        runs.append(["quantize", made["float"], "--data", DIGITS / "images" / "calibration", "--target", target,
                     "--effort", "fast", "-o", made[name], "-q"])  # fmt: skip
    for words in runs:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert not end.value.code, words
    model = onnx.load(made["float"])
    weights = next(item for item in model.graph.initializer if item.name == "layer2.0.conv1.weight")
    values = numpy_helper.to_array(weights).copy()
    values[3] *= -2
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(model, made["wrong"])
    return made


def test_every_runtime_agrees_and_int8_is_judged_twice(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    specs = [EAGER, f"onnxruntime:{files['float']}", f"openvino:{files['float']}", f"onnxruntime:{files['ort']}"]
    done = cli("parity", *specs, "--data", TEST, "--images", "64", "--html", tmp_path / "r.html", "--json")
    assert done.code == 0, done.err
    validate("parity", done.document)
    rows = done.document["results"]
    assert [(row["runtime"], row["simulated"]) for row in rows] == [
        ("onnxruntime", False), ("openvino", False), ("onnxruntime", False), ("onnxruntime", True),
    ]  # fmt: skip
    assert all(row["passed"] and row["n"] == 64 for row in rows)
    assert [row["sqnr_db"] > 100 for row in rows] == [True, True, False, False]
    assert rows[3]["sqnr_db"] > rows[2]["sqnr_db"] + 6  # the runtime's own share is far below that of quantisation
    assert done.document["reference"]["runtime"] == "eager"
    assert "<html" in (tmp_path / "r.html").read_text()


def test_a_wrong_weight_fails_and_drift_names_the_layer(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    reports = ("--junit", tmp_path / "r.xml", "--markdown", tmp_path / "r.md")
    done = cli(
        "parity", files["float"], files["wrong"], "--data", TEST, "--images", "32", "--drift", *reports, "--json"
    )
    assert done.code == 1
    validate("parity", done.document)
    (row,) = done.document["results"]
    assert not row["passed"]
    assert "SQNR is" in row["finding"]
    assert Path(row["worst_file"]).is_file()
    (drift,) = done.document["drift"]
    assert drift["first"] == "layer2.0.conv1"
    assert int(ET.parse(tmp_path / "r.xml").getroot().attrib["failures"]) >= 1
    assert "layer2.0.conv1" in (tmp_path / "r.md").read_text()
    shown = cli("parity", files["float"], files["wrong"], "--data", TEST, "--images", "32", "--drift").out
    assert "begins at layer2.0.conv1" in shown


def test_a_file_of_another_target_is_told_from_a_wrong_one(files: dict[str, Path], cli: Any) -> None:
    done = cli("parity", files["float"], files["trt"], "--data", TEST, "--images", "64", "--json")
    assert done.code == 0, done.document
    simulated = next(row for row in done.document["results"] if row["simulated"])
    assert simulated["tolerance"]["min_sqnr_db"] == 24


def test_bounds_can_be_asked_for(files: dict[str, Path], cli: Any) -> None:
    words = ("parity", files["float"], files["ort"], "--data", TEST, "--images", "32", "--json", "--simulated", "0")
    done = cli(*words, "--min-sqnr", "90")
    assert done.code == 1
    assert done.document["results"][0]["tolerance"]["reason"].startswith("As asked for")
    assert cli(*words, "--min-sqnr", "5", "--min-agreement", "0.5").code == 0


def test_accuracy_is_measured_against_the_first(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    done = cli("evaluate", EAGER, files["float"], files["ort"], "--data", TEST, "--html", tmp_path / "r.html", "--json")
    assert done.code == 0, done.err
    validate("evaluate", done.document)
    eager, same, int8 = done.document["results"]
    assert eager["top1"] == same["top1"] > 0.9
    assert eager["mcnemar_p"] is None
    assert same["changed"] == 0
    low, high = int8["top1_ci95"]
    assert low < int8["top1"] <= high
    assert eager["n"] == len(list(TEST.rglob("*.*")))


def test_times_are_measured_beside_each_other(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    words = ("--batch", "1", "--batch", "3", "--rounds", "2", "--turn-ms", "5")
    done = cli("bench", files["float"], f"{files['ort']}@threads=1", *words, "--html", tmp_path / "r.html", "--json")
    assert done.code == 0, done.err
    validate("bench", done.document)
    assert [(row["batch"], row["threads"]) for row in done.document["results"]] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert all(row["p50_ms"] > 0 and row["peak_rss_mb"] > 0 for row in done.document["results"])
    shown = cli("bench", files["float"], "--rounds", "2", "--turn-ms", "1", "--no-cold").out
    assert "images/s" in shown


def test_documents_become_one_report(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    commands = {
        "parity": ("parity", EAGER, files["float"], "--data", TEST, "--images", "16"),
        "evaluate": ("evaluate", EAGER, files["float"], files["ort"], "--data", TEST),
        "bench": ("bench", EAGER, files["float"], "--rounds", "2", "--turn-ms", "1", "--no-cold"),
    }
    for name, words in commands.items():
        (tmp_path / name).write_text(cli(*words, "--json").out)
    documents = [tmp_path / name for name in commands]
    done = cli("report", *documents, "--html", tmp_path / "r.html", "--title", "Digits & <b>friends</b>", "--json")
    assert (done.code, done.document["status"]) == (0, "passed"), done.err
    page = (tmp_path / "r.html").read_text()
    assert "Digits &amp; &lt;b&gt;friends" in page
    assert cli("report", documents[0], documents[0], "--html", tmp_path / "r.html").code == 2
    assert "second document" in cli("report", documents[0], documents[0], "--json").err
    (tmp_path / "other.json").write_text("{}")
    assert "no document of" in cli("report", tmp_path / "other.json", "--json").err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["parity", "{float}", "--data", TEST], 2, "two at least"),
        (["parity", "{float}", "{float}", "--data", TEST], 2, "given twice"),
        (["parity", "{float}", "onnxruntme:{ort}", "--data", TEST], 2, "onnxruntime"),
        (["parity", "{float}", "{ort}@thread=2", "--data", TEST], 2, "threads"),
        (["parity", "{float}", "openvino:{engine}", "--data", TEST], 2, "TensorRT-RTX engine"),
        (["parity", "{float}", "{engine}", "--data", TEST], 3, "needs an NVIDIA GPU"),
        (["bench", "{engine}"], 3, "needs an NVIDIA GPU"),
        (["evaluate", "{engine}", "--data", TEST], 3, "needs an NVIDIA GPU"),
        (["parity", "{float}", "ort-cuda:{float}", "--data", TEST], 3, "onnxruntime-gpu"),
        (["parity", "{float}", "int8-sim:{float}", "--data", TEST], 2, "QuantizeLinear"),
        (["parity", "{float}", "{missing}", "--data", TEST], 2, "missing.onnx"),
        (["parity", "{float}", "{other}", "--data", TEST], 2, "classes"),
        (["parity", "{float}", "{ort}", "--data", "{empty}"], 2, "image"),
        (["evaluate", "{float}", "--data", "{flat}"], 2, "label"),
        (["evaluate", "{float}", "--data", "{empty}"], 2, "image"),
        (["parity", "{float}", "{ort}", "--data", TEST, "--min-sqnr", "nan"], 2, "a finite number"),
        (["evaluate", "{float}", "--data", "{list}"], 2, "line 1: the label 999999999999999999999999 is no class"),
        (["bench", "eager:resnet20@weights=random,seed=99999999999999999999"], 2, "received seed="),
        (["bench", "{float}@threads=100000"], 2, "a whole number from 1 to 1024"),
        (["bench", "{float}", "--batch", "0"], 2, "0 is not in the range"),
        (["parity", "{float}", "{ort}", "--data", TEST, "--html", "{float}"], 2, "same file as the input"),
        (["parity", "{float}", "{ort}", "--data", TEST, "--html", "/proc/x.html"], 2, "cannot be written"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    words: list[Any], code: int, message: str, files: dict[str, Path], tmp_path: Path, cli: Any
) -> None:
    known = {**files, "engine": tmp_path / "digits.engine", "missing": tmp_path / "missing.onnx",
             "empty": tmp_path / "empty", "flat": tmp_path / "flat", "other": tmp_path / "other.onnx",
             "list": tmp_path / "list.txt"}  # fmt: skip
    known["empty"].mkdir()
    known["flat"].mkdir()
    picture = next(TEST.rglob("*.png"))
    (known["flat"] / picture.name).write_bytes(picture.read_bytes())
    known["list"].write_text(f"{picture.resolve()}\t{'9' * 40}\n")
    given = [str(word).format(**known) for word in words]
    if any("digits.engine" in word for word in given):
        pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")
        build_engine(files["float"], known["engine"], BuildOptions(compute_capabilities=("8.6",)))
    if any("other.onnx" in word for word in given):
        onnx.save(_with_more_classes(files["float"]), known["other"])
    done = cli(*given)
    assert (done.code, done.out) == (code, ""), done.err
    assert message in done.err
    assert [line for line in done.err.splitlines() if line.startswith("error: ")] == done.err.splitlines()
    assert not list(tmp_path.glob("*.html"))


def _with_more_classes(path: Path) -> onnx.ModelProto:
    model = onnx.load(path)
    for item in model.graph.initializer:
        if item.name in ("fc.weight", "fc.bias"):
            values = numpy_helper.to_array(item)
            item.CopyFrom(numpy_helper.from_array(np.concatenate([values, values[:1]]), item.name))
    del model.graph.output[0].type.tensor_type.shape.dim[1:]
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 11
    return model


def test_a_runtime_that_fails_on_the_way_keeps_nobody_from_being_judged(
    files: dict[str, Path], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtimes import ort
    from runtimes.errors import GraphError

    real, calls = ort.OrtRuntime._run, []

    def fails(self: Any, batch: Any) -> Any:
        if "ort.onnx" in str(self._model):
            calls.append(len(batch))
            if len(calls) == 2:
                raise GraphError("the device fell off the bus")
        return real(self, batch)

    monkeypatch.setattr(ort.OrtRuntime, "_run", fails)
    words = ("--data", TEST, "--images", "64", "--batch", "16", "--json")
    done = cli("parity", EAGER, files["ort"], files["float"], *words)
    assert done.code == 1
    assert [row["passed"] for row in done.document["results"]] == [False, False, True]
    assert "fell off the bus" in done.document["results"][0]["finding"]
    json.dumps(done.document, allow_nan=False)


@pytest.mark.parametrize("command", ["parity", "evaluate", "bench"])
def test_a_report_that_cannot_be_written_costs_no_measurement(
    command: str, files: dict[str, Path], tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise UnavailableError("the disk is full")

    monkeypatch.setattr("exporter.report_files.commit_together", full)
    data = ("--rounds", "2", "--turn-ms", "1", "--no-cold") if command == "bench" else ("--data", TEST, "--images", "8")
    words = (command, files["float"], f"{files['float']}@threads=1", *data, "--html", tmp_path / "r.html")
    done = cli(*words, "--json")
    assert (done.code, "the disk is full" in done.err) == (3, True)
    assert all(row["label"] for row in done.document["results"])
    done = cli(*words)
    shown = {"parity": "SQNR", "evaluate": "top-1", "bench": "images/s"}
    assert (done.code, shown[command] in done.out) == (3, True)


@pytest.mark.parametrize("name", ["a[/b].onnx", "a[red]b:x:.onnx"])
def test_a_name_in_brackets_is_shown_as_it_is(name: str, files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(files["float"].read_bytes())
    data = ("--data", TEST, "--images", "4")
    for words in (["parity", files["float"], path, *data], ["evaluate", path, *data],
                  ["bench", path, "--rounds", "2", "--turn-ms", "1", "--no-cold"]):  # fmt: skip
        done = cli(*words)
        assert done.code == 0, done.err
        # A long path is folded into lines beside other columns, and keeps every bracket.
        assert "[" in done.out, done.out


def test_a_name_that_no_encoding_holds_is_shown_escaped(files: dict[str, Path], tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/a\xff"
    try:
        shutil.copytree(TEST, os.fsdecode(folder))
    except OSError:
        pytest.skip("this file system takes no such name")
    reports = ("--html", tmp_path / "r.html", "--junit", tmp_path / "r.xml", "--markdown", tmp_path / "r.md")
    words: tuple[str | bytes | Path, ...] = ("evaluate", files["float"], "--data", folder, "--images", "4", *reports)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [sys.executable, "-m", "exporter.cli", *words]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\udcff" in done.stdout
    assert b"\\udcff" in (tmp_path / "r.html").read_bytes()


@pytest.mark.parametrize(
    ("document", "code", "message"),
    [
        ({"schema": 2, "reference": {}, "results": []}, 2, "received schema 2"),
        ({"schema": 1, "reference": None, "results": [{"label": "a", "passed": True}], "passed": True}, 0, ""),
        ({"schema": 1, "reference": {"runtime": "x"}, "results": ["a"], "passed": True}, 2, "received str"),
        ({"schema": 1, "results": [{"label": "a", "top1": 0.5, "changes": [{"from": 1}, 7]}]}, 0, ""),
        ({"schema": 1, "results": [{"label": "a", "top1": 0.5, "changes": 7}]}, 0, ""),
    ],
)
def test_a_document_with_holes_is_read_or_refused(
    document: dict[str, Any], code: int, message: str, tmp_path: Path, cli: Any
) -> None:
    (tmp_path / "d.json").write_text(json.dumps(document))
    done = cli("report", tmp_path / "d.json", "--html", tmp_path / "r.html", "--markdown", tmp_path / "r.md")
    assert (done.code, message in done.err, "internal" in done.err) == (code, True, False), done.err
