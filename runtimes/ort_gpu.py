"""ONNX Runtime on an NVIDIA GPU: by CUDA kernels, or by TensorRT engines that it builds itself.

TF32 is on from the start in both: FP32 convolutions then multiply with ten bits of mantissa. The CUDA provider can be
told otherwise. The TensorRT provider has no option for it (onnxruntime issue 26029); only ``NVIDIA_TF32_OVERRIDE=0`` in
the environment, from before Python starts, turns it off.

TensorRT engines take minutes to build, so they are kept. ONNX Runtime names a kept engine after the graph, not after
its weights or shapes (issues 6455, 32254): two models could share one. Each model therefore gets a folder of its own,
named by a hash of everything that its engines depend on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from runtimes.base import Binding
from runtimes.cache import cache_folder
from runtimes.errors import GraphError, InputError, UnavailableError, first_line
from runtimes.ort import OrtRuntime
from runtimes.tensorrt.device import Device, devices
from runtimes.tensorrt.library import libraries

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "tf32", "fp16", "int8"]
Shape: TypeAlias = tuple[int, ...]

_CUDA: Final = "CUDAExecutionProvider"
_TENSORRT: Final = "TensorrtExecutionProvider"
_KIND: Final = "ort-tensorrt"
_FIRST_WITH_TF32: Final = (8, 0)


def ort_cuda(
    model: str | Path | bytes,
    name: str = "ort-cuda",
    *,
    device: int = 0,
    tf32: bool = False,
    optimize: bool = True,
    cast_input: bool = False,
) -> OrtRuntime:
    """An ONNX file on the CUDA provider.

    Args:
        model: Path of the file, or the serialised model itself.
        name: Name in messages and reports.
        device: Number of the GPU.
        tf32: Whether FP32 convolutions and products may be rounded to ten bits of mantissa.
        optimize: Whether ONNX Runtime may fuse and rewrite nodes when it loads the model.
        cast_input: See :class:`OrtRuntime`.

    Raises:
        InputError: ``device`` is negative.

    Opening raises ``UnavailableError`` where the provider, its libraries or the GPU are missing.
    """
    options = _cuda_options(name, device, tf32)
    return OrtRuntime(
        model, name, providers=(_CUDA,), provider_options=(options,), optimize=optimize, cast_input=cast_input
    )


def ort_tensorrt(
    model: str | Path | bytes,
    name: str = "ort-tensorrt",
    *,
    device: int = 0,
    precision: Precision | None = None,
    profile: tuple[Shape, Shape, Shape] | None = None,
    cache: Path | None = None,
    cast_input: bool = False,
) -> OrtRuntime:
    """An ONNX file on the TensorRT provider, with the CUDA provider for what TensorRT does not take.

    Args:
        model: Path of the file, or the serialised model itself.
        name: Name in messages and reports.
        device: Number of the GPU.
        precision: ``None``: what the file carries, and for a FP32 file ``tf32`` where the GPU has it and the
            environment allows it. ``fp16`` also for a FP32 file; ``int8`` for a file with Q/DQ, whose other layers then
            run in FP16.
        profile: Smallest, best and largest shape ``[N, C, H, W]`` of the input; ``None``: an engine is built for the
            first batch, and built anew when a batch does not fit it.
        cache: Folder for the folders of kept engines; ``None``: that of the user. Where it cannot be written to,
            engines are built in each run, and ``used`` says why.
        cast_input: See :class:`OrtRuntime`.

    Raises:
        InputError: ``device`` is negative, there is no such precision, or the shapes are no profile.

    Opening raises ``UnavailableError`` where the provider, its libraries or the GPU are missing, ``GraphError`` where
    the file does not carry the precision, and ``InputError`` where FP32 is asked for and TF32 is on.
    """
    if precision not in (None, *get_args(Precision)):
        raise InputError(f"{name}: received the precision {precision!r}, expected one of {get_args(Precision)}")
    return _TensorrtRuntime(model, name, device, precision, _checked(name, profile), cache, cast_input)


class _TensorrtRuntime(OrtRuntime):
    """Its options depend on the model and on the GPU, which are looked at when it is opened."""

    def __init__(
        self,
        model: str | Path | bytes,
        name: str,
        device: int,
        precision: Precision | None,
        profile: tuple[Shape, Shape, Shape] | None,
        cache: Path | None,
        cast_input: bool,
    ) -> None:
        super().__init__(
            model, name, providers=(_TENSORRT, _CUDA), cast_input=cast_input,
            provider_options=({}, _cuda_options(name, device, False)),
        )  # fmt: skip
        self._device, self._precision, self._profile, self._cache = device, precision, profile, cache
        self._facts: dict[str, Any] = {}

    def _open(self) -> Binding:
        binding = super()._open()
        return replace(binding, used={**binding.used, **self._facts})

    def _chosen_options(self) -> Sequence[Mapping[str, str]]:
        loaded, digest = _read(self._model)
        gpu = next(iter(devices()[self._device : self._device + 1]), None)
        precision = self._resolved(loaded, gpu)
        options = {"device_id": str(self._device), **_precision_options(precision), **self._shapes(loaded)}
        cuda = _cuda_options(self.name, self._device, precision == "tf32")
        kept, why = self._kept(digest, options, gpu)
        self._facts = {"precision": precision, "engine_cache": str(kept) if kept else None, "no_engine_cache": why}
        if kept is not None:
            options |= {
                "trt_engine_cache_enable": "True",
                "trt_engine_cache_path": str(kept),
                "trt_timing_cache_enable": "True",
                "trt_timing_cache_path": str(kept),
            }
        return options, cuda

    def _resolved(self, loaded: onnx.ModelProto, gpu: Device | None) -> Precision:
        """What the engine computes in."""
        from runtimes.tensorrt.precision import carried

        own, asked = carried(loaded), self._precision
        rounds = gpu is not None and gpu.compute_capability >= _FIRST_WITH_TF32 and _allows_tf32()
        if asked == "fp32" and own == "fp32" and rounds:
            raise InputError(
                f"{self.name}: fp32 was asked for, and this provider rounds to TF32 without an option against it: set "
                f"NVIDIA_TF32_OVERRIDE=0 before Python starts, or take tf32"
            )
        if own == "fp32" and asked in (None, "fp32", "tf32", "fp16"):
            return asked or ("tf32" if rounds else "fp32")
        if asked not in (None, own):
            made = "quantize --target tensorrt" if asked == "int8" else "onnx"
            raise GraphError(
                f"{self._label()} is {own}, and {asked} was asked for: make such a file with resnet-export {made}"
            )
        if own in ("fp16", "int8"):
            return own
        raise GraphError(f"{self._label()} is {own}, which is not run here: give a file of FP32, FP16 or INT8")

    def _shapes(self, loaded: onnx.ModelProto) -> dict[str, str]:
        if self._profile is None:
            return {}
        stored = {item.name for item in loaded.graph.initializer}
        taken = next((item.name for item in loaded.graph.input if item.name not in stored), "")
        names = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
        return {
            option: f"{taken}:{'x'.join(map(str, shape))}" for option, shape in zip(names, self._profile, strict=True)
        }

    def _kept(self, digest: str, options: Mapping[str, str], gpu: Device | None) -> tuple[Path | None, str | None]:
        """Folder of this model's engines; ``None``, and why, where they are not kept."""
        import onnxruntime

        if gpu is None:
            return None, "the driver does not tell which GPU this is, and an engine is for one"
        installed = libraries()
        if not installed:
            return None, "no library of TensorRT was found whose version could be told, and an engine is for one"
        # Not the number: the first GPU of this machine may be another one tomorrow.
        depends = {
            "model": digest,
            "onnxruntime": str(onnxruntime.__version__),
            "tensorrt": installed,
            "options": {name: value for name, value in options.items() if name != "device_id"},
            "tf32": _allows_tf32(),
            "gpu": [gpu.name, *gpu.compute_capability, gpu.cuda],
        }
        key = sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        try:
            return cache_folder(_KIND, key, self._cache), None
        except UnavailableError as error:
            return None, str(error)


def _cuda_options(name: str, device: int, tf32: bool) -> dict[str, str]:
    if device < 0:
        raise InputError(f"{name}: received the GPU {device}, expected 0 or more")
    return {"device_id": str(device), "use_tf32": "1" if tf32 else "0"}


def _precision_options(precision: Precision) -> dict[str, str]:
    # Words, as the provider takes no 1 and 0 for these. FP16 beside INT8: layers without Q/DQ would be slower in FP32.
    return {
        "trt_fp16_enable": str(precision in ("fp16", "int8")),
        "trt_int8_enable": str(precision == "int8"),
    }


def _checked(name: str, profile: tuple[Shape, Shape, Shape] | None) -> tuple[Shape, Shape, Shape] | None:
    if profile is None:
        return None
    shapes = tuple(tuple(shape) for shape in profile)
    whole = len(shapes) == 3 and all(len(shape) == 4 and min(shape) > 0 for shape in shapes)
    if not whole or any(a > b for low, high in pairwise(shapes) for a, b in zip(low, high, strict=True)):
        raise InputError(f"{name}: received the profile {profile}, expected shapes [N,C,H,W] from smallest to largest")
    return shapes[0], shapes[1], shapes[2]


def _read(model: str | Path | bytes) -> tuple[onnx.ModelProto, str]:
    import onnx

    from runtimes.reading import read_model

    if not isinstance(model, bytes):
        return read_model(Path(model), "make one with resnet-export onnx")
    try:
        return onnx.load_model_from_string(model), sha256(model).hexdigest()
    except Exception as error:  # protobuf's DecodeError has no public base
        raise GraphError(f"the model in memory ({len(model)} bytes) is not ONNX: {first_line(error)}") from error


def _allows_tf32() -> bool:
    return os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
