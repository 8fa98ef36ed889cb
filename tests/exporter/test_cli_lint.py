"""``resnet-export lint`` as a user meets it: exit codes, the document, the lines, and what a wrong word gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from calibration import placement
from exporter.cli import main
from exporter.cli.lint import _TARGETS
from tests.calibration.lint_cases import built
from tests.calibration.lint_graphs import S8, U8, Graph, residual
from tests.exporter.test_cli_quantize import Done, as_it_was, assert_refused

__all__ = ["as_it_was"]  # a fixture that every test here uses

TARGETS = ["tensorrt", "onnxruntime", "openvino"]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], as_it_was: None) -> Any:
    def run(*words: str | Path) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["lint", *map(str, words)])
        captured = capfd.readouterr()
        return Done(int(end.value.code or 0), captured.out, captured.err)

    return run


def save(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    onnx.save(model, folder / name)
    return folder / name


def pairs(count: int) -> onnx.ModelProto:
    """So many quantised inputs of uint8, each an error for TensorRT."""
    return built(lambda g: [g.pair("x") for _ in range(count)])


def test_the_targets_are_those_of_quantisation() -> None:
    assert tuple(_TARGETS) == placement.TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_a_clean_file_gets_exit_code_0(tmp_path: Path, cli: Any, target: str) -> None:
    done = cli(save(tmp_path, residual(target, "basic")), "--target", target)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"model.onnx  for {target}"
    assert lines[-1] == "✓ nothing found"
    assert "\x1b[" not in done.out


@pytest.mark.parametrize(
    ("model", "target", "code", "last"),
    [
        (pairs(1), "tensorrt", 1, "✗ 1 error"),
        (built(lambda g: g.pair("x", zero=False)), "tensorrt", 1, "✗ 1 warning"),
        (built(lambda g: g.pair("x", S8)), "onnxruntime", 0, "✓ 1 note"),
        (residual("onnxruntime", "basic"), "tensorrt", 1, "✗ 9 errors, 1 warning"),
    ],
    ids=["error", "warning", "note", "several"],
)
@pytest.mark.parametrize("form", ["text", "--json", "-q"])
def test_errors_and_warnings_get_exit_code_1_and_notes_0(
    tmp_path: Path, cli: Any, model: onnx.ModelProto, target: str, code: int, last: str, form: str
) -> None:
    done = cli(save(tmp_path, model), "--target", target, *([] if form == "text" else [form]))
    assert (done.code, done.err) == (code, "")
    if form == "text":
        assert done.out.splitlines()[-1] == last
    elif form == "--json":
        assert done.document["clean"] == (code == 0)
    else:
        assert done.out == ""


def test_the_document_says_where_what_why_and_what_to_do(tmp_path: Path, cli: Any) -> None:
    path = save(tmp_path, built(lambda g: g.conv(g.pair("x"), bias=None)))
    assert cli(path, "--target", "tensorrt", "--json").document == {
        "file": str(path),
        "target": "tensorrt",
        "clean": False,
        "counts": {"Conv": {"quantised": 1, "total": 1}},
        "errors": 1,
        "warnings": 0,
        "notes": 0,
        "findings": [
            {
                "rule": "unsigned",
                "severity": "error",
                "node": "n0",
                "tensor": "x",
                "message": "uint8, zero point 128",
                "advice": "quantise symmetrically: int8, zero point 0, scale = largest magnitude / 127",
            }
        ],
        "reasons": {
            "unsigned": "TensorRT refuses uint8, or reads it as int8 (10.x): values above 127 steps are cut off"
        },
    }


def test_a_person_gets_counts_and_each_rule_once(tmp_path: Path, cli: Any) -> None:
    graph = Graph()
    model = graph.model(*(graph.pair("x", U8) for _ in range(5)), graph.conv(graph.pair("x", S8), bias="float"))
    shown = cli(save(tmp_path, model), "--target", "tensorrt").out
    words = [line.split() for line in shown.splitlines()]
    assert ["Conv", "1", "1"] in words
    assert ["error", "unsigned", "5", "times"] in words
    assert [line.strip() for line in shown.splitlines() if "uint8, zero point 128" in line] == [
        f"{name}: uint8, zero point 128" for name in ("n0", "n2", "n4")
    ]
    assert "and 2 more: --json" in shown
    assert shown.count("why  TensorRT refuses uint8") == 1
    assert shown.count("do   quantise symmetrically") == 1


def test_weights_in_another_file_are_read_from_beside_the_model(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(residual("openvino", "basic"), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli(path, "--target", "openvino").code == 0
    (tmp_path / "w.bin").unlink()
    assert_refused(cli(path, "--target", "openvino"), str(path), "weights in other files", "cannot be read")


def _given(case: str, folder: Path) -> list[str | Path]:
    """What is typed after the command."""
    path = folder / "model.onnx"
    words: list[str | Path] = [path, "--target", "tensorrt"]
    if case == "a folder":
        path.mkdir()
    elif case == "not ONNX":
        path.write_text("hello")
    elif case == "an empty file":
        path.write_bytes(b"")
    elif case == "a node without inputs":
        broken = pairs(1)
        del broken.graph.node[0].input[:]
        save(folder, broken)
    elif case == "weights cut short":
        broken = pairs(1)
        broken.graph.initializer[0].raw_data = broken.graph.initializer[0].raw_data[:-1]
        save(folder, broken)
    elif case == "a float model":
        save(folder, built(lambda g: g.float_conv("x")))
    elif case != "no such file":
        save(folder, pairs(1))
    mistyped: dict[str, list[str | Path]] = {
        "unknown target": [path, "--target", "tpu"],
        "no target": [path],
        "no file": ["--target", "tensorrt"],
        "two files": [path, *words],
    }
    return mistyped.get(case, words)


BAD = {
    "no such file": ("model.onnx cannot be read: No such file",),
    "a folder": ("model.onnx cannot be read: Is a directory",),
    "not ONNX": ("model.onnx is not an ONNX file", "give a file with Q/DQ"),
    "an empty file": ("model.onnx is not an ONNX file, or has no nodes",),
    "a node without inputs": ("is not valid ONNX", "QuantizeLinear n0 are 0 and 1"),
    "weights cut short": ("model.onnx is damaged: the tensor c0",),
    "a float model": ("model.onnx is not quantised", "QuantizeLinear and DequantizeLinear"),
    "unknown target": ("'tpu'", *TARGETS),
    "no target": ("--target", *TARGETS),
    "no file": ("FILE",),
    "two files": ("unexpected extra argument",),
}


@pytest.mark.parametrize("case", BAD)
def test_an_input_that_cannot_be_used_gets_one_line_and_exit_code_2(tmp_path: Path, cli: Any, case: str) -> None:
    assert_refused(cli(*_given(case, tmp_path)), *BAD[case])


@pytest.mark.parametrize("case", ["no such file", "not ONNX", "a float model", "unknown target"])
def test_json_has_the_error(tmp_path: Path, cli: Any, case: str) -> None:
    done = cli(*_given(case, tmp_path), "--json")
    assert done.code == 2
    assert done.document.keys() == {"error"}
    assert done.document["error"]["exit_code"] == 2
    assert BAD[case][0] in done.document["error"]["message"]
