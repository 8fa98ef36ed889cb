"""``embed`` and ``onnx --embed-preprocess`` on the embedded network, and the proof commands on what they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.pixel_contract import pixels_of
from exporter.engine import build_engine
from exporter.opening import prepare
from runtimes.tensorrt.build import BuildOptions
from tests.exporter.test_cli_engine import cli
from tests.exporter.test_cli_proof import CHECKPOINT, EAGER, TEST, files

__all__ = ["cli", "files"]


@pytest.fixture(scope="module")
def made(files: dict[str, Path]) -> dict[str, Path]:
    """The same files, taking pixels."""
    from exporter.embed import EmbedInputs, embed_onnx

    found = {}
    for name in ("float", "ort", "trt"):
        found[name] = files[name].with_name(f"{name}.pixels.onnx")
        embed_onnx(EmbedInputs(files[name]), found[name])
    return found


def test_the_command_and_the_option_of_onnx_make_the_same_file(
    files: dict[str, Path], tmp_path: Path, cli: Any
) -> None:
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    done = cli("embed", files["float"], "-o", one, "--data", TEST, "--images", "16", "--json")
    assert done.code == 0, done.err
    assert done.document["input"]["dtype"] == "uint8"
    assert done.document["preprocessing"]["layout"] == "NHWC"
    assert {row["inputs"] for row in done.document["parity"]} == {"synthetic", "images"}
    assert all(row["sqnr_db"] > 100 for row in done.document["parity"])
    whole = cli("onnx", CHECKPOINT, "-o", other, "--embed-preprocess", "--data", TEST, "--images", "16", "--json")
    assert whole.code == 0, whole.err
    stages = [(row["stage"], row["reference"]) for row in whole.document["parity"] if row["stage"] == "embedded"]
    assert {reference for _, reference in stages} == {"original", "preprocessed images"}
    assert one.read_bytes() == other.read_bytes()


def test_each_model_is_fed_by_its_own_contract(made: dict[str, Path], files: dict[str, Path], cli: Any) -> None:
    specs = [EAGER, f"onnxruntime:{made['float']}", f"openvino:{made['float']}", f"onnxruntime:{files['ort']}",
             f"onnxruntime:{made['ort']}", f"openvino:{made['trt']}"]  # fmt: skip
    done = cli("parity", *specs, "--data", TEST, "--images", "48", "--json")
    assert done.code == 0, done.document
    rows = {(row["label"], row["simulated"]): row for row in done.document["results"]}
    assert rows[specs[1], False]["sqnr_db"] > 100
    assert rows[specs[2], False]["sqnr_db"] > 100
    for simulated in (False, True):  # the same integers
        assert rows[specs[3], simulated]["sqnr_db"] == rows[specs[4], simulated]["sqnr_db"]
    assert done.document["data"]["preprocessing"]["dtype"] == "float32"


def test_evaluate_and_bench_take_them_beside_others(made: dict[str, Path], files: dict[str, Path], cli: Any) -> None:
    done = cli("evaluate", files["float"], made["float"], "--data", TEST, "--images", "48", "--json")
    assert done.code == 0, done.err
    first, second = done.document["results"]
    assert (first["top1"], second["changed"]) == (second["top1"], 0)
    words = ("--batch", "1", "--rounds", "2", "--turn-ms", "1", "--cold", "--json")
    timed = cli("bench", files["float"], made["float"], *words)
    assert timed.code == 0, timed.err
    assert not timed.document["failures"]
    assert [row["cold_start_ms"] is not None for row in timed.document["results"]] == [True, True]


def test_whole_pictures_are_compared_one_by_one(tmp_path: Path, files: dict[str, Path], cli: Any) -> None:
    source, target = tmp_path / "f.onnx", tmp_path / "whole.onnx"
    options = ("--resize", "40", "--input-size", "32", "--opset", "18")
    assert cli("onnx", CHECKPOINT, "-o", source, *options, "-q").code == 0
    done = cli("embed", source, "-o", target, "--embed-resize", "--json")
    assert done.code == 0, done.err
    assert any("levels of 256" in note for note in done.document["notes"])
    compared = cli("parity", source, target, "--data", TEST, "--images", "12", "--json")
    assert compared.code == 0, compared.document
    (row,) = compared.document["results"]
    assert row["n"] == 12
    assert row["tolerance"]["min_sqnr_db"] == 40


def test_the_labels_and_the_contract_are_in_the_file(files: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"digit {each}" for each in range(10)))
    output = tmp_path / "p.onnx"
    done = cli("embed", files["float"], "-o", output, "--softmax", "--labels", names, "--json")
    assert done.code == 0
    assert done.document["outputs"] == ["probabilities"]
    opened, before = prepare(str(output)), prepare(str(files["float"]))
    assert opened.labels[9] == "digit 9"
    assert opened.preprocessing == before.preprocessing
    assert before.preprocessing is not None
    assert opened.takes == pixels_of(before.preprocessing)
    refused = cli("parity", files["float"], output, "--data", TEST)
    assert refused.code == 2
    assert "gives logits" in refused.err
    assert cli("evaluate", files["float"], output, "--data", TEST, "--images", "16", "--json").code == 0


def test_the_best_classes_are_no_logits_and_the_proof_commands_say_so(
    files: dict[str, Path], tmp_path: Path, cli: Any
) -> None:
    output = tmp_path / "k.onnx"
    assert cli("embed", files["float"], "-o", output, "--top-k", "3", "-q").code == 0
    assert [each.name for each in onnx.load(output).graph.output] == ["scores", "classes"]
    refused = cli("parity", files["float"], output, "--data", TEST)
    assert refused.code == 2
    assert "without --top-k" in refused.err
    assert cli("embed", files["float"], "-o", output, "--top-k", "11").code == 2
    assert cli("onnx", CHECKPOINT, "-o", output, "--top-k", "3").code == 2


def test_a_file_that_computes_something_else_is_not_written(
    files: dict[str, Path], tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import exporter.embed_stages as stages
    from exporter.graph.embed import embed as honest

    def wrong(*given: Any) -> Any:
        result = honest(*given)
        item = next(each for each in result.model.graph.initializer if each.name.endswith("pixels.weight"))
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(1.01), item.name))
        return result

    monkeypatch.setattr(stages, "embed", wrong)
    output = tmp_path / "wrong.onnx"
    output.write_bytes(b"earlier")
    done = cli("embed", files["float"], "-o", output)
    assert done.code == 1
    assert "does not compute" in done.err
    assert "kept as" in done.err
    assert not output.exists()
    assert (tmp_path / "wrong.onnx.previous").read_bytes() == b"earlier"


def test_twice_is_refused_and_so_is_another_preprocessing(made: dict[str, Path], tmp_path: Path, cli: Any) -> None:
    twice = cli("embed", made["float"], "-o", tmp_path / "x.onnx")
    assert twice.code == 2
    assert "already" in twice.err
    other = cli("parity", made["float"], made["ort"], "--data", TEST, "--scale", "1")
    assert other.code == 2
    assert "in its graph" in other.err


@pytest.mark.parametrize("name", ["float", "trt"])
def test_tensorrt_rtx_builds_an_engine_of_pixels(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    output = tmp_path / "pixels.engine"
    build_engine(made[name], output, BuildOptions(), name="tensorrt_rtx")
    opened = prepare(f"tensorrt-rtx:{output}")
    assert opened.takes is not None
    assert opened.takes.dtype == "uint8"
