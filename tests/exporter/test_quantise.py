"""The quantisation job: which images serve what, what is measured on them, and what is left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from PIL import Image

import calibration.quantise
import exporter.quantise as module
from calibration.calibrate import calibrate
from calibration.graph import Network, read_network
from calibration.images import batches, find_images
from calibration.outcome import Options
from calibration.placement import target
from calibration.preprocess import PRESETS
from exporter.fidelity import Fidelity
from exporter.graph.metadata import read_metadata, write_metadata
from exporter.quantise import Inputs, quantise_onnx, read_quantisation
from runtimes.errors import DataError, GraphError, InputError
from tests.calibration.test_refine import SIDE, network, outputs

CONTRACT = PRESETS["cifar"].for_input(3, SIDE, SIDE)
FAST = Options(target("openvino"), effort="fast")
BALANCED = Options(target("openvino"))
COLOURS = ("amber", "blue", "cyan", "dun", "ecru", "fawn")  # as many as the model has classes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def save_model(folder: Path, name: str = "float.onnx", net: Network | None = None, **metadata: Any) -> Path:
    """A tiny residual network that says how its images are preprocessed."""
    model = onnx.ModelProto()
    model.CopyFrom((net or network()).model)
    values = {"preprocessing": CONTRACT.to_json(), "preprocessing_sha256": CONTRACT.sha256(), "precision": "fp32"}
    write_metadata(model, values | {"classes": {"count": 6, "labels": list(COLOURS)}} | metadata)
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def save_images(folder: Path, count: int, *, classes: int = 6, seed: int = 0, side: int = SIDE) -> Path:
    """PNGs in class folders, all different."""
    random = np.random.default_rng(seed)
    for place in range(count):
        into = folder / COLOURS[place % classes]
        into.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (1, 1, 3)) + random.integers(-60, 61, (side, side, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(into / f"{place:03}.png")
    return folder


def spoil(folder: Path, count: int) -> list[Path]:
    """Damage the first images of each class in turn."""
    spoiled = [sorted((folder / COLOURS[place % 6]).iterdir())[place // 6] for place in range(count)]
    for path in spoiled:
        path.write_bytes(b"\x89PNG\r\n\x1a\nnot an image")
    return spoiled


def run(inputs: Inputs, output: Path, options: Options = FAST) -> module.QuantiseReport:
    return quantise_onnx(replace(inputs, workers=0, threads=1), output, options)


def save_ranges(folder: Path, model: Path, data: Path) -> Path:
    done = calibrate(read_network(model), find_images(data), CONTRACT, workers=0, threads=1)
    path = folder / "ranges.json"
    path.write_bytes(done.ranges.dumps())
    return path


def tensors(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """All images of a folder, and their labels."""
    parts = list(batches(find_images(folder), CONTRACT, 1000, max_bad=1.0))
    labels = [file.label for _, files in parts for file in files]
    return np.concatenate([tensor for tensor, _ in parts]), np.array(labels)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path)


def test_the_report_is_json_and_the_file_says_what_it_was_made_from(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 30)
    report = run(Inputs(model, data), tmp_path / "q.onnx", BALANCED)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    raw = (tmp_path / "q.onnx").read_bytes()
    assert document["sha256"] == sha256(raw).hexdigest()
    assert (document["bytes"], document["float_bytes"]) == (len(raw), model.stat().st_size)
    written = onnx.load_model_from_string(raw)
    metadata = read_metadata(written)
    assert metadata["preprocessing"] == CONTRACT.to_json()
    assert metadata["preprocessing_sha256"] == CONTRACT.sha256()
    assert metadata["classes"] == {"count": 6, "labels": list(COLOURS)}
    assert metadata["precision"] == "int8"
    told = read_quantisation(written)
    assert told is not None
    assert told == metadata["quantisation"]
    assert told["model_sha256"] == sha256(model.read_bytes()).hexdigest() == document["ranges"]["model_sha256"]
    assert (told["target"], told["effort"], told["images"]) == ("openvino", "balanced", 24)
    assert (told["seed"], told["cpu"], told["fold_zero_point"]) == (0, "any", "none")
    assert (told["keep_fp"], told["max_drop"]) == (0, None)
    assert {step["name"] for step in document["gains"]} >= {"weight scales", "equalisation", "bias correction"}
    assert {row["layer"] for row in document["sensitivity"]} == {"stem", "conv1", "conv2", "logits"}
    assert document["ranges"]["tensors"].keys() == report.result.placement.sites.keys()
    assert read_quantisation(onnx.load(model)) is None


def test_images_set_aside_for_fidelity_take_no_part_in_calibration(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 30)
    report = run(Inputs(model, data), tmp_path / "q.onnx")
    assert report.fidelity is not None
    assert (report.ranges.images, report.fidelity.images) == (24, 6)
    assert report.fidelity.unseen
    assert not any("both the calibration and the evaluation" in line for line in report.warnings)


def test_images_that_the_sample_left_out_are_enough_for_fidelity(tmp_path: Path, model: Path) -> None:
    report = run(Inputs(model, save_images(tmp_path / "data", 30), images=12), tmp_path / "q.onnx")
    assert report.fidelity is not None
    assert (report.ranges.images, report.fidelity.images, report.fidelity.unseen) == (12, 18, True)


@pytest.mark.parametrize("count", [10, 12])
def test_so_few_images_are_not_parted(tmp_path: Path, model: Path, count: int) -> None:
    """Refinement needs ten, and somebody who gave ten should not be told that there are eight."""
    report = run(Inputs(model, save_images(tmp_path / "data", count)), tmp_path / "q.onnx", BALANCED)
    assert report.ranges.images == count
    assert report.fidelity is None


def test_fidelity_is_what_running_both_files_shows(tmp_path: Path, model: Path) -> None:
    data, other = save_images(tmp_path / "data", 30), save_images(tmp_path / "other", 36, seed=5)
    report = run(Inputs(model, data, evaluation=other), tmp_path / "q.onnx", BALANCED)
    x, labels = tensors(other)
    (exact,), (rough,) = (outputs(onnx.load(path), x, "logits") for path in (model, tmp_path / "q.onnx"))
    error = np.square(exact.astype(np.float64) - rough).sum()
    found = report.fidelity
    assert isinstance(found, Fidelity)
    assert found.images == 36
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(exact.astype(np.float64)).sum() / error), abs=0.05)
    assert found.agreement == float((exact.argmax(1) == rough.argmax(1)).mean())
    assert found.top1_float == pytest.approx(float((exact.argmax(1) == labels).mean()))
    assert found.top1_int8 == pytest.approx(float((rough.argmax(1) == labels).mean()))
    assert found.runtime == "onnxruntime, Q/DQ taken literally"
    assert found.to_json()["unseen"] is True


def test_accuracy_is_not_made_up_where_folders_are_not_the_classes(tmp_path: Path, model: Path) -> None:
    other = save_images(tmp_path / "other", 12, classes=3, seed=5)
    report = run(Inputs(model, save_images(tmp_path / "data", 20), evaluation=other), tmp_path / "q.onnx")
    assert report.fidelity is not None
    assert report.fidelity.top1_float is None
    assert report.fidelity.top1_int8 is None


def test_onnxruntime_is_measured_with_its_own_fusions(tmp_path: Path, model: Path) -> None:
    report = run(
        Inputs(model, save_images(tmp_path / "data", 20)),
        tmp_path / "q.onnx",
        replace(FAST, target=target("onnxruntime")),
    )
    assert report.fidelity is not None
    assert report.fidelity.runtime == "onnxruntime"
    assert report.fidelity.sqnr_db > 15


def test_images_in_both_sets_are_warned_of_and_do_not_count_as_unseen(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 20)
    other = save_images(tmp_path / "other", 12, seed=5)
    (other / COLOURS[0] / "copy.png").write_bytes(next((data / COLOURS[0]).iterdir()).read_bytes())
    report = run(Inputs(model, data, evaluation=other), tmp_path / "q.onnx")
    assert any(line.startswith("1 of the images are in both") for line in report.warnings)
    assert report.fidelity is not None
    assert not report.fidelity.unseen


def test_ranges_from_a_file_do_not_tell_whether_images_are_unseen(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 30)
    report = run(Inputs(model, data, save_ranges(tmp_path, model, data)), tmp_path / "q.onnx", BALANCED)
    assert report.ranges.images == 30
    assert report.fidelity is not None
    assert not report.fidelity.unseen


def test_ranges_alone_are_enough_for_fast_and_give_what_calibrating_gives(tmp_path: Path, model: Path) -> None:
    data, other = save_images(tmp_path / "data", 30), save_images(tmp_path / "other", 6, seed=5)
    from_file = run(Inputs(model, ranges=save_ranges(tmp_path, model, data)), tmp_path / "a.onnx")
    calibrated = run(Inputs(model, data, evaluation=other), tmp_path / "b.onnx")
    assert from_file.fidelity is None
    assert from_file.sha256 == calibrated.sha256
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("ranges", [False, True])
def test_bad_images_are_skipped_and_listed_once_wherever_they_happen_to_be(
    tmp_path: Path, model: Path, ranges: bool
) -> None:
    """3 of 30 are bad, a tenth, and all of them may be among the six set aside, of which they are half."""
    data = save_images(tmp_path / "data", 30)
    path = save_ranges(tmp_path, model, data) if ranges else None
    aside = find_images(data)[::5]
    for file in aside[:3]:
        file.path.write_bytes(b"broken")
    report = run(Inputs(model, data, path, max_bad=0.1), tmp_path / "q.onnx", BALANCED)
    assert sorted(bad.path for bad in report.skipped) == sorted(file.path for file in aside[:3])
    assert report.fidelity is not None
    assert report.fidelity.images == 3


def test_bad_images_among_those_of_refinement_are_listed_too(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 30)
    path = save_ranges(tmp_path, model, data)
    (bad,) = (find_images(data)[3].path,)
    bad.write_bytes(b"broken")
    report = run(Inputs(model, data, path, max_bad=0.1), tmp_path / "q.onnx", BALANCED)
    assert [file.path for file in report.skipped] == [bad]


def test_more_bad_images_than_allowed_are_refused(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 30)
    spoil(data, 8)
    with pytest.raises(DataError, match="cannot be used"):
        run(Inputs(model, data, max_bad=0.1), tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_refinement_holds_no_more_images_than_memory_is_set_aside_for_but_always_enough(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    real = calibration.quantise.quantise

    def heard(network, ranges, options, images, listener, labels):
        held.append(len(images))
        assert labels.shape == (len(images),)  # the images are in folders of classes
        return real(network, ranges, options, images, listener, labels)

    monkeypatch.setattr(module, "quantise", heard)
    data = save_images(tmp_path / "data", 30)
    for memory in (1, 20 * 3 * SIDE * SIDE * 4, 1 << 30):
        monkeypatch.setattr(module, "_REFINED", memory)
        run(Inputs(model, data), tmp_path / "q.onnx", BALANCED)
    assert held == [10, 20, 24]


def test_a_model_with_a_fixed_batch_is_calibrated_refined_and_measured(tmp_path: Path) -> None:
    fixed = save_model(tmp_path, net=network(dims=(4, 3, SIDE, SIDE)))
    free = save_model(tmp_path, "free.onnx")
    data, other = save_images(tmp_path / "data", 30), save_images(tmp_path / "other", 18, seed=5)
    one, two = (
        run(Inputs(path, data, evaluation=other), tmp_path / "q.onnx", BALANCED).fidelity for path in (fixed, free)
    )
    assert one is not None
    assert two is not None
    assert one.images == two.images == 18
    assert one.sqnr_db == pytest.approx(two.sqnr_db, abs=0.3)
    assert one.top1_float == two.top1_float


def test_the_same_images_and_seed_give_the_same_file(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 40)
    reports = [run(Inputs(model, data, images=20), tmp_path / f"{name}.onnx", BALANCED) for name in "ab"]
    assert reports[0].sha256 == reports[1].sha256
    other = run(Inputs(model, data, images=20), tmp_path / "c.onnx", replace(BALANCED, seed=1))
    assert other.ranges.images_sha256 != reports[0].ranges.images_sha256


def test_what_was_done_is_told_not_what_was_asked(tmp_path: Path) -> None:
    from tests.calibration.test_quantise import with_hardswish

    swish = save_model(tmp_path, net=with_hardswish())
    report = run(Inputs(swish, save_images(tmp_path / "data", 30)), tmp_path / "q.onnx", replace(FAST, effort="best"))
    assert report.to_json()["effort"] == "fast"
    told = read_quantisation(onnx.load(tmp_path / "q.onnx"))
    assert told is not None
    assert told["effort"] == "fast"
    assert any("HardSwish" in note for note in report.to_json()["notes"])


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 30)
    (tmp_path / "q.onnx").write_bytes(b"earlier")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="no layer 'nowhere'"):
        run(Inputs(model, data), tmp_path / "q.onnx", replace(BALANCED, keep=frozenset({"nowhere"})))
    assert (tmp_path / "q.onnx").read_bytes() == b"earlier"
    assert sorted(tmp_path.iterdir()) == before


def test_folders_that_were_made_for_the_file_go_again_when_it_fails(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 30)
    with pytest.raises(InputError, match="no layer"):
        run(Inputs(model, data), tmp_path / "new" / "er" / "q.onnx", replace(FAST, keep=frozenset({"nowhere"})))
    assert not (tmp_path / "new").exists()


def test_a_quantised_file_is_refused(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 20)
    run(Inputs(model, data), tmp_path / "q.onnx")
    with pytest.raises(GraphError, match="quantised already"):
        run(Inputs(tmp_path / "q.onnx", data), tmp_path / "r.onnx")
    assert not (tmp_path / "r.onnx").exists()


def test_ranges_of_another_preprocessing_are_refused(tmp_path: Path, model: Path) -> None:
    data = save_images(tmp_path / "data", 20)
    ranges = save_ranges(tmp_path, model, data)
    with pytest.raises(DataError, match=r"another preprocessing.*mean"):
        run(Inputs(model, ranges=ranges, fields={"mean": (0.1, 0.2, 0.3)}), tmp_path / "q.onnx")


def test_nothing_to_calibrate_with_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="--data DIR, or --ranges FILE"):
        run(Inputs(model), tmp_path / "q.onnx")
