"""Running engines. Without a GPU: what is refused before one is asked, and the order of what would be asked of it.

The device here is a pretence (:mod:`tests.runtimes.fake_gpu`), which proves no more than that: engines on a real one
are in ``test_tensorrt_gpu.py``.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.errors import GraphError, InputError, ResnetExportError, TensorError, UnavailableError
from runtimes.tensorrt.device import Device, DeviceSearch
from runtimes.tensorrt.plan import read_header
from runtimes.tensorrt.run import TensorRTRuntime
from tests.runtimes.fake_gpu import FakeDriver, put_engine
from tests.runtimes.trt_fake import VERSIONS, Fake

A100 = Device("NVIDIA A100", (8, 0), "13.0", 0, None)
NOWHERE = DeviceSearch((), "no NVIDIA driver")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plan(fake: Fake, version: tuple[int, ...] | None = None) -> bytes:
    """The first bytes of an engine, and something after them."""
    tag = b"vtrt" if fake.package == "tensorrt_rtx" else b"ftrt"
    numbers = version or tuple(map(int, fake.version.split(".")))
    return tag + bytes(20) + bytes((*numbers, 0, 0, 0)[:4]) + b"layers"


class Bench:
    """An engine file, a release and a device, all pretended."""

    def __init__(self, folder: Path, version: str = "10.3.0", **sizes: int) -> None:
        self.fake = Fake(version)
        self.driver = FakeDriver()
        self.path = folder / "model.engine"
        self.path.write_bytes(plan(self.fake))
        self.runs = put_engine(self.fake, self.driver, **sizes)

    def load(self, name: str) -> Any:
        if name != self.fake.package:
            raise ModuleNotFoundError(name=name)
        return self.fake.module

    def describe(self, **document: Any) -> None:
        text = {"sha256": sha256(self.path.read_bytes()).hexdigest(), "flavour": self.fake.package, **document}
        self.path.with_name("model.engine.json").write_text(json.dumps(text))

    def runtime(self, **options: Any) -> TensorRTRuntime:
        search = options.pop("search", DeviceSearch((A100,), ""))
        return TensorRTRuntime(self.path, load=self.load, search=search, driver=self.driver, **options)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 8, 8)).astype(np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    sums: np.ndarray = batch.reshape(len(batch), -1).sum(axis=1)
    return sums[:, None] + np.arange(5, dtype=np.float32)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_release_has_the_names_that_running_needs(version: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, version)
    with bench.runtime() as runtime:
        for _ in range(3):
            np.testing.assert_allclose(runtime.run(images(2)), expected(images(2)), rtol=1e-5)
    assert not bench.driver.memory
    assert not bench.driver.alive


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 9, 17])
def test_a_batch_of_any_size_is_cut_into_pieces_of_the_profile(count: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.runtime(cuda_graph=False) as runtime:
        np.testing.assert_allclose(runtime.run(images(count)), expected(images(count)), rtol=1e-5)
    assert [shape[0] for shape in bench.runs] == [*[4] * (count // 4), *([count % 4] if count % 4 else [])]


def test_a_batch_below_the_smallest_is_filled_up_and_cut_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path, low=4, best=4, high=4)
    with bench.runtime() as runtime:
        assert runtime.run(images(3)).shape == (3, 5)
        np.testing.assert_allclose(runtime.run(images(3)), expected(images(3)), rtol=1e-5)
        np.testing.assert_allclose(runtime.run(images(6)), expected(images(6)), rtol=1e-5)
    assert {shape[0] for shape in bench.runs} == {4}


def test_a_shape_is_captured_at_its_second_run_and_launched_from_then_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.runtime() as runtime:
        for _ in range(5):
            runtime.run(images(2))
        assert len(bench.runs) == 2  # asked of TensorRT once as it is, once for the graph
        assert bench.driver.calls.count("cuGraphLaunch") == 4
        runtime.run(images(3))
        assert "graph" not in bench.driver.alive  # the context has changed, and what was made of it is gone
        np.testing.assert_allclose(runtime.run(images(2)), expected(images(2)), rtol=1e-5)


@pytest.mark.parametrize("function", ["cuStreamEndCapture", "cuGraphInstantiate"])
def test_what_cannot_be_captured_is_run_as_it_is_and_told(function: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.driver.fails[function] = 901
    if function == "cuStreamEndCapture":  # a driver ends the capture also when it says that it was not valid
        bench.driver.cuStreamBeginCapture = lambda *_: (0,)  # type: ignore[method-assign]
    with bench.runtime() as runtime:
        for _ in range(3):
            runtime.run(images(2))
        assert runtime.used["cuda_graph"].startswith("off: ")
    assert runtime.used["cuda_graph"].startswith("off: ")


def test_graphs_can_be_left_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.runtime(cuda_graph=False) as runtime:
        for _ in range(3):
            runtime.run(images(2))
        assert runtime.used["cuda_graph"] == "off"
    assert "cuGraphLaunch" not in bench.driver.calls


def test_images_outside_of_the_profile_are_refused_before_the_device_sees_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fake.results[("ICudaEngine", "get_tensor_shape")] = lambda name: (
        (-1, 3, -1, -1) if name == "input" else (-1, 5)
    )
    bench.fake.results[("ICudaEngine", "get_tensor_profile_shape")] = lambda *_: [
        (1, 3, 6, 6), (1, 3, 8, 8), (2, 3, 10, 10),
    ]  # fmt: skip
    with bench.runtime() as runtime:
        before = bench.driver.calls.copy()
        for side in (4, 12):
            with pytest.raises(TensorError, match=rf"received images 3x{side}x{side}, expected 3x6x6 to 3x10x10"):
                runtime.run(np.zeros((1, 3, side, side), np.float32))
        with pytest.raises(TensorError, match="received float64"):
            runtime.run(np.zeros((1, 3, 8, 8)))
        assert bench.driver.calls == before


def test_a_failing_run_says_why_and_everything_is_given_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fake.results[("IExecutionContext", "execute_async_v3")] = lambda _: False
    with pytest.raises(GraphError, match=r"model\.engine failed on \[2, 3, 8, 8\]"), bench.runtime() as runtime:
        runtime.run(images(2))
    assert not bench.driver.memory
    assert not bench.driver.alive


@pytest.mark.parametrize("function", ["cuStreamSynchronize", "cuMemFree", "cuEventDestroy"])
def test_what_cannot_be_given_back_does_not_keep_the_rest(function: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.runtime() as runtime:
        runtime.run(images(2))
        bench.driver.fails[function] = 700  # the device has failed, and so does every call
    assert "context" not in bench.driver.alive


def test_too_large_a_profile_says_how_much_memory_was_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, high=4096)
    bench.driver.limit = 1 << 20
    with pytest.raises(UnavailableError, match=r"no memory left for 3\.1 MB.*smaller --max"), bench.runtime():
        pass
    assert not bench.driver.memory
    assert not bench.driver.alive


def test_a_context_without_memory_says_how_much_it_wants(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fake.results[("ICudaEngine", "create_execution_context")] = lambda *_: None
    with pytest.raises(UnavailableError, match="needs 1 MB of the GPU"), bench.runtime():
        pass
    assert not bench.driver.alive


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("Version tag does not match. Note: Current Version: 0, Serialized Engine Version: 237", InputError, "version"),
        ("The engine plan file is generated on an incompatible device, expecting compute 8.6 got compute 8.9",
         InputError, "another GPU"),
        ("Serialization assertion stdVersionRead == serializationVersion failed. magicTag", InputError, "damaged"),
        ("CUDA initialization failure with error: out of memory", UnavailableError, "no memory"),
        ("Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)", UnavailableError, "GPU"),
        ("something that nobody has seen", GraphError, "something that nobody has seen"),
    ],
)  # fmt: skip
def test_what_tensorrt_logs_about_an_engine_becomes_a_sentence(
    said: str, kind: type[ResnetExportError], words: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)

    def refuse(*_: Any) -> None:
        logger = bench.fake.names("Runtime", "__init__")[-1][0]
        logger.log(bench.fake.module.ILogger.ERROR, said)

    bench.fake.results[("Runtime", "deserialize_cuda_engine")] = refuse
    with pytest.raises(kind, match=words), bench.runtime():
        pass
    assert not bench.driver.alive


def test_without_a_gpu_it_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="needs an NVIDIA GPU: no NVIDIA driver") as caught:  # noqa: SIM117
        with Bench(tmp_path).runtime(search=NOWHERE):
            pass
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="received device 3, and there are 1"), Bench(tmp_path).runtime(device=3):
        pass


def test_what_is_no_engine_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for data in (b"", b"ftrt", b"\x08\x08onnx" + bytes(100)):
        bench.path.write_bytes(data)
        with pytest.raises(InputError, match="is no TensorRT engine"), bench.runtime():
            pass
    bench.path.unlink()
    with pytest.raises(InputError, match="cannot be read"), bench.runtime():
        pass


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"targets": ["8.6", "8.9"]}, "is for compute capability 8.6 or 8.9, and here is NVIDIA A100 with 8.0"),
        ({"gpu": {"name": "Orin", "compute_capability": "8.7"}}, "is for Orin .compute capability 8.7."),
        ({"sha256": "0" * 64}, "is not about the engine"),
    ],
)
def test_an_engine_for_something_else_is_refused_with_the_reason(
    document: dict[str, Any], message: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    bench.describe(**document)
    with pytest.raises(InputError, match=message), bench.runtime():
        pass
    assert not bench.driver.calls


@pytest.mark.parametrize(
    "document",
    [
        {"targets": ["8.0", "8.6"]}, {"gpu": {"name": "A100", "compute_capability": "8.0"}}, {"targets": []},
        {"gpu": {"name": "Orin", "compute_capability": "8.7"}, "options": {"hardware_compatible": "ampere+"}},
    ],
)  # fmt: skip
def test_an_engine_for_this_gpu_is_taken(document: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe(**document)
    with bench.runtime() as runtime:
        assert runtime.run(images(1)).shape == (1, 5)


def test_an_engine_of_another_version_is_refused_unless_it_was_built_for_that(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "10.7.0")
    bench.path.write_bytes(plan(bench.fake, (10, 3, 0, 26)))
    with (
        pytest.raises(InputError, match=r"built by tensorrt 10\.3\.0\.26, and tensorrt 10\.7\.0 runs"),
        bench.runtime(),
    ):
        pass
    bench.describe(options={"version_compatible": True})
    with bench.runtime() as runtime:
        runtime.run(images(1))
    assert bench.fake.names("Runtime", "engine_host_code_allowed") == [(True,)]
    bench.path.write_bytes(plan(bench.fake, (8, 6, 1, 6)))
    bench.describe(options={"version_compatible": True})
    with pytest.raises(InputError, match=r"built by tensorrt 8\.6\.1\.6"), bench.runtime():
        pass


def test_an_engine_of_the_other_package_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "10.7.0")
    bench.path.write_bytes(b"vtrt" + bytes(20) + bytes((1, 7, 1, 116)))
    with pytest.raises(UnavailableError, match="tensorrt_rtx is not installed"), bench.runtime():
        pass
    with pytest.raises(InputError, match=r"is an engine of tensorrt_rtx 1\.7\.1\.116, and tensorrt 10\.7\.0"):  # noqa: SIM117
        with bench.runtime(flavour="tensorrt"):
            pass


def test_an_engine_of_another_model_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(InputError, match="of a model that nothing tells"), bench.runtime(source_sha256="aa"):
        pass
    bench.describe(source_sha256="bb" * 32)
    with pytest.raises(InputError, match="of the model bbbbbbbbbbbb, expected one of aaaaaaaaaaaa"):  # noqa: SIM117
        with bench.runtime(source_sha256="aa" * 32):
            pass
    with bench.runtime(source_sha256="bb" * 32):
        pass


@pytest.mark.parametrize("outputs", [1, 3])
def test_an_engine_with_other_tensors_is_refused(outputs: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fake.values[("ICudaEngine", "num_io_tensors")] = outputs
    bench.fake.results[("ICudaEngine", "get_tensor_name")] = lambda index: ("input", "logits", "boxes")[index]
    with pytest.raises(GraphError, match="expected one of each"), bench.runtime():
        pass
    assert not bench.driver.alive


def test_a_type_that_numpy_has_not_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.fake.results[("ICudaEngine", "get_tensor_dtype")] = lambda _: bench.fake.module.DataType.BF16
    with pytest.raises(GraphError, match="'input' is BF16, expected one of FLOAT, HALF"), bench.runtime():
        pass


def test_kernels_that_rtx_compiled_are_kept_for_the_next_process(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "rtx-1.7.1")
    with bench.runtime() as runtime:
        assert runtime.used["runtime_cache"] == "new"
    kept = list((tmp_path / "cache").rglob("*.cache"))
    assert [path.read_bytes() for path in kept] == [b"kernels"]
    with bench.runtime() as runtime:
        assert runtime.used["runtime_cache"] == "used"
    assert bench.fake.names("IRuntimeCache", "deserialize") == [(b"kernels",)]
    kept[0].write_bytes(b"of another version")
    with bench.runtime() as runtime:
        assert runtime.used["runtime_cache"].startswith("started anew")


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "rtx-1.7.1")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with bench.runtime() as runtime:
        np.testing.assert_allclose(runtime.run(images(2)), expected(images(2)), rtol=1e-5)


def test_two_engines_share_no_cache(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "rtx-1.7.1")
    for tail in (b"one", b"two"):
        bench.path.write_bytes(plan(bench.fake) + tail)
        with bench.runtime():
            pass
    assert len(list((tmp_path / "cache").rglob("*.cache"))) == 2


def test_the_functions_of_the_driver_exist_under_their_names() -> None:
    """The pretended driver must not invent any: these are NVIDIA's own bindings."""
    driver = pytest.importorskip("cuda.bindings.driver")
    names = [name for name in vars(FakeDriver) if name.startswith("cu")]
    assert len(names) > 20
    assert not [name for name in names if not hasattr(driver, name)]
    assert driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == 1
    assert int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING) == 1
    assert int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING) == 2
    assert int(driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY) == 2


def test_a_header_tells_the_version() -> None:
    header = read_header(b"ftrt" + bytes(20) + bytes((10, 3, 0, 26)), "it")
    assert (header.package, header.version, header.release) == ("tensorrt", (10, 3, 0, 26), (10, 3, 0))
