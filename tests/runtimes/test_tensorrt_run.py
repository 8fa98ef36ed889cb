"""Running engines. Without a GPU: what is refused before one is asked, and the order of what would be asked of it.

The device here is a pretence (:mod:`tests.runtimes.fake_gpu`), which proves no more than that: engines on a real one
are in ``test_tensorrt_gpu.py``.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.errors import GraphError, InputError, ResnetExportError, TensorError, UnavailableError
from runtimes.turns import Plan, Runner
from tests.runtimes.engine_bench import NOWHERE, Bench, expected, images
from tests.runtimes.fake_gpu import FakeDriver
from tests.runtimes.trt_fake import VERSIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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


@pytest.mark.parametrize("count", [5, 9])
def test_a_batch_with_a_remainder_makes_no_graph_that_the_next_piece_would_end(count: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.runtime() as runtime:
        for _ in range(6):
            np.testing.assert_allclose(runtime.run(images(count)), expected(images(count)), rtol=1e-5)
    assert "cuGraphInstantiate" not in bench.driver.calls


@pytest.mark.parametrize("count", [4, 8, 12])
def test_pieces_of_one_shape_share_a_graph(count: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.runtime() as runtime:
        for _ in range(6):
            np.testing.assert_allclose(runtime.run(images(count)), expected(images(count)), rtol=1e-5)
    assert bench.driver.calls.count("cuGraphInstantiate") == 1
    assert bench.driver.calls.count("cuGraphLaunch") == 6 * count // 4 - 1


@pytest.mark.parametrize("code", [901, 2])  # it cannot be captured; there is no memory for it
@pytest.mark.parametrize("function", ["cuStreamEndCapture", "cuGraphInstantiate"])
def test_what_cannot_be_captured_is_run_as_it_is_and_told(function: str, code: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.driver.fails[function] = code
    if function == "cuStreamEndCapture":  # a driver ends the capture also when it says that it was not valid
        bench.driver.cuStreamBeginCapture = lambda *_: (0,)  # type: ignore[method-assign]
    with bench.runtime() as runtime:
        for _ in range(3):
            np.testing.assert_allclose(runtime.run(images(2)), expected(images(2)), rtol=1e-5)
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


def test_too_large_a_profile_says_how_much_memory_was_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, high=4096)
    bench.driver.limit = 1 << 20
    with pytest.raises(UnavailableError, match=r"no memory left for 3\.1 MB.*smaller --max"), bench.runtime():
        pass
    assert not bench.driver.memory
    assert not bench.driver.alive


def test_memory_of_the_machine_is_not_called_that_of_the_gpu(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.driver.fails["cuMemHostAlloc"] = 2
    with pytest.raises(UnavailableError, match=r"this machine has no memory left that can be locked for 0\.0 MB"):  # noqa: SIM117
        with bench.runtime():
            pass
    bench.driver.fails = {"cuStreamCreate": 2}
    with pytest.raises(UnavailableError, match=r"the GPU has no memory left \(cuStreamCreate\)"), bench.runtime():
        pass


def test_why_the_bindings_find_no_driver_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def missing(_flags: int) -> tuple[int]:
        raise RuntimeError("libcuda.so.1 is of another architecture")

    bench.driver.cuInit = missing  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match=r"driver cannot be used: libcuda\.so\.1 is of another"), bench.runtime():
        pass


@pytest.mark.parametrize("tensor", ["input", "logits"])
def test_a_tensor_in_another_layout_is_refused(tensor: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    formats = bench.fake.module.TensorFormat
    bench.fake.results["ICudaEngine", "get_tensor_format"] = lambda name: (
        formats.CHW32 if name == tensor else formats.LINEAR
    )
    bench.fake.results["ICudaEngine", "get_tensor_format_desc"] = lambda _: "32-wide channel vectorized row-major"
    with pytest.raises(GraphError, match=rf"'{tensor}' is laid out as 32-wide channel .* expected row-major linear"):  # noqa: SIM117
        with bench.runtime():
            pass


def test_the_batches_of_the_profile_are_told_and_no_others_are_timed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, low=2, best=2, high=4)
    with bench.runtime() as runtime:
        assert runtime.batch_range == (2, 4)
        for count in (1, 5, 9):
            runner = Runner(runtime, images(count))
            runner.warm_up(Plan(rounds=2, warmup_s=0.01, turn_ms=1.0))
            assert str(runner.failed) == f"tensorrt takes batches of 2 to 4, not of {count}: measure 2 to 4"
        assert not bench.runs
        runner = Runner(runtime, images(3))
        runner.warm_up(Plan(rounds=2, warmup_s=0.01, turn_ms=1.0))
        assert runner.failed is None


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
        ("The plan is not compatible with this version of TensorRT, expecting library version 10.12.0.36",
         InputError, "another version"),
        ("Plan has host code, and mEngineHostCodeAllowed is false", InputError, "host_code=true"),
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


def test_the_functions_of_the_driver_exist_under_their_names_and_take_as_much() -> None:
    """The pretended driver must not invent any: these are NVIDIA's own bindings."""
    driver = pytest.importorskip("cuda.bindings.driver")
    names = [name for name in vars(FakeDriver) if name.startswith("cu") and name != "current"]
    assert len(names) > 20
    for name in names:
        signature = str(getattr(driver, name).__doc__).splitlines()[0]  # "cuMemAlloc(size_t bytesize)"
        taken = [each for each in signature[len(name) + 1 : -1].split(",") if each]
        assert len(taken) == len(inspect.signature(getattr(FakeDriver, name)).parameters) - 1, signature
    assert driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == 1
    assert int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING) == 1
    assert int(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING) == 2
    assert int(driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY) == 2


def test_the_tests_on_a_gpu_do_not_hang_on_a_package_that_one_of_them_needs() -> None:
    code = "import sys; sys.modules['tensorrt_rtx'] = None; import tests.runtimes.test_tensorrt_gpu"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
