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
from exporter.graph.metadata import PREFIX
from exporter.opening import Opening
from exporter.proof_inputs import contract_for, files_read
from exporter.report.schema import validate
from runtimes.errors import UnavailableError
from runtimes.registry import parse
from runtimes.tensorrt.build import BuildOptions
from tests.exporter.test_cli_engine import cli
from tests.runtimes.models import FunctionRuntime

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


def test_drift_alone_fails_on_the_console_too_and_what_was_not_looked_at_is_not_within_bounds(
    files: dict[str, Path], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = {"label": "openvino", "runtime": "openvino", "file": "x.onnx"}
    found = [
        {**head, "layers": [{"layer": "conv1"}], "first": "conv1", "probed": "", "passed": False},
        {**head, "layers": [], "first": None, "probed": "not looked at: its ONNX file is not known", "passed": True},
    ]
    monkeypatch.setattr("exporter.drift_rows.drift_rows", lambda *_, **__: found)
    words = ("--data", TEST, "--images", "8", "--drift")
    done = cli("parity", files["float"], f"openvino:{files['float']}", *words)
    assert done.code == 1
    assert "✗ 1 of 3 do not agree" in done.out
    assert "not looked at: its ONNX file is not known" in done.out
    assert "within its bounds" not in done.out


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
    assert done.document["passed"] is None  # no drop was asked for
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


@pytest.mark.parametrize("option", ["--html", "--junit", "--markdown"])
def test_no_report_replaces_a_file_that_was_read(option: str, files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(next(TEST.rglob("*.png")).read_bytes())
    (tmp_path / "list.txt").write_text("a.png 3\n")
    model = onnx.load(files["float"])
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = tmp_path / "copy.pth"
    weights.write_bytes(CHECKPOINT.read_bytes())
    module = f"eager:{weights}"
    read = [tmp_path / name for name in ("a.png", "list.txt", "big.onnx", "weights.bin", "copy.pth")]
    before = [path.read_bytes() for path in read]
    for path in read:
        specs = [tmp_path / "big.onnx", module]
        for command in ("parity", "evaluate", "bench"):
            done = cli(command, *specs, "--data", tmp_path / "list.txt", option, path)
            assert done.code == 2, done.err
            assert f"error: {option} {path} is the same file as the input" in done.err
            assert done.err.rstrip().endswith(f"give another {option}")
    assert [path.read_bytes() for path in read] == before


def test_the_files_that_options_name_are_read_too(tmp_path: Path) -> None:
    spec = parse(f"eager:resnet20@weights={tmp_path / 'w.pth'}")
    model = Opening(spec, FunctionRuntime(lambda batch: batch), None, (), None, None, None)
    assert tmp_path / "w.pth" in files_read([model], None, ())


def test_a_document_in_which_every_model_failed_becomes_a_report(tmp_path: Path, cli: Any) -> None:
    for command in ("evaluate", "bench"):
        failure = {"runtime": "openvino", "file": "x.onnx", "label": "openvino:x.onnx", "error": "out of memory"}
        document: dict[str, Any] = {
            "schema": 1,
            "command": command,
            "results": [],
            "failures": [failure],
            "environment": {},
        }
        document |= {"passed": False} if command == "evaluate" else {}
        (tmp_path / command).write_text(json.dumps(document))
        done = cli("report", tmp_path / command, "--html", tmp_path / "r.html", "--json")
        assert (done.code, done.document["status"]) == (1, "failed"), done.err
        assert done.document["documents"] == [command]
        assert "out of memory" in (tmp_path / "r.html").read_text()


def test_models_that_name_their_classes_in_another_order_are_not_compared(
    files: dict[str, Path], tmp_path: Path, cli: Any
) -> None:
    for name, labels in (("ab", "abcdefghij"), ("ba", "bacdefghij")):
        model = onnx.load(files["float"])
        (told,) = (entry for entry in model.metadata_props if entry.key == f"{PREFIX}classes")
        told.value = json.dumps({"count": 10, "labels": list(labels)})
        onnx.save(model, tmp_path / f"{name}.onnx")
    for command in ("parity", "evaluate"):
        done = cli(command, tmp_path / "ab.onnx", tmp_path / "ba.onnx", "--data", TEST)
        assert done.code == 2, done.err
        assert "have different classes (0: 'a' and 'b')" in done.err


def test_models_of_other_classes_are_told_by_label(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    onnx.save(_with_more_classes(files["float"]), tmp_path / "other.onnx")
    for command in ("parity", "evaluate"):
        done = cli(command, files["float"], tmp_path / "other.onnx", "--data", TEST)
        assert done.code == 2
        assert "float.onnx tells 10 classes apart and " in done.err
        assert "other.onnx 11: give models" in done.err


def test_damaged_preprocessing_is_told_with_its_model_and_advice_that_helps(
    files: dict[str, Path], tmp_path: Path, cli: Any
) -> None:
    model = onnx.load(files["float"])
    (told,) = (entry for entry in model.metadata_props if entry.key == f"{PREFIX}preprocessing")
    told.value = told.value.replace("bilinear", "trilinear")
    onnx.save(model, tmp_path / "damaged.onnx")
    done = cli("bench", tmp_path / "damaged.onnx", "--preset", "cifar")
    assert done.code == 2
    assert "damaged.onnx: the model's own preprocessing cannot be used" in done.err
    assert "--preset" not in done.err


def test_a_checkpoint_is_one_whatever_its_name(tmp_path: Path, cli: Any) -> None:
    (tmp_path / "ck.onnx").write_bytes(CHECKPOINT.read_bytes())
    done = cli("evaluate", tmp_path / "ck.onnx", "--data", TEST, "--images", "10")
    assert done.code == 0, done.err


def test_the_console_tells_the_worst_classes_by_name_and_the_interval_of_the_agreement(
    files: dict[str, Path], tmp_path: Path, cli: Any
) -> None:
    for place, folder in enumerate(sorted(TEST.iterdir())):
        named = tmp_path / "d" / f"class-{place}"
        named.mkdir(parents=True)
        for picture in sorted(folder.glob("*.png"))[:4]:
            (named / picture.name).write_bytes(picture.read_bytes())
    moved = next((tmp_path / "d" / "class-7").iterdir())
    moved.rename(tmp_path / "d" / "class-3" / "moved.png")
    shown = cli("evaluate", files["float"], "--data", tmp_path / "d").out
    assert f"  worst  onnxruntime:{files['float']}: class-3 80.0 % of 5" in shown
    assert "100.00 % (" in cli("parity", EAGER, files["float"], "--data", TEST, "--images", "20").out


def _without_metadata(path: Path, to: Path) -> Path:
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, to)
    return to


def test_a_preset_is_fitted_to_what_a_foreign_file_declares(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    foreign = _without_metadata(files["float"], tmp_path / "foreign.onnx")
    done = cli("evaluate", foreign, "--data", TEST, "--images", "20", "--preset", "imagenet", "--json")
    assert done.code == 0, done.err
    contract = done.document["data"]["preprocessing"]
    declared = [side.dim_value for side in onnx.load(foreign).graph.input[0].type.tensor_type.shape.dim]
    assert [len(contract["mean"]), *contract["size"]] == declared[1:]


def test_a_preset_for_a_grey_model_makes_grey_images() -> None:
    shape = (None, 1, 28, 30)
    model = Opening(
        parse("eager:resnet20"), FunctionRuntime(lambda batch: batch), None, (), None, None, None, shape=shape
    )
    contract = contract_for([model], "cifar", {})
    assert (contract.color, contract.size, len(contract.mean)) == ("L", (28, 30), 1)


def test_a_foreign_file_is_timed_on_noise_and_not_on_images(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    foreign = _without_metadata(files["float"], tmp_path / "foreign.onnx")
    words = ("--rounds", "2", "--turn-ms", "1", "--no-cold")
    assert cli("bench", foreign, *words, "--json").document["failures"] == []
    refused = cli("bench", foreign, *words, "--data", TEST)
    assert refused.code == 2
    assert "give --preset" in refused.err


def test_images_of_another_size_are_refused_before_anything_is_timed(
    files: dict[str, Path], tmp_path: Path, cli: Any
) -> None:
    model = onnx.load(files["float"])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 999
    onnx.save(model, tmp_path / "tall.onnx")
    for command, data in (("bench", ()), ("evaluate", ("--data", TEST))):
        done = cli(command, tmp_path / "tall.onnx", *data)
        assert (done.code, done.out) == (2, ""), done.err
        assert "tall.onnx takes images of 3x999x32, and the preprocessing makes 3x32x32" in done.err


def test_quiet_says_nothing_of_skipped_images(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    pictures = sorted(TEST.rglob("*.png"))[:3]
    for picture in pictures:
        (tmp_path / "d" / picture.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / picture.parent.name / picture.name).write_bytes(picture.read_bytes())
    (tmp_path / "d" / pictures[0].parent.name / "bad.png").write_bytes(b"broken")
    words = ("parity", files["float"], f"openvino:{files['float']}", "--data", tmp_path / "d", "--max-bad", "0.5")
    assert "skipped" in cli(*words).err
    done = cli(*words, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    bench = ("bench", files["float"], "--data", tmp_path / "d", "--rounds", "2", "--turn-ms", "1", "--no-cold")
    assert "bad.png" in cli(*bench, "--batch", "4", "--max-bad", "0").err


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
    command = "parity" if "reference" in document else "evaluate"
    (tmp_path / "d.json").write_text(json.dumps({"command": command, **document}))
    done = cli("report", tmp_path / "d.json", "--html", tmp_path / "r.html", "--markdown", tmp_path / "r.md")
    assert (done.code, message in done.err, "internal" in done.err) == (code, True, False), done.err
