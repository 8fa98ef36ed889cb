"""``resnet-export engine``: what it writes, prints and refuses. Built by TensorRT-RTX, without a GPU."""

from __future__ import annotations

import json
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest

from exporter.cli import main
from tests.exporter.test_cli_quantize import Done, assert_refused
from tests.runtimes.test_tensorrt_build import saved

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")
AMPERE = ("--compute-capability", "8.6")


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str | Path) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main(list(map(str, words)))
        captured = capfd.readouterr()
        return Done(int(end.value.code or 0), captured.out, captured.err)

    return run


def test_the_document_is_that_of_the_file_and_lies_beside_it(tmp_path: Path, cli: Any) -> None:
    source, engine = saved(tmp_path), tmp_path / "out" / "net.engine"
    done = cli("engine", source, "-o", engine, *AMPERE, "--compute-capability", "8.9", "--json")
    assert (done.code, done.err) == (0, "")
    told = done.document
    plan = engine.read_bytes()
    assert told["sha256"] == sha256(plan).hexdigest()
    assert told["source_sha256"] == sha256(source.read_bytes()).hexdigest()
    assert (told["engine"], told["bytes"]) == (str(engine), len(plan))
    assert (told["flavour"], told["targets"], told["precision"]) == ("tensorrt_rtx", ["8.6", "8.9"], "fp32")
    assert told["profile"]["max"] == [8, 16, 8, 8]
    assert told["build_seconds"] > 0
    beside = json.loads((tmp_path / "out" / "net.engine.json").read_text())
    assert {name: beside[name] for name in told} == told
    assert [node["name"] for node in beside["network"]] == ["layer1.0.conv1", "layer1.0.relu"]
    assert set(beside) == {*told, "layers", "no_layers", "network"}  # the file says nothing of itself


def test_a_person_reads_what_it_is_and_what_it_is_for(tmp_path: Path, cli: Any) -> None:
    shown = cli("engine", saved(tmp_path, "int8"), "-o", tmp_path / "n.engine", *AMPERE, "--opt", "2").out
    assert "compute capability 8.6" in shown
    assert "int8" in shown
    assert "min 1x16x8x8, opt 2x16x8x8, max 8x16x8x8" in shown
    shown = cli("engine", saved(tmp_path), "-o", tmp_path / "n.engine").out
    assert "every GPU from Ampere on" in shown


def test_a_timing_cache_that_there_is_not_is_told_and_not_written(tmp_path: Path, cli: Any) -> None:
    cache = tmp_path / "new" / "kernels.cache"
    done = cli("engine", saved(tmp_path), "-o", tmp_path / "n.engine", *AMPERE, "--timing-cache", cache, "--json")
    assert done.code == 0, done.err
    [note] = done.document["notes"]
    assert note.startswith("TensorRT-RTX keeps no timing cache")
    assert not cache.parent.exists()
    assert done.document["calibration"] is None


def _damaged(folder: Path, what: str) -> Path:
    path = saved(folder)
    data = path.read_bytes()
    if what == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif what == "text":
        path.write_text("hello, this is not a model")
    elif what == "operator":
        path = saved(folder, operator="Hardmax2")
    elif what == "opset":
        path = saved(folder, opset=26)
    elif what == "two inputs":
        model = onnx.load(path)
        model.graph.input.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [1]))
        onnx.save(model, path)
    elif what == "missing":
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("truncated", "is not an ONNX file"),
        ("text", "is not an ONNX file"),
        ("missing", "cannot be read: No such file"),
        ("operator", "Hardmax2 layer1.0.relu"),
        ("opset", "--opset 25"),
        ("two inputs", "one batch of images"),
    ],
)
def test_a_file_that_cannot_become_an_engine_gets_one_line_and_leaves_the_old_one(
    tmp_path: Path, cli: Any, what: str, told: str
) -> None:
    source = _damaged(tmp_path, what)
    (tmp_path / "n.engine").write_bytes(b"earlier")
    before = set(tmp_path.iterdir())
    assert_refused(cli("engine", source, "-o", tmp_path / "n.engine", *AMPERE), told)
    assert (tmp_path / "n.engine").read_bytes() == b"earlier"
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--compute-capability", "9.9"), "does not build for compute capability 9.9"),
        (("--opt", "16", "--max", "4"), "--opt 16x16x8x8 is more than --max 4x16x8x8"),
        (("--max", "many"), "'many'"),
        (("--precision", "fp16", *AMPERE), "--precision fp16"),
        (("--precision", "fp4"), "'fp4'"),
        (("--workspace", "0"), "0"),
        (("-o", "{folder}"), "is a folder"),
        (("-o", "{source}"), "same file as the input"),
        (("--timing-cache", "{source}"), "same file as the input"),
        (("--calibration-cache", "{source}"), "same file as the input"),
        (("--calibration-cache", "{folder}/c", "--timing-cache", "{folder}/c"), "same file as the input"),
        (("--ranges", "{source}", "-o", "{source}"), "same file as the input"),
        (("--ranges", "{source}"), "no calibrators"),
        (("--calibration-cache", "{folder}/c"), "uses no calibration cache"),
        (("--compute-capability", "1.20"), "does not build for compute capability 1.20"),
        (("--timing-cache", "{folder}/n.engine"), "same file as the input"),
        (("--timing-cache", "{folder}/n.engine.json"), "same file as the input"),
        (("--max", "3000000000"), "expected a batch"),
    ],
)
def test_options_that_cannot_be_get_one_line_and_leave_nothing(
    tmp_path: Path, cli: Any, given: tuple[str, ...], told: str
) -> None:
    source = saved(tmp_path)
    data = source.read_bytes()
    words = [each.format(folder=tmp_path, source=source) for each in given]
    out = () if "-o" in given else ("-o", tmp_path / "n.engine")
    assert_refused(cli("engine", source, *out, *words), told)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    assert source.read_bytes() == data


def test_the_weights_beside_a_model_are_not_written_over(tmp_path: Path, cli: Any) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(saved(tmp_path)), path, save_as_external_data=True, location="m.data", size_threshold=0)
    weights = (tmp_path / "m.data").read_bytes()
    assert_refused(cli("engine", path, "-o", tmp_path / "m.data", *AMPERE), "same file as the input")
    assert (tmp_path / "m.data").read_bytes() == weights
    assert cli("engine", path, "-o", tmp_path / "m.engine", *AMPERE, "-q").code == 0


def test_a_tensorrt_that_is_not_there_is_exit_code_3_with_what_to_install(tmp_path: Path, cli: Any) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    done = cli("engine", saved(tmp_path), "-o", tmp_path / "n.engine", "--flavour", "tensorrt")
    assert_refused(done, "tensorrt is not installed", "install", code=3)
