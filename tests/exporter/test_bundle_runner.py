"""``run.py``: one file without this toolkit that makes the same pixels, the same statistics and the same verdicts."""

from __future__ import annotations

import ast
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calibration.preprocess import Preprocessing
from exporter.bundle import runner
from exporter.bundle.outputs import bounds_of
from exporter.bundle.write import BundleOptions, write_bundle
from runtimes.errors import DataError
from runtimes.statistics import compare
from runtimes.tensorrt.generations import TABLE, generation
from runtimes.tensorrt.precision import typing
from runtimes.tolerance import TOLERANCES
from tests.exporter.bundles import Made, bundle, copied, made, manifest_of, relist, rewrite, run_py
from tests.runtimes.trt_fake import VERSIONS, Fake

__all__ = ["bundle", "made"]
SOURCE = Path(runner.__file__)

# --- what it is -------------------------------------------------------------------------------------------------------


def test_its_syntax_is_that_of_python_3_8() -> None:
    ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_it_imports_nothing_but_the_standard_library_and_what_it_names() -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "PIL", "onnxruntime"}


def test_it_uses_no_name_that_is_newer_than_python_3_8() -> None:
    """Methods that came with 3.9 to 3.12; the syntax check does not see them."""
    newer = {"removeprefix", "removesuffix", "is_relative_to", "with_stem", "readlink", "hardlink_to", "file_digest",
             "pairwise", "batched", "bit_count", "to_thread", "walk_up"}  # fmt: skip
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    assert not newer & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keywords = {
        (node.func.id, keyword.arg)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        for keyword in node.keywords
    }
    assert ("zip", "strict") not in keywords


# --- the same pixels --------------------------------------------------------------------------------------------------

MODES = ("RGB", "L", "RGBA", "P", "PA", "CMYK", "LA", "1", "I;16", "I", "YCbCr", "HSV")


@st.composite
def contracts(draw: st.DrawFn) -> Preprocessing:
    color = draw(st.sampled_from(["RGB", "BGR", "L"]))
    channels = 1 if color == "L" else 3
    numbers = st.floats(0.0625, 2.0, width=32)
    resize = draw(st.none() | st.integers(4, 40))
    fixed = draw(st.booleans()) or resize is not None
    side = st.integers(1, resize or 8)
    return Preprocessing(
        size=(draw(side), draw(side)) if fixed else None,
        resize=resize,
        crop="center" if fixed else "none",
        interpolation=draw(st.sampled_from(["bilinear", "bicubic", "nearest"])),
        color=color,  # type: ignore[arg-type]  # mypy does not see what is sampled
        scale=draw(st.sampled_from([1 / 255, 1.0, 0.0078125])),
        mean=tuple(draw(numbers) for _ in range(channels)),
        std=tuple(draw(numbers) for _ in range(channels)),
        orientation=draw(st.sampled_from(["exif", "none"])),
    )


def picture(mode: str, width: int, height: int, seed: int, turn: int) -> Image.Image:
    random = np.random.default_rng(seed)
    if mode in ("I;16", "I"):
        values = random.integers(0, 1 << 16, (height, width))
        image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    else:
        base = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        if mode in ("RGBA", "LA", "PA"):
            base.putalpha(Image.fromarray(random.integers(0, 256, (height, width), np.uint8)))
        image = base.convert(mode) if mode != "P" else base.quantize(17)
        if mode == "P" and seed % 2:
            image.info["transparency"] = bytes(random.integers(0, 256, 17, np.uint8))
    if turn:
        image.getexif()[0x0112] = turn
    return image


@settings(max_examples=400, deadline=None)
@given(contract=contracts(), mode=st.sampled_from(MODES), width=st.integers(1, 60), height=st.integers(1, 60),
       seed=st.integers(0, 1 << 30), turn=st.integers(0, 8))  # fmt: skip
def test_it_makes_the_same_tensor_bit_for_bit(
    contract: Preprocessing, mode: str, width: int, height: int, seed: int, turn: int
) -> None:
    image, twin = (picture(mode, width, height, seed, turn) for _ in range(2))
    plain = json.loads(json.dumps(contract.to_json()))
    try:
        expected = contract.apply(image)
    except DataError:
        with pytest.raises(runner.RunError):
            runner.tensor_of(twin, plain)
        return
    found = runner.tensor_of(twin, plain)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def test_files_of_every_format_become_the_same_tensors(tmp_path: Path) -> None:
    contract = Preprocessing((24, 24), 30, "center", "bicubic", "RGB", 1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    plain = contract.to_json()
    cases = {"a.jpg": "RGB", "b.jpg": "CMYK", "c.png": "RGBA", "d.png": "P", "e.png": "I;16", "f.gif": "P",
             "g.tif": "CMYK", "h.bmp": "RGB", "i.webp": "RGBA", "j.ppm": "RGB", "k.png": "1"}  # fmt: skip
    for name, mode in cases.items():
        image = picture(mode, 50, 37, 8, 0)
        if name == "a.jpg":
            exif = Image.Exif()
            exif[0x0112] = 5
            image.save(tmp_path / name, exif=exif)
        else:
            image.save(tmp_path / name)
        ((_, found),) = runner.images_of(tmp_path / name, plain)
        with Image.open(tmp_path / name) as original:
            assert found.tobytes() == contract.apply(original).tobytes(), name


def test_rows_of_arrays_are_tensors_or_pixels(tmp_path: Path) -> None:
    contract = Preprocessing((8, 8), None, "none", "bilinear", "BGR", 1.0, (1.0, 2.0, 3.0), (1.0, 2.0, 3.0))
    plain = contract.to_json()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    np.save(tmp_path / "p.npy", pixels)
    for (_, found), row in zip(runner.images_of(tmp_path / "p.npy", plain), pixels, strict=True):
        assert found.tobytes() == contract.apply_pixels(row).tobytes()
    np.save(tmp_path / "t.npy", np.ones((3, 8, 8), np.float16))
    ((name, tensor),) = runner.images_of(tmp_path / "t.npy", plain)
    assert (name, tensor.shape, tensor.dtype) == (f"{tmp_path / 't.npy'}[0]", (3, 8, 8), np.float32)
    np.save(tmp_path / "w.npy", np.ones((1, 3, 9, 8), np.float32))
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "x.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    for name in ("w.npy", "o.npy", "x.eps", "none.png"):
        with pytest.raises(runner.RunError) as error:
            runner.images_of(tmp_path / name, plain)
        assert error.value.code == 2


# --- the same statistics and verdicts ---------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 1 << 30), rows=st.integers(1, 6), classes=st.integers(1, 12),
       noise=st.sampled_from([0.0, 1e-30, 1e-7, 1e-3, 0.1, 2.0]), scale=st.sampled_from([0.0, 1e-38, 1.0, 1e30]),
       offset=st.sampled_from([0.0, 100.0]), bad=st.sampled_from([None, np.nan, np.inf]))  # fmt: skip
def test_its_verdicts_are_those_of_the_toolkit(
    seed: int, rows: int, classes: int, noise: float, scale: float, offset: float, bad: float | None
) -> None:
    random = np.random.default_rng(seed)
    reference = ((random.standard_normal((rows, classes)) + offset) * scale).astype(np.float32)
    candidate = (reference + scale * noise * random.standard_normal((rows, classes))).astype(np.float32)
    if bad is not None:
        candidate[-1, 0] = bad
    expected, found = compare(reference, candidate), runner.compare(reference, candidate)
    assert found["finite"] == expected.finite
    if expected.finite:
        for name in ("max_abs", "max_ulp", "sqnr_db", "decision_sqnr_db", "top1_agreement"):
            assert found[name] == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-9), name
    for bounds in TOLERANCES.values():
        assert bool(runner.judge(found, bounds.to_json())) is not bounds.judge(expected)[0]


def test_outputs_of_another_shape_never_pass() -> None:
    found = runner.compare(np.zeros((2, 3)), np.zeros((2, 1)))
    assert runner.judge(found, TOLERANCES["onnxruntime", "int8"].to_json())


# --- the commands, without this repository ----------------------------------------------------------------------------


def test_check_passes_where_the_toolkit_is_not(bundle: Path) -> None:
    done = run_py(bundle, "check")
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout
    for model in manifest_of(bundle)["models"]:
        assert f"{model['id']} on onnxruntime, against the reference" in done.stdout
    assert done.stdout.count("against the golden") == 2


def test_it_sees_nothing_of_this_repository(bundle: Path) -> None:
    """What the tests above rest on: with ``-I`` the current folder is not on the path, and nothing is preloaded."""
    import subprocess

    code = "import importlib.machinery as m, sys; print(m.PathFinder.find_spec('exporter', [p for p in sys.path if p]))"
    done = subprocess.run([sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
    packages = {Path(str(find_spec(name).origin)).parents[1] for name in ("numpy", "onnxruntime", "PIL")}  # type: ignore[union-attr]
    start = (
        "import sys; sys.path += {!r}; import runpy; sys.argv = ['run.py', 'check']; "
        "runpy.run_path({!r}, run_name='__main__')"
    )
    script = start.format(sorted(map(str, packages)), str(bundle / "run.py"))
    done = subprocess.run([sys.executable, "-S", "-I", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_onnx_runtime_check_says_what_to_install(bundle: Path) -> None:
    start = (
        "import sys; sys.modules['onnxruntime'] = None; import runpy; sys.argv = ['run.py', 'check']; "
        f"runpy.run_path({str(bundle / 'run.py')!r}, run_name='__main__')"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-I", "-c", start], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "pip install onnxruntime" in done.stderr


def test_classify_names_classes_of_files_and_arrays(bundle: Path) -> None:
    done = run_py(bundle, "classify", "--top", "2", bundle / "goldens/pixels/0000.png", bundle / "goldens/input.npy",
                  "--model", "fp32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    logits = np.load(bundle / "goldens/reference.npy")
    assert [line.split("  ")[1].rsplit(" ", 1)[0] for line in lines[1:]] == [f"class {i}" for i in logits.argmax(1)]
    assert lines[0].split("  ")[1:] == lines[1].split("  ")[1:]


def test_bench_times_every_model(bundle: Path) -> None:
    done = run_py(bundle, "bench", "--seconds", "0.05", "--batch", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images/s") == 3


def test_nothing_runs_in_a_bundle_with_a_flipped_byte(bundle: Path, tmp_path: Path) -> None:
    broken = copied(bundle, tmp_path / "b")
    random = np.random.default_rng(2)
    for path in sorted(path for path in broken.rglob("*") if path.is_file() and path.name != "run.py"):
        data = bytearray(path.read_bytes())
        place = int(random.integers(len(data)))
        data[place] ^= 1 << int(random.integers(8))
        original = path.read_bytes()
        path.write_bytes(data)
        with pytest.raises(runner.RunError, match=path.name) as error:
            runner.Bundle(broken)
        assert error.value.code == 1
        path.write_bytes(original)
    runner.Bundle(broken)
    (broken / "run.py").write_text((broken / "run.py").read_text() + "\n# \n")
    done = run_py(broken, "check")
    assert (done.returncode, "run.py is altered" in done.stderr) == (1, True)


def test_extra_missing_linked_and_outside_files_are_refused(bundle: Path, tmp_path: Path) -> None:
    broken = copied(bundle, tmp_path / "b")
    (broken / "x.txt").write_text("x")
    (broken / "labels.txt").unlink()
    (broken / "labels.txt").symlink_to(bundle / "labels.txt")
    with pytest.raises(runner.RunError, match=r"labels.txt is a link.*labels.txt is missing.*x.txt is extra"):
        runner.Bundle(broken)
    for path in ("../b/labels.txt", "/etc/passwd", "a\\b", "a//b", "."):
        document = manifest_of(bundle)
        document["files"][0]["path"] = path
        rewrite(broken, document)
        with pytest.raises(runner.RunError, match="outside of the bundle") as error:
            runner.Bundle(broken)
        assert error.value.code == 2


def test_a_device_that_computes_something_else_fails(bundle: Path, tmp_path: Path) -> None:
    broken = copied(bundle, tmp_path / "b")
    golden = np.load(broken / "goldens/reference.npy")
    np.save(broken / "goldens/reference.npy", golden + np.float32(0.01))
    relist(broken, "goldens/reference.npy")
    done = run_py(broken, "check", "--model", "fp32")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "SQNR is" in done.stdout


def test_bounds_are_those_of_the_manifest(bundle: Path) -> None:
    row = manifest_of(bundle)["models"][0]["tolerances"][0]
    assert bounds_of(row).to_json() == {name: row[name] for name in bounds_of(row).to_json()}


# --- building ---------------------------------------------------------------------------------------------------------


def bindings(version: str) -> Any:
    fake = Fake(version)
    fake.results["OnnxParser", "parse_from_file"] = lambda *_: True
    # Of an ILogger the fake knows how it is subclassed; this class is used as it is.
    assert {"ERROR", "WARNING"} <= {*fake.facts["Logger"]}
    fake.module.Logger = type("Logger", (), {"ERROR": 1, "WARNING": 2, "__init__": lambda self, severity: None})
    return fake


def wanted(**given: Any) -> Any:
    return SimpleNamespace(**{"model": None, "output": None, "precision": None, "batch": 1, "max_batch": 8, "dla": None,
                              "workspace": None, "trtexec": None, "package": "tensorrt", **given})  # fmt: skip


@pytest.fixture(scope="module")
def for_dla(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dla") / "b"
    write_bundle([made.fp32, made.trt], made.images, target, BundleOptions(images=2, dla=True))
    return target


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("model", ["fp32", "tensorrt-int8"])
def test_it_asks_every_tensorrt_for_what_the_toolkit_asks_for(for_dla: Path, version: str, model: str) -> None:
    """The fake has the names of that release and no others; the table of generations is the oracle of the flags."""
    fake = bindings(version)
    package = fake.package
    whole = runner.Bundle(for_dla)
    plan = runner.Plan(whole, whole.model(model), wanted(package=package), runner.number_of(fake.version))
    assert runner.by_bindings(plan, fake.module) == b"plan"
    row = generation(package, fake.version)
    asked = typing(whole.model(model)["precision"], None, row, version)
    flags = {arguments[0].name for arguments in fake.names("IBuilderConfig", "set_flag")}
    assert flags == asked.flags
    assert [arguments[0].name for arguments in fake.names("IBuilderConfig", "clear_flag")] == ["TF32"]
    ((created,),) = fake.names("Builder", "create_network")
    known = fake.module.NetworkDefinitionCreationFlag
    expected = 1 << int(known.EXPLICIT_BATCH) if row.explicit_batch_flag else 0
    if asked.strongly_typed and row.strongly_typed == "optional":
        expected |= 1 << int(known.STRONGLY_TYPED)
    assert created == expected
    assert fake.names("IOptimizationProfile", "set_shape") == [
        ("input", (1, 3, 32, 32), (1, 3, 32, 32), (8, 3, 32, 32))
    ]


@pytest.mark.parametrize("version", [version for version in VERSIONS if not version.startswith("rtx")])
def test_a_dla_gets_what_its_tensorrt_takes(for_dla: Path, version: str) -> None:
    fake, whole = bindings(version), runner.Bundle(for_dla)
    model = whole.model("tensorrt-int8")
    row = generation("tensorrt", fake.version)
    given = wanted(dla=0)
    if row.dla == "absent":
        with pytest.raises(runner.RunError, match="no DLA"):
            runner.Plan(whole, model, given, runner.number_of(fake.version))
        return
    plan = runner.Plan(whole, model, given, runner.number_of(fake.version))
    runner.by_bindings(plan, fake.module)
    assert ("IBuilderConfig", "DLA_core", (0,)) in fake.calls
    shapes = fake.names("IOptimizationProfile", "set_shape")[0][1:]
    assert len(set(shapes)) == 1  # one fixed shape
    if row.dla == "calibrated":
        from runtimes.tensorrt.calibration_cache import read_cache

        assert plan.cache is not None
        number, scales = read_cache(plan.cache)
        assert number == row.cache_number(fake.version)
        assert len(scales) > 5
        assert min(scales.values()) > 0
        assert plan.source.name == "dla.onnx"
        calibrator = next(call[2][0] for call in fake.calls if call[1] == "int8_calibrator")
        assert calibrator.read_calibration_cache() == plan.cache
        assert {arguments[0].name for arguments in fake.names("IBuilderConfig", "set_flag")} == {
            "FP16", "INT8", "GPU_FALLBACK",
        }  # fmt: skip


def test_the_oldest_generation_with_a_dla_from_qdq_is_that_of_the_table(for_dla: Path) -> None:
    whole = runner.Bundle(for_dla)
    for row in TABLE["tensorrt"]:
        try:
            plan = runner.Plan(whole, whole.model("tensorrt-int8"), wanted(dla=0), row.since)
        except runner.RunError:
            found = "absent"
        else:
            found = "explicit" if plan.cache is None else "calibrated"
        assert found == row.dla, row.since


@pytest.mark.parametrize("printed", ["8502", "8601", "100300", "101600", "110400"])
def test_trtexec_is_told_the_same(for_dla: Path, tmp_path: Path, printed: str) -> None:
    """A program that writes down its words and makes a file, in TensorRT's place."""
    program = tmp_path / "trtexec"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"print('&&&& RUNNING TensorRT.trtexec [TensorRT v{printed}] # trtexec')\n"
        "given = dict(word.split('=', 1) for word in sys.argv[1:] if '=' in word)\n"
        "if '--saveEngine' in given:\n"
        f"    json.dump(sys.argv[1:], open({str(tmp_path / 'words.json')!r}, 'w'))\n"
        "    open(given['--saveEngine'], 'wb').write(b'engine')\n"
    )
    program.chmod(0o755)
    here = copied(for_dla, tmp_path / "b")
    done = run_py(here, "build", "--trtexec", program, "--model", "tensorrt-int8", "--batch", "2")
    assert done.returncode == 0, done.stderr
    words = json.loads((tmp_path / "words.json").read_text())
    version = runner.version_of(str(program))
    assert ("--stronglyTyped" in words) == ((9, 1) <= version < (11,))
    assert ("--int8" in words) == (version < (9, 1))
    assert "--optShapes=input:2x3x32x32" in words
    assert "--maxShapes=input:8x3x32x32" in words
    engine = tmp_path / "b.local" / "tensorrt-int8.engine"
    document = json.loads(engine.with_name(f"{engine.name}.json").read_text())
    assert document["source_sha256"] == manifest_of(here)["models"][1]["sha256"]
    assert sorted(path.name for path in engine.parent.iterdir()) == [
        "tensorrt-int8.engine",
        "tensorrt-int8.engine.json",
    ]
    engine.write_bytes(b"another")
    done = run_py(here, "check")
    assert (done.returncode, "not the engine that its document is about" in done.stderr) == (2, True)


def test_precisions_that_cannot_be_had_are_refused(for_dla: Path) -> None:
    whole = runner.Bundle(for_dla)
    assert runner.Plan(whole, whole.model("fp32"), wanted(precision="fp16"), (10, 3, 0)).flags == ["FP16"]
    for model, precision, version in (("fp32", "fp16", (11, 0, 0)), ("fp32", "int8", (10, 3, 0)),
                                      ("tensorrt-int8", "fp16", (8, 6, 1))):  # fmt: skip
        with pytest.raises(runner.RunError):
            runner.Plan(whole, whole.model(model), wanted(precision=precision), version)


def test_an_engine_is_not_put_into_the_bundle(for_dla: Path) -> None:
    done = run_py(for_dla, "build", "-o", for_dla / "x.engine")
    assert (done.returncode, "manifest does not know" in done.stderr) == (2, True)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="there is no TensorRT-RTX for this platform")
def test_it_builds_an_engine_with_tensorrt_rtx(for_dla: Path, tmp_path: Path) -> None:
    here = copied(for_dla, tmp_path / "b")
    done = run_py(here, "build", "--model", "tensorrt-int8")
    assert done.returncode == 0, done.stderr
    from runtimes.kinds import kind_of

    assert kind_of(str(tmp_path / "b.local" / "tensorrt-int8.engine")) == "tensorrt-rtx"
    done = run_py(here, "check", "--model", "tensorrt-int8")
    assert done.returncode == 0, done.stdout
