#!/usr/bin/env python3
"""Builds, checks, runs and times the models of this bundle on the device that it lies on.

    python3 run.py check                 are the files whole, and do the models compute what they did before?
    python3 run.py build                 an engine for this device, by its own TensorRT
    python3 run.py classify IMAGE ...    the five likeliest classes
    python3 run.py bench                 how long a batch takes

One file that needs nothing but Python 3.8, numpy and ONNX Runtime or TensorRT (8.5 to 11, or TensorRT-RTX); Pillow for
image files. Exit codes: 0 all good, 1 a check failed, 2 wrong usage, 3 this machine lacks something.
"""
# It is long because it is one file: a device may have no package index, and whoever runs it should see all of it.

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1
GENERATIONS = ("tensorrt", "tensorrt_rtx")
# Only these decoders may touch a file, whatever its name: Pillow has others that start programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FLOAT32_MAX = float(np.finfo(np.float32).max)
CAP_DB = 300.0
CHUNK = 1 << 20
# Provider of ONNX Runtime -> name of the runtime in the manifest's tolerances, and its options.
PROVIDERS = {
    "cpu": ("onnxruntime", "CPUExecutionProvider", {}),
    "cuda": ("ort-cuda", "CUDAExecutionProvider", {"use_tf32": "0"}),
    "tensorrt": ("ort-tensorrt", "TensorrtExecutionProvider", {}),
}


class RunError(Exception):
    """Ends a command: one line, and its exit code."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def failed(line: str) -> RunError:
    """A check said no."""
    return RunError(1, line)


def wrong(line: str) -> RunError:
    """The user, or a file, asks for what cannot be."""
    return RunError(2, line)


def lacking(line: str) -> RunError:
    """The machine lacks something."""
    return RunError(3, line)


def say(line: str) -> None:
    """A line of the result."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# ---------------------------------------------------------------------------------------------------------------------
# The bundle: its manifest, and whether its files are those that the manifest names
# ---------------------------------------------------------------------------------------------------------------------


class Bundle:
    """A folder with a manifest, whose files were all found as the manifest has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = read_manifest(root)
        faults = differences(root, self.manifest)
        if faults:
            raise failed("this bundle is not what was made: {}".format("; ".join(faults)))
        self.contract = json.loads((root / self.manifest["preprocessing"]).read_text(encoding="utf-8"))
        self.models = {model["id"]: model for model in self.manifest["models"]}

    def path(self, name: str) -> Path:
        """Where a file of the manifest lies."""
        return self.root / name

    def array(self, name: str) -> Any:
        """An array of the bundle."""
        return np.load(str(self.path(name)), allow_pickle=False)

    def labels(self) -> list[str]:
        """Names of the classes; their numbers where nobody named them."""
        if self.manifest["labels"] is None:
            return [str(index) for index in range(self.manifest["classes"])]
        return self.path(self.manifest["labels"]).read_text(encoding="utf-8").splitlines()

    def model(self, name: str) -> Any:
        """A model by its name."""
        if name not in self.models:
            raise wrong("there is no model '{}' in this bundle: it has {}".format(name, ", ".join(self.models)))
        return self.models[name]

    def local(self) -> Path:
        """Where engines go that are made here: beside the bundle, which stays as it came."""
        return self.root.with_name(self.root.name + ".local")


def read_manifest(root: Path) -> Any:
    """The manifest, once it is the one that manifest.sha256 names."""
    try:
        for name in ("manifest.json", "manifest.sha256"):
            if not stat.S_ISREG((root / name).lstat().st_mode):
                raise failed(f"{name} is no regular file")
        data = (root / "manifest.json").read_bytes()
        recorded = (root / "manifest.sha256").read_bytes()
    except OSError as error:
        raise failed(f"{error.filename} cannot be read ({error.strerror}): is this a whole bundle?") from error
    found = hashlib.sha256(data).hexdigest()
    if recorded != f"{found}  manifest.json\n".encode():
        raise failed("manifest.json and manifest.sha256 do not belong together: one of them was altered")
    try:
        manifest = json.loads(data.decode("utf-8"))
        known = manifest["kind"] == "resnet-export bundle" and manifest["schema"] == SCHEMA
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise wrong("manifest.json is no manifest of a bundle") from error
    if not known:
        raise wrong("manifest.json is of another version than this run.py: use the one that came with it")
    return manifest


def differences(root: Path, manifest: Any) -> list[str]:
    """What is missing, altered or extra, one sentence each."""
    expected = {entry["path"]: entry for entry in manifest["files"]}
    for name in expected:
        parts = name.split("/")
        if name.startswith("/") or "\\" in name or "\0" in name or {"", ".", ".."} & set(parts):
            raise wrong(f"manifest.json names '{name}', which is outside of the bundle: nothing was read")
    found, faults = set(), []
    for folder, folders, files in os.walk(str(root)):
        inside = Path(folder).relative_to(root)
        for name in folders + files:
            path, relative = Path(folder) / name, (inside / name).as_posix()
            kind = path.lstat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                faults.append(f"{relative} is a link or a device")
            elif stat.S_ISREG(kind):
                found.add(relative)
    faults += [f"{name} is missing" for name in sorted(set(expected) - found)]
    faults += [f"{name} is extra" for name in sorted(found - set(expected) - {"manifest.json", "manifest.sha256"})]
    for name in sorted(set(expected) & found):
        entry = expected[name]
        path = root / name
        if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            faults.append(f"{name} is altered")
    return faults


def sha256(path: Path) -> str:
    """Of a file, in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in iter(lambda: stream.read(CHUNK), b""):
            digest.update(piece)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Preprocessing: the contract of preprocessing.json, operation by operation
# ---------------------------------------------------------------------------------------------------------------------


def tensor_of(image: Any, contract: Any) -> Any:
    """An image of Pillow's as float32 [C, H, W]."""
    from PIL import Image, ImageOps

    if contract["color"] == "raw":
        raise wrong("this model takes no image files: give a .npy array [N, C, H, W] that is preprocessed already")
    picture = rgb(ImageOps.exif_transpose(image) if contract["orientation"] == "exif" else image)
    if contract["color"] == "L":
        picture = picture.convert("L")
    if contract["resize"] is not None:
        short, long = sorted(picture.size)
        # Truncated, not rounded: one pixel shifts the crop.
        length, other = contract["resize"], int(contract["resize"] * long / short)
        if Image.MAX_IMAGE_PIXELS and length * other > Image.MAX_IMAGE_PIXELS:
            raise wrong(f"image of {picture.width}x{picture.height} is too narrow to resize to {length}: crop it")
        size = (length, other) if picture.width <= picture.height else (other, length)
        filters = getattr(Image, "Resampling", Image)  # its own class from Pillow 9.1 on
        picture = picture.resize(size, getattr(filters, contract["interpolation"].upper()))
    if contract["crop"] == "center" and contract["size"] is not None:
        picture = middle(picture, *contract["size"])
    if contract["size"] is not None and [picture.height, picture.width] != list(contract["size"]):
        height, width = contract["size"]
        raise wrong(f"image is {picture.width}x{picture.height}, the model takes {width}x{height} without resize")
    channels = 1 if contract["color"] == "L" else 3
    pixels = np.asarray(picture, dtype=np.uint8).reshape(picture.height, picture.width, channels)
    return normalised(pixels[:, :, ::-1] if contract["color"] == "BGR" else pixels, contract)


def rgb(image: Any) -> Any:
    """An image of any mode in RGB: alpha is dropped, 16-bit grey keeps its high byte."""
    from PIL import Image

    if image.mode == "F":
        raise wrong("image has floating-point pixels of unknown range: save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            raise wrong(f"image has pixels from {low} to {high}: save it with 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def middle(image: Any, height: int, width: int) -> Any:
    """The centre of an image."""
    if height > image.height or width > image.width:
        raise wrong(f"image is {image.width}x{image.height}, smaller than the crop {width}x{height}")
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def normalised(pixels: Any, contract: Any) -> Any:
    """uint8 [H, W, C] as float32 [C, H, W]: scale, subtract, divide, each rounded to float32."""
    scaled = pixels.astype(np.float32) * np.float32(contract["scale"])
    centred = (scaled - np.array(contract["mean"], np.float32)) / np.array(contract["std"], np.float32)
    return np.ascontiguousarray(centred.transpose(2, 0, 1))


def images_of(path: Path, contract: Any) -> list[tuple[str, Any]]:
    """Names and tensors of an image file, or of the rows of an array file."""
    if path.suffix.lower() == ".npy":
        return rows_of(path, contract)
    try:
        from PIL import Image
    except ImportError:
        raise lacking("image files need Pillow: pip install pillow, or give a .npy file [N, C, H, W]") from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(str(path)) as image:
                if image.format not in FORMATS:
                    raise wrong(f"it is {image.format}: give one of {', '.join(FORMATS)}")
                image.load()
                return [(str(path), tensor_of(image, contract))]
    except Exception as error:  # decoders raise anything
        raise wrong(f"{path}: {str(error) or type(error).__name__}") from error


def rows_of(path: Path, contract: Any) -> list[tuple[str, Any]]:
    """Rows of an array: floats are preprocessed already, bytes are pixels."""
    try:
        array = np.load(str(path), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise wrong(f"{path} is no plain array file: {error}") from error
    if array.dtype.kind == "f" and array.ndim in (3, 4):
        rows = array if array.ndim == 4 else array[None]
        for row in rows:
            sides = [row.shape[0], *row.shape[1:]] if contract["size"] else [row.shape[0]]
            if sides != [len(contract["mean"]), *(contract["size"] or [])]:
                raise wrong(f"{path} has rows of {list(row.shape)}, the model takes {len(contract['mean'])} channels"
                            f"{' of {}x{}'.format(*contract['size']) if contract['size'] else ''}")  # fmt: skip
        return [(f"{path}[{index}]", row.astype(np.float32)) for index, row in enumerate(rows)]
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise wrong(f"{path} is {array.dtype} {list(array.shape)}: give floats [N, C, H, W] or uint8 [N, H, W, C]")
    pictures = array if array.ndim == 4 or array.shape[-1] not in (1, 3) else array[None]
    return [(f"{path}[{index}]", pixel_tensor(row, contract)) for index, row in enumerate(pictures)]


def pixel_tensor(pixels: Any, contract: Any) -> Any:
    """uint8 [H, W] or [H, W, C] as float32 [C, H, W]."""
    if contract["color"] == "raw":
        return normalised(pixels if pixels.ndim == 3 else pixels[:, :, None], contract)
    try:
        from PIL import Image
    except ImportError:
        raise lacking("pixels need Pillow: pip install pillow, or give floats [N, C, H, W]") from None
    return tensor_of(Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels), contract)


# ---------------------------------------------------------------------------------------------------------------------
# How far two arrays of logits lie apart, and whether that is allowed
# ---------------------------------------------------------------------------------------------------------------------


def compare(reference: Any, candidate: Any) -> dict[str, Any]:
    """Statistics over [N, classes], in float64: signal to noise in decibels, the signal being the reference."""
    if reference.shape != candidate.shape:
        return {"finite": False, "why": f"it gives {list(candidate.shape)}, expected {list(reference.shape)}"}
    signal, other = reference.astype(np.float64), candidate.astype(np.float64)
    # NaN compares False: one comparison covers it, Inf, and what float32 cannot hold.
    finite = (np.abs(signal) <= FLOAT32_MAX).all(axis=1) & (np.abs(other) <= FLOAT32_MAX).all(axis=1)
    if not finite.all():
        return {"finite": False, "why": f"sample {int(np.argmin(finite))} holds NaN or Inf"}
    error = np.abs(signal - other)
    noise, largest = float(np.square(error).sum()), float(error.max())
    centred = signal - signal.mean(axis=1, keepdims=True) if signal.shape[1] > 1 else signal
    deciding = float(np.square(centred).sum())
    if len(centred) > 1:
        left = deciding - float(np.square(centred.sum(axis=0)).sum()) / len(centred)
        deciding = left if left > 1e-13 * deciding else 0.0
    _, exponent = math.frexp(float(np.float32(np.abs(signal).max())))
    return {
        "finite": True,
        "max_abs": largest,
        "max_ulp": largest / math.ldexp(1.0, max(exponent - 24, -149)),
        "sqnr_db": decibels(float(np.square(signal).sum()), noise, largest),
        "decision_sqnr_db": decibels(deciding, noise, largest),
        "top1_agreement": float((signal.argmax(axis=1) == other.argmax(axis=1)).mean()),
    }


def decibels(signal: float, noise: float, largest: float) -> float:
    """10 log10(signal / noise), within 300 either way."""
    if largest == 0.0 or (noise == 0.0 and signal > 0.0):
        return CAP_DB
    if signal == 0.0:
        return -CAP_DB
    return min(max(10.0 * (math.log10(signal) - math.log10(noise)), -CAP_DB), CAP_DB)


def judge(found: dict[str, Any], bounds: dict[str, Any]) -> list[str]:
    """What does not hold."""
    if not found["finite"]:
        return [found["why"]]
    least = (("min_sqnr_db", "sqnr_db", "SQNR"), ("min_decision_db", "decision_sqnr_db", "decision SQNR"),
             ("min_top1", "top1_agreement", "top-1 agreement"))  # fmt: skip
    faults = [
        f"{title} is {found[name]:.4g}, at least {bounds[bound]:.4g} is required"
        for bound, name, title in least
        if bounds[bound] is not None and not found[name] >= bounds[bound]
    ]
    if bounds["max_ulp"] is not None and not found["max_ulp"] <= bounds["max_ulp"]:
        faults.append("the largest difference is {:.4g} ULP, at most {:g} is allowed".format(
            found["max_ulp"], bounds["max_ulp"]))  # fmt: skip
    return faults


# ---------------------------------------------------------------------------------------------------------------------
# Running: ONNX Runtime, or TensorRT with the driver's own memory
# ---------------------------------------------------------------------------------------------------------------------


class Session:
    """What runs a model, any number of images at a time."""

    runtime = ""
    lowest, highest = 1, 1 << 30  # images that one run takes
    dtype = "float32"

    def run_once(self, batch: Any) -> Any:
        """[N, C, H, W] in the model's type -> [N, classes]."""
        raise NotImplementedError

    def run(self, images: Any) -> Any:
        """[N, C, H, W] -> [N, classes] float32; what is too few for the model is filled up, and cut off again."""
        results = []
        for start in range(0, len(images), self.highest):
            piece = images[start : start + self.highest]
            short = max(self.lowest - len(piece), 0)
            whole = np.concatenate([piece, np.repeat(piece[:1], short, axis=0)]) if short else piece
            with np.errstate(over="ignore"):
                batch = np.ascontiguousarray(whole.astype(self.dtype))
            results.append(np.asarray(self.run_once(batch))[: len(piece)].astype(np.float32))
        return np.concatenate(results)

    def close(self) -> None:
        """Give back what was taken."""


class OrtSession(Session):
    """An ONNX file on ONNX Runtime."""

    def __init__(self, path: Path, provider: str, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise lacking("ONNX Runtime is not installed: pip install onnxruntime") from None
        self.runtime, name, options = PROVIDERS[provider]
        if name not in onnxruntime.get_available_providers():
            raise lacking(f"{name} is not in this ONNX Runtime {onnxruntime.__version__}: pip install onnxruntime-gpu")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = threads, 4
        chosen = [(name, options), "CPUExecutionProvider"] if options or provider != "cpu" else [name]
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=chosen)
        except Exception as error:  # the binding's exceptions have no common base
            raise failed(f"{path.name} cannot be loaded by ONNX Runtime: {error}") from error
        if self._session.get_providers()[0] != name:
            raise lacking(f"{name} does not start here: it needs an NVIDIA driver and its libraries")
        given = self._session.get_inputs()[0]
        self._name = given.name
        self.dtype = {"tensor(float16)": "float16", "tensor(double)": "float64"}.get(given.type, "float32")
        if given.shape and isinstance(given.shape[0], int):
            self.lowest = self.highest = given.shape[0]

    def run_once(self, batch: Any) -> Any:
        """One run."""
        try:
            return self._session.run(None, {self._name: batch})[0]
        except Exception as error:
            raise failed(f"ONNX Runtime failed on {list(batch.shape)}: {error}") from error


class Driver:
    """The few functions of the CUDA driver that running an engine asks for, without any binding."""

    def __init__(self, device: int = 0) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise lacking("there is no NVIDIA driver here (libcuda.so.1): an engine needs its GPU") from None
        self._taken: list[Any] = []
        number, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDeviceGet", ctypes.byref(number), ctypes.c_int(device))
        # The primary context is the one that TensorRT uses too.
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
        self._device = number
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(1))
        self._stream = stream

    @property
    def stream(self) -> int:
        """As TensorRT takes it."""
        return int(self._stream.value or 0)

    def call(self, name: str, *arguments: Any) -> None:
        """A function of the driver; all of them return 0 when they did what was asked."""
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            said = (text.value or b"an error without a name").decode(errors="replace")
            raise lacking(f"the GPU cannot be used: {said} ({name}: {code})")

    def allocate(self, size: int) -> int:
        """Memory of the device, in bytes."""
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        self._taken.append(pointer)
        return int(pointer.value)

    def upload(self, target: int, source: Any) -> None:
        """Queue a copy of a contiguous array to the device."""
        self.call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(target), ctypes.c_void_p(source.ctypes.data),
                  ctypes.c_size_t(source.nbytes), self._stream)  # fmt: skip

    def download(self, target: Any, source: int) -> None:
        """Copy from the device into a contiguous array, and wait for it and what is queued before it."""
        self.call("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(target.ctypes.data), ctypes.c_uint64(source),
                  ctypes.c_size_t(target.nbytes), self._stream)  # fmt: skip
        self.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give the memory back, the stream, and the context."""
        for pointer in self._taken:
            self.call("cuMemFree_v2", pointer)
        self._taken = []
        self.call("cuStreamDestroy_v2", self._stream)
        self.call("cuDevicePrimaryCtxRelease_v2", self._device)


class EngineSession(Session):
    """An engine on TensorRT or TensorRT-RTX."""

    def __init__(self, path: Path, package: str, device: int = 0) -> None:
        trt = tensorrt(package)
        self.runtime = package.replace("_", "-")
        self._trt, self._driver = trt, Driver(device)
        self._memory: dict[str, tuple[int, int]] = {}
        try:
            self._load(path)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path) -> None:
        """The engine, its context, and what it takes and gives."""
        trt = self._trt
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise wrong(f"{path.name} is of another TensorRT than {trt.__version__}, or of another GPU: run.py build")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise lacking(f"the GPU has not enough memory for {path.name}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or len(names) != 2:
            raise wrong(f"{path.name} has the tensors {', '.join(names)}, expected one input and one output")
        self._input, self._output = inputs[0], next(name for name in names if name != inputs[0])
        self.dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(self._input))).name
        self._given = np.dtype(trt.nptype(self._engine.get_tensor_dtype(self._output)))
        smallest, _, largest = self._engine.get_tensor_profile_shape(self._input, 0)
        self.lowest, self.highest = int(smallest[0]), int(largest[0])

    def run_once(self, batch: Any) -> Any:
        """One run."""
        if not self._context.set_input_shape(self._input, tuple(batch.shape)):
            raise wrong(f"this engine does not take {list(batch.shape)}: build it with other sizes")
        output = np.empty(tuple(self._context.get_tensor_shape(self._output)), self._given)
        source, target = self._place(self._input, batch.nbytes), self._place(self._output, output.nbytes)
        self._driver.upload(source, batch)
        if not self._context.execute_async_v3(self._driver.stream):
            raise failed(f"TensorRT failed on {list(batch.shape)}")
        self._driver.download(output, target)
        return output

    def _place(self, name: str, size: int) -> int:
        """Memory of a tensor, grown where it is too small."""
        pointer, held = self._memory.get(name, (0, 0))
        if held < size:
            pointer = self._driver.allocate(size)
            self._memory[name] = (pointer, size)
            self._context.set_tensor_address(name, pointer)
        return pointer

    def close(self) -> None:
        """In the order that TensorRT wants: what lives on the device before the device."""
        self._context = self._engine = self._runtime = None
        self._driver.close()


def tensorrt(package: str) -> Any:
    """The bindings of TensorRT or TensorRT-RTX."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        told = f"{package} cannot be imported here ({error})"
        raise lacking(f"{told}: it comes with JetPack, or pip install {package}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Building an engine
# ---------------------------------------------------------------------------------------------------------------------


class Plan:
    """What is to be built: the file, the sizes and how TensorRT is told to compute."""

    def __init__(self, bundle: Bundle, model: Any, wanted: argparse.Namespace, version: tuple[int, ...]) -> None:
        self.model, self.wanted, self.version = model, wanted, version
        self.rtx = wanted.package == "tensorrt_rtx"
        own = model["precision"]
        self.precision = wanted.precision or own
        self.source, self.cache = bundle.path(model["file"]), None  # type: Path, bytes | None
        if wanted.dla is not None and not self._takes_qdq_on_dla():
            self._use_cache(bundle)
        always = self.rtx or version >= (11,)
        self.strong = always or (own != "fp32" and version >= (9, 1) and self.cache is None)
        if self.precision != own and (own != "fp32" or self.precision != "fp16"):
            raise wrong(f"{model['id']} is {own}, and {self.precision} was asked for: choose another --model")
        if self.precision != own and always:
            raise wrong(f"TensorRT {'-RTX' if self.rtx else version[0]} takes FP16 from an FP16 file alone: export one")
        flags = {"fp16": ["FP16"], "bf16": ["BF16"], "int8": ["FP16", "INT8"]}
        self.flags = [] if self.strong else flags.get(self.precision, [])
        self.profile = self._profile(bundle)

    def _takes_qdq_on_dla(self) -> bool:
        """Whether a DLA needs no cache: a float model, or a TensorRT that drives one from Q/DQ."""
        if self.rtx or (10, 8) <= self.version < (11, 4, 1):
            raise lacking("this TensorRT drives no DLA: leave --dla out")
        return self.model["precision"] != "int8" or self.version >= (11, 4, 1)

    def _use_cache(self, bundle: Bundle) -> None:
        """The float network and its scales, in a calibration cache that names this very release."""
        if self.model["dla"] is None:
            raise wrong(
                f"{self.model['id']} has no scales for a DLA: make the bundle with --dla, or leave --dla out here"
            )
        self.source = bundle.path(self.model["dla"]["file"])
        scales = json.loads(bundle.path(self.model["dla"]["scales"]).read_text(encoding="utf-8"))
        major, minor, patch = (*self.version, 0, 0)[:3]
        number = major * (1000 if major < 10 else 10000) + minor * 100 + patch
        lines = [f"{name}: {digits}" for name, digits in scales]
        self.cache = "\n".join([f"TRT-{number}-EntropyCalibration2", *lines, ""]).encode()

    def _profile(self, bundle: Bundle) -> list[tuple[int, ...]]:
        """Smallest, best and largest shape."""
        batch, channels, height, width = self.model["inputs"][0]["shape"]
        size = bundle.array(bundle.manifest["goldens"]["input"]).shape
        image = (channels or size[1], height or size[2], width or size[3])
        if batch is not None:
            return [(batch, *image)] * 3
        counts = sorted({1, self.wanted.batch, self.wanted.max_batch})
        if self.wanted.dla is not None:
            counts = [self.wanted.batch]
        return [(counts[0], *image), (self.wanted.batch, *image), (counts[-1], *image)]


def build(bundle: Bundle, wanted: argparse.Namespace) -> int:
    """``run.py build``."""
    model = bundle.model(wanted.model) if wanted.model else for_tensorrt(bundle)
    if model["kind"] != "onnx":
        raise wrong(f"{model['id']} is an engine already: build from one of its ONNX models")
    target = Path(wanted.output) if wanted.output else bundle.local() / (model["id"] + ".engine")
    if bundle.root == target.resolve().parent or bundle.root in target.resolve().parents:
        raise wrong("an engine inside of the bundle would be a file that its manifest does not know: give another -o")
    trtexec, bindings = None, None
    try:
        wanted.package, bindings = available() if wanted.trtexec is None else ("tensorrt", None)
    except RunError:
        wanted.package = "tensorrt"
    if bindings is None:
        trtexec = wanted.trtexec or shutil.which("trtexec") or "/usr/src/tensorrt/bin/trtexec"
        if not Path(trtexec).exists():
            raise lacking(
                "there is no TensorRT here: it comes with JetPack, or pip install tensorrt, or give --trtexec"
            )
    version = number_of(bindings.__version__) if bindings else version_of(str(trtexec))
    plan = Plan(bundle, model, wanted, version)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    say(f"building {model['id']} ({plan.precision}) with {wanted.package} {'.'.join(map(str, version))}")
    begin = time.perf_counter()
    try:
        if bindings:
            part.write_bytes(by_bindings(plan, bindings))
        else:
            by_trtexec(plan, str(trtexec), part)
        document = {"sha256": sha256(part), "source_sha256": model["sha256"], "model": model["id"],
                    "package": wanted.package, "version": ".".join(map(str, version)), "precision": plan.precision,
                    "dla": wanted.dla, "calibrated": plan.cache is not None}  # fmt: skip
        side = target.with_name(target.name + ".json")
        if side.exists():
            side.unlink()  # no engine may lie beside the document of another one, even for a moment
        part.replace(target)
        side.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    finally:
        if part.exists():
            part.unlink()
    say(f"{target}  {target.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - begin:.0f} s; next: run.py check")
    return 0


def for_tensorrt(bundle: Bundle) -> Any:
    """The model that TensorRT is to run where none was named: one made for it, else the reference."""
    made = [each for each in bundle.manifest["models"] if each["kind"] == "onnx" and each["target"] == "tensorrt"]
    return made[0] if made else bundle.model(bundle.manifest["goldens"]["reference_model"])


def available() -> tuple[str, Any]:
    """The first TensorRT that is installed."""
    for package in GENERATIONS:
        try:
            return package, tensorrt(package)
        except RunError as error:
            last = error
    raise last


def number_of(version: str) -> tuple[int, ...]:
    """10.3.0.26 -> (10, 3, 0)."""
    return tuple(int(each) for each in re.findall(r"\d+", version)[:3])


def version_of(trtexec: str) -> tuple[int, ...]:
    """Of a trtexec, which heads what it prints with it: v8502 is 8.5.2, v100300 is 10.3.0."""
    done = subprocess.run([trtexec, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    found = re.search(rb"\[TensorRT v(\d+)\]", done.stdout)
    if found is None:
        raise lacking(f"{trtexec} does not tell its version: is it TensorRT's?")
    number = int(found.group(1))
    weight = 1000 if number < 10000 else 10000
    return (number // weight, number % weight // 100, number % 100)


def by_bindings(plan: Plan, trt: Any) -> bytes:
    """An engine by TensorRT's Python API."""
    logger = trt.Logger(trt.Logger.WARNING)
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # pybind's exceptions have no common base
        raise lacking(f"TensorRT cannot start here: {error}") from error
    flags, chosen = trt.NetworkDefinitionCreationFlag, 0
    if not plan.rtx and plan.version < (10,):
        chosen |= 1 << int(flags.EXPLICIT_BATCH)
    if plan.strong and not plan.rtx and plan.version < (11,):
        chosen |= 1 << int(flags.STRONGLY_TYPED)
    network = builder.create_network(chosen)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(plan.source)):
        raise failed("; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    for name in plan.flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    config.clear_flag(trt.BuilderFlag.TF32)  # on from the start, and FP32 has to be FP32
    if plan.wanted.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.wanted.workspace << 20)
    if plan.wanted.dla is not None:
        config.default_device_type, config.DLA_core = trt.DeviceType.DLA, plan.wanted.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    profile = builder.create_optimization_profile()
    profile.set_shape(plan.model["inputs"][0]["name"], *plan.profile)
    config.add_optimization_profile(profile)
    kept = None if plan.cache is None else reader_of(trt, plan.cache)  # TensorRT holds a bare pointer to it
    if kept is not None:
        config.int8_calibrator = kept
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise failed("TensorRT could not build the engine; its own messages are above")
    return bytes(engine)


def reader_of(trt: Any, cache: bytes) -> Any:
    """A calibrator that has a cache, and no images."""

    class Reader(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]  # a class of the bindings
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Any) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: Any) -> None:
            pass

    return Reader()


def by_trtexec(plan: Plan, trtexec: str, target: Path) -> None:
    """An engine by TensorRT's own program."""
    words = [trtexec, f"--onnx={plan.source}", f"--saveEngine={target}", "--noTF32", "--skipInference"]
    if plan.version < (8, 6):
        words[-1] = "--buildOnly"  # its name before 8.6
    if plan.strong and plan.version < (11,):
        words.append("--stronglyTyped")
    words += ["--" + flag.lower() for flag in plan.flags]
    if plan.model["inputs"][0]["shape"][0] is None or None in plan.model["inputs"][0]["shape"][2:]:
        name = plan.model["inputs"][0]["name"]
        for option, shape in zip(("min", "opt", "max"), plan.profile):
            words.append(f"--{option}Shapes={name}:{'x'.join(map(str, shape))}")
    if plan.wanted.dla is not None:
        words += [f"--useDLACore={plan.wanted.dla}", "--allowGPUFallback"]
    if plan.wanted.workspace:
        words.append(f"--memPoolSize=workspace:{plan.wanted.workspace}")
    cache = target.with_name(target.name + ".cache")
    try:
        if plan.cache is not None:
            cache.write_bytes(plan.cache)
            words.append(f"--calib={cache}")
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    finally:
        if cache.exists():
            cache.unlink()
    if done.returncode or not target.exists():
        told = [line for line in done.stdout.decode(errors="replace").splitlines() if "[E]" in line]
        raise failed(f"trtexec could not build the engine: {told[-1] if told else 'it does not say why'}")


# ---------------------------------------------------------------------------------------------------------------------
# check, classify, bench
# ---------------------------------------------------------------------------------------------------------------------


class Candidate:
    """A model and what can run it here."""

    def __init__(self, model: Any, path: Path, package: str | None, precision: str, calibrated: bool = False) -> None:
        self.model, self.path, self.package, self.precision = model, path, package, precision
        self.calibrated = calibrated  # by a cache: rounded elsewhere than its Q/DQ would

    def open(self, wanted: argparse.Namespace) -> Session:
        """Load it."""
        if self.package is None:
            return OrtSession(self.path, wanted.provider, wanted.threads)
        return EngineSession(self.path, self.package, wanted.device)


def candidates(bundle: Bundle, wanted: argparse.Namespace) -> list[Candidate]:
    """Every model, engines that came along, and those that were built here."""
    chosen = [bundle.model(wanted.model)] if wanted.model else bundle.manifest["models"]
    found = []
    for model in chosen:
        package = None if model["kind"] == "onnx" else model["kind"].replace("-", "_")
        found.append(Candidate(model, bundle.path(model["file"]), package, model["precision"]))
    engines = [Path(wanted.engine)] if wanted.engine else sorted(bundle.local().glob("*.engine"))
    own = {model["sha256"]: model for model in bundle.manifest["models"] if model["kind"] == "onnx"}
    for engine in engines:
        document = document_of(engine)
        model = own.get(document["source_sha256"])
        if model is None:
            raise wrong(f"{engine} was built from a model that is not in this bundle: build it again")
        if model in chosen:
            found.append(
                Candidate(model, engine, document["package"], document["precision"], bool(document["calibrated"]))
            )
    return found


def document_of(engine: Path) -> Any:
    """What ``build`` wrote beside an engine."""
    try:
        document = json.loads(engine.with_name(engine.name + ".json").read_text(encoding="utf-8"))
        names = ("sha256", "source_sha256", "package", "precision", "calibrated")
        known = {name: document[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise wrong(f"{engine} has no document of run.py build beside it: build it again") from error
    if known["package"] not in GENERATIONS or known["sha256"] != sha256(engine):
        raise wrong(f"{engine} is not the engine that its document is about: build it again")
    return known


def check(bundle: Bundle, wanted: argparse.Namespace) -> int:
    """``run.py check``."""
    say(f"files         all {len(bundle.manifest['files'])} are whole")
    images = bundle.array(bundle.manifest["goldens"]["input"])
    faults = check_pixels(bundle, images)
    ran = 0
    for candidate in candidates(bundle, wanted):
        title = f"{candidate.model['id']} on "
        try:
            session = candidate.open(wanted)
        except RunError as error:
            if error.code == 1:
                raise
            say(f"{title}{candidate.package or 'onnxruntime'}: not run: {error}")
            continue
        try:
            outputs = session.run(images)
        finally:
            session.close()
        ran += 1
        faults += check_outputs(bundle, candidate, session.runtime, outputs)
    if faults:
        say(f"FAILED: {len(faults)} of the checks; the first: {faults[0]}")
        return 1
    if not ran:
        raise lacking("no model could be run here: pip install onnxruntime, or build an engine on a GPU")
    say("passed: this device computes what was computed where the bundle was made")
    return 0


def check_pixels(bundle: Bundle, images: Any) -> list[str]:
    """Whether this machine makes the same tensors of the same pixels, bit for bit."""
    entries = [(index, each) for index, each in enumerate(bundle.manifest["goldens"]["images"]) if each["pixels"]]
    try:
        from PIL import Image, __version__
    except ImportError:
        say("preprocessing not checked: Pillow is not installed")
        return []
    faults = []
    for index, entry in entries:
        with Image.open(str(bundle.path(entry["pixels"]))) as picture:
            tensor = tensor_of(picture, bundle.contract)
        if tensor.shape != images[index].shape or tensor.tobytes() != images[index].tobytes():
            faults.append(f"{entry['pixels']} becomes another tensor here (Pillow {__version__})")
            say(faults[-1])
    if entries and not faults:
        say(f"preprocessing {len(entries)} images become the same tensors, bit for bit (Pillow {__version__})")
    return faults


def check_outputs(bundle: Bundle, candidate: Candidate, runtime: str, outputs: Any) -> list[str]:
    """Hold outputs against every golden that there are bounds for."""
    faults, judged = [], 0
    goldens = {"reference": bundle.manifest["goldens"]["reference"], "golden": candidate.model["golden"]}
    for bounds in candidate.model["tolerances"]:
        if (bounds["runtime"], bounds["precision"]) != (runtime, candidate.precision):
            continue
        if candidate.calibrated and bounds["against"] == "golden":
            continue
        judged += 1
        found = compare(bundle.array(goldens[bounds["against"]]), outputs)
        missed = judge(found, bounds)
        title = f"{candidate.model['id']} on {runtime}, against the {bounds['against']}"
        shown = "{sqnr_db:.1f} dB, top-1 agreement {top1_agreement:.2%}".format(**found) if found["finite"] else "no"
        say(f"{title}: {shown}  {'FAILED: ' + '; '.join(missed) if missed else 'ok'}")
        faults += [f"{title}: {each}" for each in missed]
    if not judged:
        faults.append(f"{candidate.model['id']} on {runtime}: the manifest has no tolerance for {candidate.precision}")
        say(faults[-1])
    return faults


def chosen_session(bundle: Bundle, wanted: argparse.Namespace) -> tuple[str, Session]:
    """The best that runs here: an engine, then a model made for ONNX Runtime, then the reference."""
    found = candidates(bundle, wanted)
    reference = bundle.manifest["goldens"]["reference_model"]
    order = sorted(
        found,
        key=lambda each: (each.package is None, each.model["target"] != "onnxruntime", each.model["id"] != reference),
    )
    lack = lacking("no model can be run here")
    for candidate in order:
        try:
            session = candidate.open(wanted)
        except RunError as error:
            lack = error
            continue
        return f"{candidate.model['id']} on {session.runtime}", session
    raise lack


def classify(bundle: Bundle, wanted: argparse.Namespace) -> int:
    """``run.py classify``."""
    labels = bundle.labels()
    title, session = chosen_session(bundle, wanted)
    sys.stderr.write(title + "\n")
    try:
        for path in wanted.images:
            for name, tensor in images_of(Path(path), bundle.contract):
                logits = session.run(tensor[None])[0].astype(np.float64)
                powers = np.exp(logits - logits.max())
                best = np.argsort(-powers, kind="stable")[: wanted.top]
                shares = powers / powers.sum()
                say(name + "  " + "  ".join(f"{labels[index]} {shares[index]:.3f}" for index in best))
    finally:
        session.close()
    return 0


def bench(bundle: Bundle, wanted: argparse.Namespace) -> int:
    """``run.py bench``."""
    images = bundle.array(bundle.manifest["goldens"]["input"])
    batch = images[np.arange(wanted.batch) % len(images)]
    ran = 0
    for candidate in candidates(bundle, wanted):
        title = f"{candidate.model['id']} ({candidate.precision})"
        try:
            session = candidate.open(wanted)
        except RunError as error:
            say(f"{title}: not run: {error}")
            continue
        try:
            times = timed(session, batch, wanted.seconds)
        finally:
            session.close()
        ran += 1
        p50, p90 = (float(np.percentile(times, each)) for each in (50, 90))
        say(f"{title} on {session.runtime}: {p50:.3f} ms (p90 {p90:.3f}) for {wanted.batch}, "
            f"{1000 * wanted.batch / p50:.0f} images/s, {len(times)} runs")  # fmt: skip
    if not ran:
        raise lacking("no model could be run here: pip install onnxruntime, or build an engine on a GPU")
    return 0


def timed(session: Session, batch: Any, seconds: float) -> list[float]:
    """Milliseconds of each run, copies to and from the device included, after a fifth of the time to warm up."""
    times: list[float] = []
    begin = time.perf_counter()
    while True:
        start = time.perf_counter()
        session.run(batch)
        end = time.perf_counter()
        if end - begin > 0.2 * seconds:
            times.append(1000 * (end - start))
        if end - begin > 1.2 * seconds and times:
            return times


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    """A number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def parser() -> argparse.ArgumentParser:
    """All commands."""
    found = argparse.ArgumentParser(
        "run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    commands = found.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--model", metavar="ID", help="one of the bundle's models; default: see the README")
    running = argparse.ArgumentParser(add_help=False, parents=[shared])
    running.add_argument("--provider", choices=sorted(PROVIDERS), default="cpu", help="of ONNX Runtime")
    running.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: its own choice")
    running.add_argument("--engine", metavar="FILE", help="an engine of run.py build; default: those beside the bundle")
    running.add_argument("--device", type=int, default=0, help="number of the GPU")
    made = commands.add_parser("build", parents=[shared], help="an engine for this device")
    made.add_argument("-o", "--output", metavar="FILE", help="default: beside the bundle, in BUNDLE.local")
    made.add_argument("--precision", choices=("fp32", "fp16", "bf16", "int8"), help="default: that of the model")
    made.add_argument("--batch", type=positive, default=1, help="batch that the engine is fastest for")
    made.add_argument("--max-batch", type=positive, default=8, help="largest batch")
    made.add_argument("--dla", type=int, metavar="CORE", help="build for a deep learning accelerator")
    made.add_argument("--workspace", type=positive, metavar="MIB", help="memory that tactics may use")
    made.add_argument("--trtexec", metavar="FILE", help="use this program instead of the Python API")
    made.set_defaults(work=build)
    commands.add_parser("check", parents=[running], help="hold this device against the goldens").set_defaults(
        work=check
    )
    named = commands.add_parser("classify", parents=[running], help="the likeliest classes of images")
    named.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or .npy arrays")
    named.add_argument("--top", type=positive, default=5)
    named.set_defaults(work=classify)
    clocked = commands.add_parser("bench", parents=[running], help="milliseconds of a batch")
    clocked.add_argument("--batch", type=positive, default=1)
    clocked.add_argument("--seconds", type=float, default=3.0, help="for each model")
    clocked.set_defaults(work=bench)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Parse, verify the bundle, work."""
    wanted = parser().parse_args(arguments)
    if getattr(wanted, "max_batch", 0) and wanted.max_batch < wanted.batch:
        wanted.max_batch = wanted.batch
    try:
        result: int = wanted.work(Bundle(Path(__file__).resolve().parent), wanted)
        return result
    except RunError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.code
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
