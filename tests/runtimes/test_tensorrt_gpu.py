"""Engines on a real GPU: what they compute, and what they leave behind. Skipped, never passed, without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.engine import build_engine
from exporter.models.source import SourceOptions, load_model
from exporter.pipeline import export_onnx
from exporter.results import OnnxOptions
from runtimes.errors import InputError, TensorError, UnavailableError
from runtimes.int8_sim import Int8SimRuntime
from runtimes.ort import OrtRuntime
from runtimes.statistics import compare
from runtimes.tensorrt.build import BuildOptions
from runtimes.tensorrt.cuda import Gpu
from runtimes.tensorrt.device import find_devices
from runtimes.tensorrt.flavour import installed
from runtimes.tensorrt.profile import Size
from runtimes.tensorrt.run import TensorRTRuntime
from tests.exporter.resnet18_files import files

pytestmark = pytest.mark.gpu
__all__ = ["files"]
#: SQNR against the same file on the CPU. Kernels of another precision than the file's would fall below.
FLOORS = {"fp32": 90.0, "fp16": 45.0, "int8": 30.0}
SIZES = (Size(1), Size(4), Size(8))
_LEFT_BEHIND = 64 << 20  # of device memory: the driver keeps pools and kernels of its own


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def package(request: pytest.FixtureRequest) -> str:
    if not find_devices().devices:
        pytest.skip(f"not run: {find_devices().reason}")
    if request.param not in [item.name for item in installed() if item.can_build]:
        pytest.skip(f"not run: {request.param} is not installed")
    return str(request.param)


@pytest.fixture(scope="module")
def engine_of(package: str, files: dict[str, Path]) -> dict[str, Path]:
    """Engines for the GPU that is here."""
    capability = "{}.{}".format(*find_devices().devices[0].compute_capability)
    made = {}
    for kind, source in files.items():
        engine = source.with_name(f"{package}-{kind}.engine")
        named = (capability,) if package == "tensorrt_rtx" else ()
        try:
            build_engine(source, engine, BuildOptions(sizes=SIZES, compute_capabilities=named), name=package)
        except UnavailableError as error:
            pytest.skip(f"not run: {package} cannot build here: {error}")
        except InputError as error:
            if "does not build for compute capability" not in str(error):
                raise
            pytest.skip(f"not run: {error}")
        made[kind] = engine
    return made


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 224, 224)).astype(np.float32)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("count", [1, 4, 8, 11])
def test_an_engine_computes_what_its_file_does(
    kind: str, count: int, engine_of: dict[str, Path], files: dict[str, Path]
) -> None:
    peer = Int8SimRuntime(files[kind]) if kind == "int8" else OrtRuntime(files[kind])
    with TensorRTRuntime(engine_of[kind]) as runtime, peer:
        found = compare(peer.run(images(count)), runtime.run(images(count)))
    assert found.sqnr_db >= FLOORS[kind]


def test_graphs_change_nothing(engine_of: dict[str, Path]) -> None:
    outputs = []
    for graphs in (False, True):
        with TensorRTRuntime(engine_of["fp16"], cuda_graph=graphs) as runtime:
            outputs.append([runtime.run(images(4, seed)) for seed in (0, 1, 2, 0)])
            assert (runtime.used["cuda_graph"] == "off") is not graphs
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_results_belong_to_the_caller(engine_of: dict[str, Path]) -> None:
    with TensorRTRuntime(engine_of["fp32"]) as runtime:
        first = runtime.run(images(2))
        kept = first.copy()
        runtime.run(images(2, 1))
    np.testing.assert_array_equal(first, kept)


def test_memory_is_given_back_after_closing_and_after_an_error(engine_of: dict[str, Path]) -> None:
    with Gpu() as gpu:
        for attempt in range(4):
            if attempt == 1:
                before = gpu.free_bytes()  # the first opening loads kernels, which stay
            with TensorRTRuntime(engine_of["fp32"]) as runtime:
                runtime.run(images(8))
                with pytest.raises(TensorError):
                    runtime.run(np.zeros((1, 3, 100, 100), np.float32))
        assert before - gpu.free_bytes() < _LEFT_BEHIND


def test_the_layer_table_names_every_convolution(engine_of: dict[str, Path]) -> None:
    from exporter.layers import read_layer_report

    report = read_layer_report(engine_of["int8"])
    assert report.summary is not None, report.reason
    counted = report.summary["counts"]["Conv"]
    assert sum(counted.values()) == 20
    assert counted.get("INT8", 0) >= 19, report.summary["sentences"]


def test_an_exported_network_beside_eager_pytorch(package: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    loaded = load_model("resnet20", SourceOptions(weights="random"))
    export_onnx(loaded, tmp_path / "m.onnx", OnnxOptions())
    named = ("{}.{}".format(*find_devices().devices[0].compute_capability),) if package == "tensorrt_rtx" else ()
    build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", BuildOptions(compute_capabilities=named), name=package)
    batch = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        reference = loaded.module(torch.from_numpy(batch)).numpy()
    with TensorRTRuntime(tmp_path / "m.engine") as runtime:
        assert compare(reference, runtime.run(batch)).sqnr_db >= FLOORS["fp32"]
