"""What an engine leaves behind: nothing, after any error, and the calling thread as it was.

The pretended driver refuses to let the device go while anything of TensorRT's lives, with every test that uses it. Here
are the ways in which an error could keep something: its traceback holds the locals of every function that it left.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.errors import GraphError, ResnetExportError, TensorError, UnavailableError
from runtimes.tensorrt.run import TensorRTRuntime
from tests.runtimes.engine_bench import Bench, expected, images, plan
from tests.runtimes.fake_gpu import FOREIGN
from tests.runtimes.trt_fake import VERSIONS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _raises(*given: Any) -> None:
    del given
    raise RuntimeError("pybind: CUDA error\nand a second line")


def _too_large(bench: Bench) -> None:
    bench.driver.limit = 1 << 10


def _two_outputs(bench: Bench) -> None:
    bench.fake.values["ICudaEngine", "num_io_tensors"] = 3
    bench.fake.results["ICudaEngine", "get_tensor_name"] = lambda index: ("input", "logits", "boxes")[index]


def _failing(cls: str, name: str, how: Callable[..., Any]) -> Callable[[Bench], None]:
    return lambda bench: bench.fake.results.update({(cls, name): how})


def _other_images(bench: Bench) -> None:
    bench.fake.results["ICudaEngine", "get_tensor_shape"] = lambda name: (-1, 3, -1, -1) if name == "input" else (-1, 5)
    bench.fake.results["ICudaEngine", "get_tensor_profile_shape"] = lambda *_: [
        (1, 3, 9, 9), (1, 3, 9, 9), (2, 3, 9, 9),
    ]  # fmt: skip


FAULTS: dict[str, tuple[Callable[[Bench], None], type[ResnetExportError]]] = {
    "a profile that is too large": (_too_large, UnavailableError),
    "two outputs": (_two_outputs, GraphError),
    "images outside of the profile": (_other_images, TensorError),
    "an execution that fails": (_failing("IExecutionContext", "execute_async_v3", lambda _: False), GraphError),
    "an execution that raises": (_failing("IExecutionContext", "execute_async_v3", _raises), GraphError),
    "a shape that is refused": (_failing("IExecutionContext", "set_input_shape", lambda *_: False), GraphError),
    "a shape that raises": (_failing("IExecutionContext", "set_input_shape", _raises), GraphError),
    "memory that is refused": (_failing("IExecutionContext", "set_tensor_address", lambda *_: False), GraphError),
    "tensors that raise": (_failing("ICudaEngine", "get_tensor_mode", _raises), GraphError),
    "an engine that raises": (_failing("Runtime", "deserialize_cuda_engine", _raises), GraphError),
    "an engine that takes too much": (
        _failing("Runtime", "deserialize_cuda_engine", lambda *_: bytearray(1 << 62)), UnavailableError,
    ),
    "a context that raises": (_failing("ICudaEngine", "create_execution_context", _raises), GraphError),
}  # fmt: skip


@pytest.mark.parametrize("version", ["10.3.0", "rtx-1.7.1"])
@pytest.mark.parametrize("fault", FAULTS)
def test_after_an_error_nothing_of_tensorrt_outlives_the_device(fault: str, version: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, version)
    prepare, kind = FAULTS[fault]
    prepare(bench)
    with pytest.raises(kind) as caught, bench.runtime() as runtime:
        runtime.run(images(2))
    assert "\n" not in str(caught.value)
    assert "Runtime" in bench.fake.gone
    assert not bench.fake.living()
    assert not bench.driver.alive
    assert not bench.driver.memory


def test_an_error_of_the_user_keeps_nothing_alive_either(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(ValueError, match="broadcast"), bench.runtime() as runtime:
        runtime.run(images(2)) + np.zeros(3)
    assert not bench.driver.alive


@pytest.mark.parametrize("version", VERSIONS)
def test_what_outlives_what_is_as_tensorrt_wants_it(version: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, version)
    with bench.runtime() as runtime:
        runtime.run(images(2))
    order = [name for name in bench.fake.gone if name != "IRuntimeConfig"]
    kernels = ["IRuntimeCache"] if version.startswith("rtx") else []
    assert order == ["IExecutionContext", *kernels, "ICudaEngine", "Runtime"]


def test_graphs_go_before_the_context_that_they_were_made_of(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.runtime() as runtime:
        for _ in range(3):
            runtime.run(images(2))
        gone: list[bool] = []
        destroy = bench.driver.cuGraphExecDestroy
        bench.driver.cuGraphExecDestroy = lambda graph: (  # type: ignore[method-assign]
            gone.append("IExecutionContext" in bench.fake.gone) or destroy(graph)  # type: ignore[func-returns-value]
        )
    assert gone == [False]


@pytest.mark.parametrize("before", [0, FOREIGN])
def test_a_thread_has_its_own_context_back(before: int, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.driver.current = before
    runtime = bench.runtime()
    with runtime:
        assert bench.driver.current == before
        runtime.run(images(2))
        assert bench.driver.current == before
    assert bench.driver.current == before
    bench.fake.results["IExecutionContext", "execute_async_v3"] = lambda _: False
    with pytest.raises(GraphError), runtime:
        runtime.run(images(2))
    assert bench.driver.current == before
    bench.driver.limit = 1
    with pytest.raises(UnavailableError), runtime:
        pass
    assert bench.driver.current == before


def test_what_tensorrt_holds_is_given_back_on_the_device_whoever_closes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    runtime = bench.runtime().__enter__()
    runtime.run(images(2))
    bench.driver.calls.clear()
    closing = threading.Thread(target=lambda: runtime.__exit__(None, None, None))
    closing.start()
    closing.join()
    assert bench.driver.calls[:3] == ["cuCtxGetCurrent", "cuCtxSetCurrent", "cuStreamSynchronize"]
    assert not bench.driver.alive


@pytest.mark.parametrize("function", ["cuStreamSynchronize", "cuMemFree", "cuEventDestroy"])
def test_what_cannot_be_given_back_does_not_keep_the_rest(function: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.runtime() as runtime:
        runtime.run(images(2))
        bench.driver.fails[function] = 700  # the device has failed, and so does every call
    assert "context" not in bench.driver.alive


def test_a_device_that_cannot_be_made_current_is_closed_all_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.runtime() as runtime:
        runtime.run(images(2))
        bench.driver.fails["cuCtxSetCurrent"] = 700
        bench.driver.current = 0x1000  # the device's own, as the failed call left it
    assert "context" not in bench.driver.alive
    assert not bench.fake.living()


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


def _noted(bench: Bench) -> str:
    """What is told of the cache after closing."""
    runtime: TensorRTRuntime = bench.runtime()
    with runtime:
        np.testing.assert_allclose(runtime.run(images(2)), expected(images(2)), rtol=1e-5)
    return str(runtime.used["runtime_cache"])


def test_why_no_kernels_are_kept_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, "rtx-1.7.1")
    bench.fake.results["IRuntimeCache", "serialize"] = _raises
    assert _noted(bench) == "not kept: TensorRT does not give the kernels (pybind: CUDA error)"
    bench.fake.results["IRuntimeCache", "serialize"] = lambda *_: None
    assert _noted(bench).startswith("not kept: TensorRT does not give the kernels")
    bench.fake.results["IRuntimeCache", "serialize"] = lambda *_: b"kernels"
    monkeypatch.setattr("runtimes.tensorrt.runtime_cache.tempfile.mkstemp", _full)
    assert _noted(bench) == "not kept: No space left on device"


def _full(**_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_kernels_that_cannot_be_had_do_not_stand_in_for_the_error_before(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "rtx-1.7.1")
    bench.fake.results["IRuntimeCache", "serialize"] = lambda *_: None
    bench.fake.results["IExecutionContext", "execute_async_v3"] = lambda _: False
    with pytest.raises(GraphError, match="failed on"), bench.runtime() as runtime:
        runtime.run(images(2))
    assert not bench.driver.alive


def test_a_user_without_a_home_has_no_cache_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("runtimes.cache.Path.home", homeless)
    assert "no cache folder can be used (Could not determine" in _noted(Bench(tmp_path, "rtx-1.7.1"))


def test_a_cache_folder_that_may_not_be_entered_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    bench = Bench(tmp_path, "rtx-1.7.1")
    monkeypatch.setattr("runtimes.cache.Path.mkdir", forbidden)
    monkeypatch.setattr("pathlib.Path.is_file", forbidden)
    assert "no cache folder can be used (Permission denied)" in _noted(bench)


def test_nobody_else_may_put_kernels_there(tmp_path: Path) -> None:
    _noted(Bench(tmp_path, "rtx-1.7.1"))
    (kept,) = (tmp_path / "cache").rglob("*.cache")
    assert kept.parent.stat().st_mode & 0o077 == 0
