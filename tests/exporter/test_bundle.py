"""Bundles: what is in them, that every damaged byte is found and named, and that nothing half-made is left."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from calibration.listing import find_images
from calibration.preprocess import PRESETS, Preprocessing
from exporter.bundle.outputs import for_few
from exporter.bundle.runner import SCHEMA as RUNNER_SCHEMA
from exporter.bundle.verify import VerifyReport, verify_bundle
from exporter.bundle.write import BundleOptions, write_bundle
from exporter.pipeline import export_onnx
from exporter.results import OnnxOptions
from runtimes.errors import DataError, GateError, InputError
from runtimes.tolerance import TOLERANCES, tolerance_for
from tests.exporter.bundles import LABELS, Made, bundle, copied, made, manifest_of, relist, with_metadata, written
from tests.exporter.nets import small
from tests.exporter.test_cli_engine import cli

__all__ = ["bundle", "cli", "made"]

needs_zstd = pytest.mark.skipif(find_spec("zstandard") is None, reason="zstandard is not installed")
FEW = BundleOptions(images=2)


def named(report: VerifyReport) -> list[tuple[str, str]]:
    return [(finding.fault, finding.path) for finding in report.findings]


def flipped(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def test_a_bundle_has_everything_with_its_hash_and_passes(made: Made, bundle: Path) -> None:
    document = manifest_of(bundle)
    assert document["schema"] == RUNNER_SCHEMA
    listed = {entry["path"]: entry for entry in document["files"]}
    there = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert there == listed.keys() | {"manifest.json", "manifest.sha256"}
    for name, entry in listed.items():
        data = (bundle / name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry["sha256"], entry["bytes"])
    assert [(model["id"], model["target"], model["precision"]) for model in document["models"]] == [
        ("fp32", "any", "fp32"), ("onnxruntime-int8", "onnxruntime", "int8"), ("tensorrt-int8", "tensorrt", "int8"),
    ]  # fmt: skip
    float_model = document["models"][0]
    assert float_model["inputs"] == [{"name": "input", "dtype": "float32", "shape": [None, 3, 32, 32]}]
    assert float_model["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [None, 10]}]
    assert float_model["provenance"]["file"] == "net.onnx"
    assert (bundle / "labels.txt").read_text().splitlines() == list(LABELS)
    assert (bundle / "models/fp32/net.onnx").read_bytes() == made.fp32.read_bytes()
    contract = Preprocessing.from_json(json.loads((bundle / "preprocessing.json").read_bytes()))
    assert contract.sha256() == document["preprocessing_sha256"]
    assert "No licence text was given" in (bundle / "LICENSE.txt").read_text()
    report = verify_bundle(bundle)
    assert report.passed
    assert {each.runtime for each in report.replays if each.rows} >= {"onnxruntime"}


def test_the_tolerances_are_rows_of_the_table(bundle: Path) -> None:
    rows = {
        (model["id"], row["against"], row["runtime"], row["precision"]): row
        for model in manifest_of(bundle)["models"]
        for row in model["tolerances"]
    }
    own = rows["fp32", "reference", "onnxruntime", "fp32"]
    assert {name: own[name] for name in tolerance_for("onnxruntime", "fp32").to_json()} == tolerance_for(
        "onnxruntime", "fp32"
    ).to_json()
    assert rows["fp32", "reference", "tensorrt", "fp16"]["min_sqnr_db"] == 40
    # Made for TensorRT: it is held to more there than on a runtime that rounds elsewhere.
    simulated = {
        name: rows["tensorrt-int8", "golden", name, "int8"]["min_sqnr_db"] for name in ("tensorrt", "openvino")
    }
    assert simulated == {"tensorrt": 34, "openvino": 24}
    assert ("tensorrt-int8", "golden", "onnxruntime", "fp32") not in rows


@pytest.mark.parametrize(("count", "allowed"), [(1, 0.0), (2, 0.0), (8, 6 / 8), (16, 13 / 16), (1000, 0.899)])
def test_of_few_images_one_may_change_its_class(count: int, allowed: float) -> None:
    assert for_few(TOLERANCES["onnxruntime", "int8"], count).min_top1 == pytest.approx(allowed)


def test_golden_outputs_are_what_the_file_computes_whoever_runs_it(bundle: Path) -> None:
    import onnxruntime

    document = manifest_of(bundle)
    images = np.load(bundle / "goldens/input.npy")
    session = onnxruntime.InferenceSession(bundle / document["models"][0]["file"], providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images})
    np.testing.assert_allclose(np.load(bundle / "goldens/reference.npy"), logits, rtol=1e-4, atol=1e-4)
    assert [model["golden_by"] for model in document["models"]] == ["onnxruntime", "int8-sim", "int8-sim"]


def test_golden_pixels_are_the_originals(made: Made, bundle: Path) -> None:
    contract = Preprocessing.from_json(json.loads((bundle / "preprocessing.json").read_bytes()))
    images = np.load(bundle / "goldens/input.npy")
    for tensor, entry in zip(images, manifest_of(bundle)["goldens"]["images"], strict=True):
        with Image.open(made.data / entry["name"]) as original, Image.open(bundle / entry["pixels"]) as kept:
            assert np.array_equal(np.asarray(original.convert("RGB")), np.asarray(kept))
            assert contract.apply(original).tobytes() == tensor.tobytes()


def test_a_flipped_byte_is_found_in_every_file_and_named(bundle: Path, tmp_path: Path) -> None:
    broken = copied(bundle, tmp_path / "b")
    random = np.random.default_rng(0)
    for path in sorted(path for path in broken.rglob("*") if path.is_file()):
        name, data = path.relative_to(broken).as_posix(), path.read_bytes()
        every = range(len(data)) if name == "manifest.sha256" else {0, len(data) - 1}
        for place in {*every, *random.integers(0, len(data), 4).tolist()}:
            for bit in (0, 5) if name == "manifest.sha256" else (int(random.integers(8)),):
                flipped(path, place, bit)
                assert [found[1] for found in named(verify_bundle(broken, run=False))] == [name], (name, place, bit)
                path.write_bytes(data)
    assert verify_bundle(broken, run=False).passed


def test_missing_extra_and_cut_files_are_named(bundle: Path, tmp_path: Path) -> None:
    broken = copied(bundle, tmp_path / "b")
    (broken / "labels.txt").unlink()
    (broken / "goldens/notes.txt").write_text("x")
    (broken / "empty").mkdir()
    shorter = broken / "goldens/input.npy"
    shorter.write_bytes(shorter.read_bytes()[:-1])
    assert named(verify_bundle(broken)) == [
        ("extra", "empty"), ("altered", "goldens/input.npy"), ("extra", "goldens/notes.txt"), ("missing", "labels.txt"),
    ]  # fmt: skip
    (broken / "manifest.json").unlink()
    assert named(verify_bundle(broken)) == [("missing", "manifest.json")]
    shutil.copy(bundle / "manifest.json", broken)
    (broken / "manifest.sha256").unlink()
    assert ("missing", "manifest.sha256") in named(verify_bundle(broken))


def test_a_model_that_computes_something_else_fails_the_replay(bundle: Path, tmp_path: Path) -> None:
    """All hashes fit: somebody has made the bundle anew around another network."""
    broken = copied(bundle, tmp_path / "b")
    path = broken / "models/fp32/net.onnx"
    model = onnx.load(path)
    weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    relist(broken, "models/fp32/net.onnx")
    report = verify_bundle(broken)
    assert not report.findings
    assert not report.passed
    assert [each.model for each in report.replays if not each.passed and each.runtime == "onnxruntime"] == ["fp32"]


def test_pixels_that_become_other_tensors_are_named(bundle: Path, tmp_path: Path) -> None:
    broken = copied(bundle, tmp_path / "b")
    path = broken / "goldens/pixels/0001.png"
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    relist(broken, "goldens/pixels/0001.png")
    assert verify_bundle(broken).pixels == ("goldens/pixels/0001.png",)


def test_the_same_models_and_images_give_the_same_bytes(made: Made, bundle: Path, tmp_path: Path) -> None:
    again = written(made, tmp_path / "again")
    names = [path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()]
    assert all((again / name).read_bytes() == (bundle / name).read_bytes() for name in names)


@needs_zstd
def test_an_archive_has_the_same_bytes_under_every_name_and_verifies(made: Made, bundle: Path, tmp_path: Path) -> None:
    one, two = written(made, tmp_path / "one.tar.zst"), written(made, tmp_path / "two.tar.zst")
    assert one.read_bytes() == two.read_bytes()
    report = verify_bundle(one)
    assert report.passed
    assert report.manifest_sha256 == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()


def test_an_earlier_bundle_is_replaced_and_nothing_else_is(made: Made, tmp_path: Path) -> None:
    target = tmp_path / "b"
    write_bundle([made.fp32, made.ort], made.images, target, FEW)
    write_bundle([made.fp32], made.images, target, FEW)
    assert [model["id"] for model in manifest_of(target)["models"]] == ["fp32"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other things"):
        write_bundle([made.fp32], made.images, tmp_path / "mine", FEW)
    with pytest.raises(InputError, match=r"is a file.*tar\.zst"):
        write_bundle([made.fp32], made.images, tmp_path / "mine" / "thesis.txt", FEW)
    inside = shutil.copy(made.fp32, target / "own.onnx")
    with pytest.raises(InputError, match="which is replaced"):
        write_bundle([inside], made.images, target, FEW)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), InputError("no")])
def test_an_interrupted_run_leaves_the_old_bundle_and_no_part(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    target = tmp_path / "b"
    write_bundle([made.fp32], made.images, target, FEW)
    before = (target / "manifest.json").read_bytes()

    def stop(_: Any) -> str:
        raise error

    monkeypatch.setattr("exporter.bundle.write.readme", stop)
    with pytest.raises(BaseException, match=r"full|no|^$"):
        write_bundle([made.fp32, made.ort], made.images, target, FEW)
    assert (target / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_model_of_other_weights_is_no_part_of_a_bundle(made: Made, tmp_path: Path) -> None:
    target, other = tmp_path / "b", tmp_path / "other.onnx"
    write_bundle([made.fp32], made.images, target, FEW)
    export_onnx(small(seed=1), other, OnnxOptions(labels=LABELS))
    with pytest.raises(GateError, match=r"other\.onnx on onnxruntime does not compute what the reference"):
        write_bundle([made.fp32, other], made.images, target, FEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.previous", "other.onnx"]


def test_models_that_do_not_belong_together_are_refused(made: Made, tmp_path: Path) -> None:
    target = tmp_path / "b"
    contract = PRESETS["cifar"].with_overrides(mean=(0.5, 0.5, 0.5))
    otherwise = with_metadata(made.ort, tmp_path / "o.onnx", preprocessing=contract.to_json(),
                              preprocessing_sha256=contract.sha256())  # fmt: skip
    with pytest.raises(InputError, match="different preprocessing"):
        write_bundle([made.fp32, otherwise], made.images, target, FEW)
    renamed = with_metadata(made.ort, tmp_path / "l.onnx", classes={"labels": list(map(str, range(10)))})
    with pytest.raises(InputError, match="name their classes differently"):
        write_bundle([made.fp32, renamed], made.images, target, FEW)
    with pytest.raises(InputError, match="same model"):
        write_bundle([made.fp32, shutil.copy(made.fp32, tmp_path / "c.onnx")], made.images, target, FEW)
    with pytest.raises(InputError, match="ONNX file at least"):
        write_bundle([], made.images, target, FEW)
    few = tmp_path / "labels.txt"
    few.write_text("cat\ndog\n")
    with pytest.raises(InputError, match="2 class names, and the models tell 10 apart"):
        write_bundle([made.fp32], made.images, target, BundleOptions(images=2, labels=few))
    checkpoint = tmp_path / "net.pth"
    checkpoint.write_bytes(b"x")
    with pytest.raises(InputError):
        write_bundle([checkpoint], made.images, target, FEW)
    assert not target.exists()


def test_a_model_that_tells_nothing_needs_a_preset(made: Made, tmp_path: Path) -> None:
    silent = tmp_path / "silent.onnx"
    model = onnx.load(made.fp32)
    del model.metadata_props[:]
    onnx.save(model, silent)
    with pytest.raises(InputError, match="--preset"):
        write_bundle([silent], made.images, tmp_path / "b", FEW)
    report = write_bundle([silent, made.ort], made.images, tmp_path / "b", BundleOptions(images=2, preset="cifar"))
    assert verify_bundle(report.bundle).passed


@pytest.mark.parametrize("options", [OnnxOptions(batch=4), OnnxOptions(precision="fp16", fp16_io=True)])
def test_fixed_batches_and_fp16_inputs_are_fed_as_they_are_told(made: Made, tmp_path: Path, options: Any) -> None:
    other = tmp_path / "other.onnx"
    export_onnx(small(), other, options)
    write_bundle([other, made.fp32], made.images, tmp_path / "b", BundleOptions(images=3))
    assert manifest_of(tmp_path / "b")["goldens"]["reference_model"] == "fp32"
    report = verify_bundle(tmp_path / "b")
    assert report.passed, report.replays


def test_external_weights_come_along(made: Made, tmp_path: Path) -> None:
    apart = tmp_path / "apart.onnx"
    onnx.save(onnx.load(made.fp32), apart, save_as_external_data=True, location="apart.weights", size_threshold=0)
    write_bundle([apart], made.images, tmp_path / "b", FEW)
    (model,) = manifest_of(tmp_path / "b")["models"]
    assert model["others"] == ["models/fp32/apart.weights"]
    assert verify_bundle(tmp_path / "b").passed
    flipped(tmp_path / "b/models/fp32/apart.weights", 5)
    assert named(verify_bundle(tmp_path / "b")) == [("altered", "models/fp32/apart.weights")]


def test_arrays_are_golden_images_too(made: Made, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    np.save(tmp_path / "pixels.npy", random.integers(0, 256, (3, 32, 32, 3), np.uint8))
    np.save(tmp_path / "tensors.npy", random.standard_normal((3, 3, 32, 32)).astype(np.float32))
    for name, kept in (("pixels", True), ("tensors", False)):
        images = find_images(tmp_path / f"{name}.npy")
        write_bundle([made.fp32], images, tmp_path / name, FEW)
        entries = manifest_of(tmp_path / name)["goldens"]["images"]
        assert [entry["pixels"] is not None for entry in entries] == [kept, kept]
        assert verify_bundle(tmp_path / name).passed
    tensors = np.load(tmp_path / "tensors/goldens/input.npy")
    assert any(np.array_equal(tensors[0], row) for row in np.load(tmp_path / "tensors.npy"))


def test_a_large_photograph_is_kept_small_and_true_to_its_own_pixels(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9286] = "where I live"
    Image.fromarray(photograph).save(tmp_path / "images/p.jpg", exif=exif)
    from calibration.listing import ImageFile
    from exporter.bundle.goldens import golden_images

    (golden,), tensors = golden_images([ImageFile(tmp_path / "images/p.jpg")], PRESETS["imagenet"])
    assert golden.png is not None
    (tmp_path / "kept.png").write_bytes(golden.png)
    with Image.open(tmp_path / "kept.png") as kept:
        assert kept.size == (512, 682)  # upright, twice the contract's resize
        assert not kept.getexif()
        assert b"where I live" not in golden.png
        assert PRESETS["imagenet"].apply(kept).tobytes() == tensors[0].tobytes()


def test_a_licence_is_copied(made: Made, tmp_path: Path) -> None:
    text = tmp_path / "NOTICE"
    text.write_text("Weights: example, CC-BY\n")
    write_bundle([made.fp32], made.images, tmp_path / "b", BundleOptions(images=1, license=text))
    assert (tmp_path / "b/LICENSE.txt").read_text() == text.read_text()
    assert manifest_of(tmp_path / "b")["license"]["given"]
    text.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="--license"):
        write_bundle([made.fp32], made.images, tmp_path / "c", BundleOptions(images=1, license=text))


def test_no_images_no_bundle(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_bundle([made.fp32], [], tmp_path / "new" / "b", FEW)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="expected 1 or more"):
        BundleOptions(images=0)


def test_an_engine_comes_with_the_model_that_it_was_built_from(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")
    from exporter.engine import build_engine
    from runtimes.tensorrt.build import BuildOptions

    engine = tmp_path / "net.engine"
    build_engine(made.fp32, engine, BuildOptions(compute_capabilities=("8.6",)))
    with pytest.raises(InputError, match="which is not among those given"):
        write_bundle([made.ort, engine], made.images, tmp_path / "b", FEW)
    write_bundle([made.fp32, engine], made.images, tmp_path / "b", FEW)
    model = manifest_of(tmp_path / "b")["models"][1]
    assert (model["kind"], model["source"], model["id"]) == ("tensorrt-rtx", "fp32", "tensorrt-rtx-engine-fp32")
    assert model["provenance"]["targets"] == ["8.6"]
    assert {row["runtime"] for row in model["tolerances"]} == {"tensorrt-rtx"}
    report = verify_bundle(tmp_path / "b")
    assert report.passed
    engine.with_name("net.engine.json").unlink()
    with pytest.raises(InputError, match="no document about it"):
        write_bundle([made.fp32, engine], made.images, tmp_path / "c", FEW)


def test_the_commands_print_one_document_and_exit_with_the_verdict(made: Made, tmp_path: Path, cli: Any) -> None:
    target = tmp_path / "b"
    words = ("bundle", made.fp32, made.ort, "--data", made.data, "--images", "2", "-o", target)
    done = cli(*words, "--json")
    assert done.code == 0, done.err
    assert done.document["manifest"]["models"][1]["measured"][1]["against"] == "golden"
    assert cli("verify", target, "--json").document["passed"] is True
    assert "are whole" in cli("verify", target).out
    flipped(target / "run.py", 100)
    done = cli("verify", target)
    assert done.code == 1
    assert "altered  run.py" in done.out
    found = cli("verify", target, "--json")
    assert (found.code, found.document["findings"][0]["path"]) == (1, "run.py")
    done = cli("verify", tmp_path)
    assert done.code == 2
    assert "is no bundle" in done.err


def test_the_digits_make_a_bundle(tmp_path: Path, cli: Any) -> None:
    digits = Path(__file__).parents[2] / "examples" / "digits"
    float_file = tmp_path / "float.onnx"
    assert cli("onnx", digits / "digits_resnet14.pth", "-o", float_file, "-q").code == 0
    done = cli("bundle", float_file, "--data", digits / "images" / "test", "--labels", digits / "labels.txt",
               "-o", tmp_path / "b", "-q")  # fmt: skip
    assert done.code == 0, done.err
    assert cli("verify", tmp_path / "b", "-q").code == 0
