"""ONNX Runtime's providers for NVIDIA GPUs: what they are asked for here, and, on a GPU, what they compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from runtimes import ort_gpu
from runtimes.base import Runtime
from runtimes.cache import cache_folder
from runtimes.errors import GraphError, InputError, UnavailableError
from runtimes.ort import OrtRuntime
from runtimes.ort_gpu import ort_cuda, ort_tensorrt
from runtimes.tensorrt.device import Device, find_devices
from runtimes.tensorrt.library import libraries
from tests.runtimes.models import images, onnx_linear, weights
from tests.runtimes.test_tensorrt_build import saved

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
AMPERE = Device("NVIDIA A10", (8, 6), "12.8", 0, None)
TURING = Device("Tesla T4", (7, 5), "12.8", 0, None)
NO_GPU = not find_devices().devices or TENSORRT not in onnxruntime.get_available_providers()


class Sessions:
    """Stands for ``InferenceSession``: a CPU session that says it runs on whatever it was asked for."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self._real = real
        self.asked: list[tuple[list[str], list[dict[str, str]]]] = []
        self.dropped: set[str] = set()
        self.error: Exception | None = None

    def __call__(self, source: Any, options: Any, *, providers: Any, enable_fallback: int, **given: Any) -> Any:
        if self.error:
            raise self.error
        chosen = given.get("provider_options") or [{} for _ in providers]
        assert enable_fallback == 0
        self.asked.append((list(providers), chosen))
        session = self._real(source, options, providers=[CPU])
        started = [name for name in [*providers, CPU] if name not in self.dropped]
        session.get_providers = lambda: started
        session.get_provider_options = lambda: dict(zip(providers, chosen, strict=True))
        return session

    @property
    def tensorrt(self) -> dict[str, str]:
        """The TensorRT provider's options of the last session."""
        return self.asked[-1][1][0]


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sessions:
    made = Sessions(onnxruntime.InferenceSession)
    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("libcudart is not there"), raising=False)
    monkeypatch.setattr(ort_gpu, "devices", lambda: (AMPERE, AMPERE))
    monkeypatch.setattr(ort_gpu, "libraries", lambda: ("tensorrt 10.3.0",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(onnx_linear(weights()), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def opened(runtime: Runtime) -> dict[str, Any]:
    with runtime:
        return runtime.used


# ---------------------------------------------------------------- what is missing


@pytest.mark.parametrize("make", [ort_cuda, ort_tensorrt])
def test_without_the_provider_it_is_one_line_with_what_to_install_and_exit_code_3(
    make: Callable[..., OrtRuntime], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(
        UnavailableError, match=r"ExecutionProvider is not available.*pip install onnxruntime-gpu"
    ) as caught:
        opened(make(path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("make", [ort_cuda, ort_tensorrt])
def test_a_provider_that_does_not_start_is_not_replaced_by_another(
    make: Callable[..., OrtRuntime], path: Path, sessions: Sessions
) -> None:
    sessions.dropped = {CUDA}
    with pytest.raises(
        UnavailableError, match=r"CUDAExecutionProvider is not available: the session started with.*cuDNN"
    ):
        opened(make(path))


@pytest.mark.parametrize("said", ["CUDA failure 35: CUDA driver version is insufficient", "Invalid device ID: 3"])
def test_a_gpu_that_cannot_be_used_is_not_the_models_fault(said: str, path: Path, sessions: Sessions) -> None:
    sessions.error = RuntimeError(said)
    with pytest.raises(UnavailableError, match="no GPU can be used"):
        opened(ort_cuda(path))


def test_a_model_that_cannot_be_loaded_is_the_models_fault(path: Path, sessions: Sessions) -> None:
    sessions.error = RuntimeError("This is an invalid model")
    with pytest.raises(GraphError, match="cannot be loaded"):
        opened(ort_cuda(path))


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(("tf32", "word"), [(False, "0"), (True, "1")])
def test_the_cuda_provider_is_told_about_tf32_either_way(
    tf32: bool, word: str, path: Path, sessions: Sessions, capsys: pytest.CaptureFixture[str]
) -> None:
    used = opened(ort_cuda(path, device=1, tf32=tf32))
    assert sessions.asked == [([CUDA], [{"device_id": "1", "use_tf32": word}])]
    assert used["provider_options"] == {CUDA: {"device_id": "1", "use_tf32": word}}
    assert used["providers"] == [CUDA, CPU]
    assert capsys.readouterr().out == ""  # what the libraries' search prints is nobody's result


@pytest.mark.parametrize(
    ("kind", "asked", "fp16", "int8", "told"),
    [
        ("fp32", None, "False", "False", "tf32"),
        ("fp32", "tf32", "False", "False", "tf32"),
        ("fp32", "fp16", "True", "False", "fp16"),
        ("fp16", None, "True", "False", "fp16"),
        ("int8", None, "True", "True", "int8"),
        ("int8", "int8", "True", "True", "int8"),
    ],
)
def test_the_tensorrt_provider_is_told_what_the_file_carries(
    kind: str, asked: Any, fp16: str, int8: str, told: str, sessions: Sessions, tmp_path: Path
) -> None:
    used = opened(ort_tensorrt(saved(tmp_path, kind), precision=asked))
    [(providers, (own, cuda))] = sessions.asked
    assert providers == [TENSORRT, CUDA]
    assert (own["trt_fp16_enable"], own["trt_int8_enable"]) == (fp16, int8)
    assert cuda == {"device_id": "0", "use_tf32": "1" if told == "tf32" else "0"}
    assert used["precision"] == told
    assert used["provider_options"][TENSORRT] == own


@pytest.mark.parametrize(
    ("kind", "asked", "error", "told"),
    [
        ("fp32", "int8", GraphError, "is fp32, and int8 was asked for.*quantize --target tensorrt"),
        ("int8", "fp16", GraphError, "is int8, and fp16 was asked for"),
        ("fp16", "fp32", GraphError, "is fp16, and fp32 was asked for"),
        ("fp32", "fp32", InputError, "NVIDIA_TF32_OVERRIDE=0"),
    ],
)
def test_a_precision_that_would_not_be_what_it_says_is_refused(
    kind: str, asked: Any, error: type[Exception], told: str, sessions: Sessions, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        opened(ort_tensorrt(saved(tmp_path, kind), precision=asked))
    assert not sessions.asked


def test_fp32_is_fp32_where_nothing_rounds_to_tf32(
    path: Path, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_gpu, "devices", lambda: (TURING,))
    assert opened(ort_tensorrt(path))["precision"] == "fp32"
    monkeypatch.setattr(ort_gpu, "devices", lambda: (AMPERE,))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert opened(ort_tensorrt(path, precision="fp32"))["precision"] == "fp32"


def test_a_profile_is_written_as_the_provider_reads_it(path: Path, sessions: Sessions) -> None:
    opened(ort_tensorrt(path, profile=((1, 3, 4, 4), (8, 3, 4, 4), (32, 3, 4, 4))))
    shapes = {name: value for name, value in sessions.tensorrt.items() if "profile" in name}
    assert shapes == {
        "trt_profile_min_shapes": "input:1x3x4x4",
        "trt_profile_opt_shapes": "input:8x3x4x4",
        "trt_profile_max_shapes": "input:32x3x4x4",
    }


@pytest.mark.parametrize(
    "profile",
    [
        ((1, 3, 4), (1, 3, 4), (1, 3, 4)),
        ((2, 3, 4, 4), (1, 3, 4, 4), (4, 3, 4, 4)),
        ((0, 3, 4, 4), (1, 3, 4, 4), (4, 3, 4, 4)),
        ((1, 3, 4, 4),),
    ],
)
def test_shapes_that_are_no_profile_are_refused_at_once(profile: Any, path: Path) -> None:
    with pytest.raises(InputError, match="from smallest to largest"):
        ort_tensorrt(path, profile=profile)


def test_a_gpu_or_a_precision_that_cannot_be_is_refused_at_once(path: Path) -> None:
    for make in (ort_cuda, ort_tensorrt):
        with pytest.raises(InputError, match="the GPU -1"):
            make(path, device=-1)
    with pytest.raises(InputError, match="'fp4'"):
        ort_tensorrt(path, precision="fp4")  # type: ignore[arg-type]


# ---------------------------------------------------------------- kept engines


def folder_of(sessions: Sessions, runtime: Runtime) -> str:
    used = opened(runtime)
    options = sessions.tensorrt
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "True"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == used["engine_cache"]
    assert used["no_engine_cache"] is None
    return str(used["engine_cache"])


def test_an_engine_is_kept_in_a_folder_that_the_same_model_finds_again(
    path: Path, sessions: Sessions, tmp_path: Path
) -> None:
    first = folder_of(sessions, ort_tensorrt(path))
    assert Path(first).parent == tmp_path / "xdg" / "resnet-export" / "ort-tensorrt"
    assert Path(first).is_dir()
    assert folder_of(sessions, ort_tensorrt(path, "another name")) == first
    assert folder_of(sessions, ort_tensorrt(path.read_bytes())) == first
    assert folder_of(sessions, ort_tensorrt(path, device=1)) == first  # an equal GPU
    elsewhere = folder_of(sessions, ort_tensorrt(path, cache=tmp_path / "mine"))
    assert Path(elsewhere) == tmp_path / "mine" / "ort-tensorrt" / Path(first).name


def test_nothing_that_engines_depend_on_is_left_out_of_the_key(
    path: Path, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(onnx_linear(weights(seed=9)), tmp_path / "retrained.onnx")
    found = [
        folder_of(sessions, ort_tensorrt(path)),
        folder_of(sessions, ort_tensorrt(tmp_path / "retrained.onnx")),
        folder_of(sessions, ort_tensorrt(path, precision="fp16")),
        folder_of(sessions, ort_tensorrt(path, profile=((1, 3, 4, 4),) * 3)),
    ]
    for name, value in (("name", "NVIDIA L4"), ("compute_capability", (8, 9)), ("cuda", "13.0")):
        other = replace(AMPERE, **{name: value})  # type: ignore[arg-type]
        monkeypatch.setattr(ort_gpu, "devices", lambda other=other: (other,))
        found.append(folder_of(sessions, ort_tensorrt(path)))
    monkeypatch.setattr(ort_gpu, "devices", lambda: (AMPERE,))
    monkeypatch.setattr(ort_gpu, "libraries", lambda: ("/usr/lib64/libnvinfer.so.10 1 2",))
    found.append(folder_of(sessions, ort_tensorrt(path)))
    monkeypatch.setattr(onnxruntime, "__version__", "9.9.9")
    found.append(folder_of(sessions, ort_tensorrt(path)))
    assert len(set(found)) == len(found)


def test_models_that_differ_only_in_weights_beside_the_file_share_no_folder(sessions: Sessions, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        file = tmp_path / str(seed) / "m.onnx"
        file.parent.mkdir()
        onnx.save(onnx_linear(weights(seed)), file, save_as_external_data=True, location="m.data", size_threshold=0)
        found.append((file.read_bytes(), folder_of(sessions, ort_tensorrt(file))))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_where_nothing_can_be_kept_it_runs_and_says_why(
    path: Path, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    used = opened(ort_tensorrt(path, cache=tmp_path / "taken"))
    assert used["engine_cache"] is None
    assert "Not a directory" in used["no_engine_cache"] or "exists" in used["no_engine_cache"]
    assert not any("cache" in name for name in sessions.tensorrt)
    monkeypatch.setattr(ort_gpu, "devices", lambda: ())
    assert "which GPU" in opened(ort_tensorrt(path))["no_engine_cache"]
    monkeypatch.setattr(ort_gpu, "devices", lambda: (AMPERE,))
    monkeypatch.setattr(ort_gpu, "libraries", tuple)
    assert "no library of TensorRT was found" in opened(ort_tensorrt(path))["no_engine_cache"]


def test_a_library_that_is_exchanged_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.tensorrt.library.metadata.version", _not_installed)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'mine'}{os.pathsep}{tmp_path / 'nowhere'}")
    for folder in ("mine", "system"):
        (tmp_path / folder).mkdir()
    system = (tmp_path / "system", tmp_path / "nowhere")
    assert libraries(system) == ()
    (tmp_path / "system" / "libnvinfer.so.10").write_bytes(b"one")
    first = libraries(system)
    assert len(first) == 1
    assert libraries(system) == first
    (tmp_path / "mine" / "libnvinfer.so.10").write_bytes(b"another")
    assert len(libraries(system)) == 2
    (tmp_path / "system" / "libnvinfer.so.10").write_bytes(b"of another size")
    assert first[0] not in libraries(system)


def _not_installed(name: str) -> str:
    raise PackageNotFoundError(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UnavailableError, match="Permission denied"):
        cache_folder("kind", "key", tmp_path / "closed")


def test_the_cache_is_where_xdg_says_and_a_relative_path_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    folder = cache_folder("kind", "key")
    assert folder == tmp_path / ".cache" / "resnet-export" / "kind" / "key"
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o077 == 0  # engines are loaded and run
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("kind", "key") == folder


# ---------------------------------------------------------------- the CPU is as it was


def test_options_reach_the_provider_that_they_are_of(path: Path) -> None:
    with OrtRuntime(path, provider_options=[{}]) as runtime, OrtRuntime(path) as other:
        np.testing.assert_array_equal(runtime.run(images()), other.run(images()))
        assert "provider_options" not in other.used
        assert runtime.used["provider_options"] == {CPU: {}}


def test_options_of_another_number_than_providers_are_refused(path: Path) -> None:
    with pytest.raises(InputError, match="options of 2 providers, expected one mapping for each of 1"):
        OrtRuntime(path, provider_options=[{}, {}])


# ---------------------------------------------------------------- on a GPU


@pytest.fixture
def on_gpu() -> None:
    if NO_GPU:
        pytest.skip("no NVIDIA GPU with onnxruntime-gpu and TensorRT: not run")


@pytest.mark.gpu
@pytest.mark.parametrize("make", [ort_cuda, ort_tensorrt])
def test_a_gpu_computes_what_the_cpu_does(
    make: Callable[..., OrtRuntime], path: Path, tmp_path: Path, on_gpu: None
) -> None:
    extra = {"cache": tmp_path / "kept"} if make is ort_tensorrt else {}
    with OrtRuntime(path) as expected, make(path, **extra) as runtime:
        bound = 1e-5 if runtime.used.get("precision", "fp32") == "fp32" else 1e-2
        np.testing.assert_allclose(runtime.run(images()), expected.run(images()), rtol=bound, atol=bound)


@pytest.mark.gpu
def test_two_models_with_one_graph_name_do_not_share_an_engine(tmp_path: Path, on_gpu: None) -> None:
    results = []
    for seed in (0, 1):
        data = onnx_linear(weights(seed), elements=TensorProto.FLOAT).SerializeToString()
        with ort_tensorrt(data, cache=tmp_path) as runtime:
            results.append(runtime.run(images()))
            assert list(Path(runtime.used["engine_cache"]).iterdir())
    assert np.abs(results[0] - results[1]).max() > 0.1
