"""``resnet-export calibrate`` as a user meets it: the digits that come with the project, and every bad input."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from calibration.audit import content_hashes, list_sha256
from calibration.calibrate import calibrate
from calibration.graph import read_network
from calibration.images import find_images, sample
from calibration.preprocess import PRESETS, Preprocessing
from calibration.ranges import read_ranges
from calibration.thresholds import METHODS
from exporter.cli import main
from exporter.graph.metadata import read_metadata
from tests.exporter.graphs import onnx_model
from tests.exporter.test_cli import assert_refused, run

_ROOT = Path(__file__).resolve().parents[2]
_DIGITS = _ROOT / "examples" / "digits"
_IMAGES = _DIGITS / "images" / "calibration"


def call(*words: object) -> subprocess.CompletedProcess[str]:
    """As ``run``, in this process, where nothing has to be imported again; not for ``--json``, which moves stdout."""
    out, err = io.StringIO(), io.StringIO()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess([*map(str, words)], int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's checkpoint as ONNX."""
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    done = run("onnx", _DIGITS / "digits_resnet14.pth", "-o", path, "-q")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def ranges(digits: Path) -> Path:
    """Of a quarter of its images, by the command."""
    path = digits.with_name("ranges.json")
    done = run("calibrate", digits, "--data", _IMAGES, "--images", "60", "-o", path, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return path


def contract(model: Path) -> Preprocessing:
    return Preprocessing.from_json(read_metadata(onnx.load(model))["preprocessing"])


def pictures(folder: Path, count: int = 3, bad: int = 0, side: int = 32) -> Path:
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"good{index}.png")
    for index in range(bad):
        (folder / f"bad{index}.png").write_bytes(b"broken")
    return folder


def changed(model: Path, path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    loaded = onnx.load(model)
    change(loaded)
    onnx.save(loaded, path)
    return path


def elsewhere(folder: Path, **changes: Any) -> Path:
    """A file that is not of this project: one convolution of 8x8 colour images, and no metadata."""
    weights = {"w": np.ones((2, 3, 3, 3), np.float32), "fc": np.ones((2, 5), np.float32)} | changes
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc"], ["logits"]),
    ]
    path = folder / "elsewhere.onnx"
    onnx.save(onnx_model(nodes, [numpy_helper.from_array(value, name) for name, value in weights.items()]), path)
    return path


# --- what it gives --------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_function_returns(digits: Path, ranges: Path) -> None:
    found = read_ranges(ranges)
    files = sample(find_images(_IMAGES), 60)
    assert found.images_sha256 == list_sha256(files, content_hashes(files))
    assert ranges.read_bytes() == calibrate(read_network(digits), files, contract(digits)).ranges.dumps()


def test_all_images_are_observed_with_images_0(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert call("calibrate", digits, "--data", _IMAGES, "--images", 0, "-o", path, "-q").returncode == 0
    files = find_images(_IMAGES)
    assert path.read_bytes() == calibrate(read_network(digits), files, contract(digits)).ranges.dumps()
    assert read_ranges(path).images_sha256 == list_sha256(files, content_hashes(files))


def test_json_is_one_document_with_every_tensor_by_every_method(digits: Path, ranges: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.json"
    done = run("calibrate", digits, "--data", _IMAGES, "--images", "60", "-o", path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    found = read_ranges(path)
    assert path.read_bytes() == ranges.read_bytes()
    assert document["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert document["ranges"] == str(path)
    for name in ("model_sha256", "preprocessing_sha256", "images_sha256", "images"):
        assert document[name] == getattr(found, name)
    assert document["preprocessing"] == contract(digits).to_json()
    assert [row["name"] for row in document["tensors"]] == list(found.tensors)
    for row in document["tensors"]:
        assert set(row["methods"]) == set(METHODS)
        assert row["methods"]["minmax"]["high"] >= row["high"] * (1 - 1e-6)
        assert row["grid"] == ("uint8" if row["low"] >= 0 else "int8")
    assert (document["skipped"], len(document["warnings"])) == ([], 1)
    assert {"load", "calibrate", "total"} <= document["seconds"].keys()
    assert [child.name for child in path.parent.iterdir()] == ["r.json"]


def test_a_person_gets_a_table_and_the_line_of_the_pass_and_no_colour_in_a_pipe(digits: Path, tmp_path: Path) -> None:
    done = run("calibrate", digits, "--data", _IMAGES, "--images", "20", "-o", tmp_path / "r.json", "-v")
    assert done.returncode == 0, done.stderr
    for word in ("model", "images", "tensors", "skipped", "warning", "number of images is 20", "sha256", *METHODS):
        assert word in done.stdout
    assert "20 images" in done.stderr
    assert "images/s" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "\x1b[" not in done.stdout + done.stderr


def test_a_few_bad_files_are_skipped_and_listed(digits: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "x", 9, bad=1)
    words = ("calibrate", digits, "--data", data, "-o", tmp_path / "r.json", "--max-bad", "0.2")
    done = run(*words, "--json")
    (skipped,) = json.loads(done.stdout)["skipped"]
    assert skipped["path"] == str(data / "bad0.png")
    assert skipped["reason"]
    assert str(data / "bad0.png") in call(*words).stdout


def test_the_seed_chooses_the_images_and_the_same_seed_the_same(digits: Path, ranges: Path, tmp_path: Path) -> None:
    words = ("calibrate", digits, "--data", _IMAGES, "--images", 60, "-o", tmp_path / "r.json", "-q", "--seed")
    assert call(*words, 0).returncode == 0
    assert (tmp_path / "r.json").read_bytes() == ranges.read_bytes()
    assert call(*words, 1).returncode == 0
    assert read_ranges(tmp_path / "r.json").images_sha256 != read_ranges(ranges).images_sha256


def test_workers_and_threads_do_not_change_the_images(digits: Path, ranges: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = ("--data", _IMAGES, "--images", 60, "-o", path, "-q", "--workers", 2, "--threads", 1)
    assert call("calibrate", digits, *words).returncode == 0
    assert read_ranges(path).images_sha256 == read_ranges(ranges).images_sha256


# --- a file from elsewhere, and options of the contract -------------------------------------------------------


def test_a_file_from_elsewhere_takes_a_preset_or_every_field(tmp_path: Path) -> None:
    model, data, path = elsewhere(tmp_path), pictures(tmp_path / "x", side=8), tmp_path / "r.json"
    words = ("calibrate", model, "--data", data, "-o", path, "-q")
    assert call(*words, "--preset", "cifar").returncode == 0
    assert read_ranges(path).preprocessing == replace(PRESETS["cifar"], size=(8, 8))
    fields = ("--color", "BGR", "--scale", 1, "--mean", "1,2,3", "--std", 4)
    assert call(*words, *fields).returncode == 0
    expected = Preprocessing((8, 8), None, "none", "bilinear", "BGR", 1.0, (1.0, 2.0, 3.0), (4.0,) * 3)
    assert read_ranges(path).preprocessing == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["--preset imagenet or cifar", "--color, --scale, --mean, --std missing"]),
        (["--color", "RGB", "--mean", "0", "--std", "1"], ["--scale missing"]),
        (["--color", "RGB", "--mean", "0", "--std", "1", "--scale", "1", "--resize", "9"], ["--interpolation missing"]),
        (["--preset", "cifar", "--mean", "1,2"], ["mean", "3 channels"]),
        (["--preset", "cifar", "--color", "L", "--mean", "0", "--std", "1"], ["mean", "1 channels"]),
        (["--preset", "cifar", "--resize", "4"], ["8x8", "4"]),
    ],
)
def test_a_contract_that_is_not_whole_gets_one_line(tmp_path: Path, words: list[str], told: list[str]) -> None:
    model, data = elsewhere(tmp_path), pictures(tmp_path / "x", side=8)
    done = call("calibrate", model, "--data", data, "-o", tmp_path / "r.json", *words)
    assert_refused(done, 2, *told)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"color": "L", "mean": [0.5], "std": [0.5]}, ["1 channels (L)", "takes 3"]),
        ({"size": [33, 32]}, ["33x32", "takes 32x32"]),
        ({"crop": "diagonal"}, ["own preprocessing", "diagonal"]),
    ],
)
def test_metadata_that_contradict_the_network_get_one_line(
    digits: Path, tmp_path: Path, fields: dict[str, Any], told: list[str]
) -> None:
    def change(model: onnx.ModelProto) -> None:
        properties = {item.key: item for item in model.metadata_props}
        value = json.loads(properties["resnet_export.preprocessing"].value) | fields
        properties["resnet_export.preprocessing"].value = json.dumps(value)
        model.metadata_props.remove(properties["resnet_export.preprocessing_sha256"])

    model = changed(digits, tmp_path / "m.onnx", change)
    assert_refused(call("calibrate", model, "--data", _IMAGES, "-o", tmp_path / "r.json"), 2, *told)


def test_a_contract_that_was_edited_in_the_file_is_refused(digits: Path, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        item = next(item for item in model.metadata_props if item.key == "resnet_export.preprocessing")
        item.value = item.value.replace('"exif"', '"none"')

    model = changed(digits, tmp_path / "m.onnx", change)
    assert_refused(call("calibrate", model, "--data", _IMAGES, "-o", tmp_path / "r.json"), 2, "changed", "--preset")


# --- bad inputs -----------------------------------------------------------------------------------------------


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _text_only(folder: Path) -> Path:
    _empty(folder).joinpath("notes.txt").write_text("no image")
    return folder


def _array(folder: Path) -> Path:
    np.save(_empty(folder) / "x.npy", np.zeros((4, 8, 8, 5), np.uint8))
    return folder / "x.npy"


@pytest.mark.parametrize(
    ("data", "words", "told"),
    [
        (_empty, [], ["hold no image"]),
        (_text_only, [], ["hold no image"]),
        (lambda folder: folder / "nowhere", [], ["nowhere", "does not exist"]),
        (lambda folder: pictures(folder, 1), [], ["1 image to calibrate with", "at least 2"]),
        (lambda folder: pictures(folder, 5), ["--images", "1"], ["1 image to calibrate with", "at least 2"]),
        (lambda folder: pictures(folder, 0, bad=4), [], ["4 images cannot be used", "bad0.png"]),
        (lambda folder: pictures(folder, 9, bad=1), [], ["bad0.png", "1.0%", "--max-bad"]),
        (lambda folder: pictures(folder, 3, side=9), [], ["9x9", "32x32"]),
        (_array, [], ["x.npy", "C"]),
        (lambda folder: pictures(folder, 3), ["--max-bad", "7"], ["--max-bad"]),
        (lambda folder: pictures(folder, 3), ["--provider", "NoSuchProvider"], ["NoSuchProvider"]),
        (lambda folder: pictures(folder, 3), ["--color", "L"], ["mean", "1 channels"]),
    ],
)
def test_images_that_cannot_be_used_get_one_line_and_leave_nothing(
    digits: Path, tmp_path: Path, data: Callable[[Path], Path], words: list[str], told: list[str]
) -> None:
    output = tmp_path / "new" / "r.json"
    done = call("calibrate", digits, "--data", data(tmp_path / "x"), "-o", output, *words)
    assert_refused(done, 3 if "--provider" in words else 2, *told)
    assert not output.parent.exists()


def test_activations_of_nan_get_one_line_that_names_the_first_tensor(tmp_path: Path) -> None:
    model = elsewhere(tmp_path, w=np.full((2, 3, 3, 3), np.nan, np.float32))
    data = pictures(tmp_path / "x", side=8)
    done = call("calibrate", model, "--data", data, "-o", tmp_path / "r.json", "--preset", "cifar")
    assert_refused(done, 2, "the tensor relu is NaN")


def test_models_that_cannot_be_calibrated_get_one_line(digits: Path, tmp_path: Path) -> None:
    def quantised(model: onnx.ModelProto) -> None:
        model.graph.node[-1].op_type = "QLinearMatMul"

    def damaged(model: onnx.ModelProto) -> None:
        next(item for item in model.metadata_props if item.key.endswith("preprocessing")).value = "{"

    (tmp_path / "text.onnx").write_text("no model")
    cases = {
        changed(digits, tmp_path / "q.onnx", quantised): ["quantised already", "FP32"],
        changed(digits, tmp_path / "d.onnx", damaged): ["damaged metadata"],
        tmp_path / "text.onnx": ["not an ONNX file"],
        tmp_path / "missing.onnx": ["missing.onnx", "No such file"],
    }
    for model, told in cases.items():
        assert_refused(call("calibrate", model, "--data", _IMAGES, "-o", tmp_path / "r.json"), 2, *told)


def test_the_output_is_never_an_input(digits: Path) -> None:
    before = digits.read_bytes()
    assert_refused(call("calibrate", digits, "--data", _IMAGES, "-o", digits), 2, "same file")
    assert digits.read_bytes() == before


def test_a_failed_run_leaves_the_file_of_an_earlier_one(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    data = pictures(tmp_path / "x", 3, bad=3)
    assert_refused(call("calibrate", digits, "--data", data, "-o", path), 2, "cannot be used")
    assert path.read_text() == "old"
    assert {child.name for child in tmp_path.iterdir()} == {"r.json", "x"}


# --- interrupted ----------------------------------------------------------------------------------------------

# The command, with batches of four; after the third it is sent a signal, as a terminal or the system would do.
_INTERRUPTED = """
import os, signal, sys
import calibration.collect, calibration.calibrate
from exporter.cli import main
calibration.collect._LARGEST_BATCH = 4
calibration.calibrate._SAVE_SECONDS = 0.0
number, words = int(sys.argv[1]), sys.argv[2:]
class Collector(calibration.collect.Collector):
    calls = 0
    def update(self, batch):
        super().update(batch)
        Collector.calls += 1
        if Collector.calls == 3 and number:
            os.kill(os.getpid(), number)
calibration.calibrate.Collector = Collector
main(words)
"""


def interrupt(number: int, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _INTERRUPTED, str(int(number)), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT, timeout=120)


@pytest.fixture(scope="module")
def uninterrupted(digits: Path) -> bytes:
    path = digits.with_name("whole.json")
    assert interrupt(0, "calibrate", digits, "--data", _IMAGES, "--images", 40, "-o", path, "-q").returncode == 0
    return path.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_ended_goes_on_to_identical_bytes(
    digits: Path, uninterrupted: bytes, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "new" / "r.json"
    words = ("calibrate", digits, "--data", _IMAGES, "--images", 40, "-o", path)
    done = interrupt(number, *words)
    assert done.returncode == (130 if number != signal.SIGKILL else -number), done.stderr
    partial = path.with_name("r.json.partial")
    assert partial.exists()
    assert not path.exists()
    if number != signal.SIGKILL:
        assert "the same command goes on from there" in done.stderr
        assert [child.name for child in path.parent.iterdir()] == [partial.name]
    went_on = interrupt(0, *words, "--json")
    document = json.loads(went_on.stdout)
    assert 0 < document["images_of_an_earlier_run"] < 40
    assert path.read_bytes() == uninterrupted
    assert not partial.exists()


def test_without_resume_nothing_is_kept_and_nothing_gone_on_with(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = ("calibrate", digits, "--data", _IMAGES, "--images", 40, "-o", path)
    assert interrupt(signal.SIGINT, *words, "--no-resume").returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert interrupt(signal.SIGINT, *words).returncode == 130
    partial = path.with_name("r.json.partial").read_bytes()
    document = json.loads(interrupt(0, *words, "--no-resume", "--json").stdout)
    assert document["images_of_an_earlier_run"] == 0
    assert path.with_name("r.json.partial").read_bytes() == partial


def test_an_unfinished_run_of_other_images_is_told_and_not_mixed_in(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = ("calibrate", digits, "--data", _IMAGES, "-o", path, "--images")
    assert interrupt(signal.SIGINT, *words, "40").returncode == 130
    document = json.loads(interrupt(0, *words, "30", "--json").stdout)
    assert (document["images"], document["images_of_an_earlier_run"]) == (30, 0)
    assert "another list of images" in document["warnings"][0]
