"""What this machine can run models on: each runtime with its version, and what is missing with the way to get it.

Versions are read from the packages' metadata. Only what must be loaded to be judged is loaded: ONNX Runtime for its
providers, the TensorRT packages because they fail at import; neither torch nor OpenVINO.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from runtimes.errors import first_line
from runtimes.ort import INSTALL as INSTALL_PROVIDER
from runtimes.tensorrt.device import DeviceSearch, JetPack, find_devices, jetpack
from runtimes.tensorrt.flavour import INSTALL, Flavour, Survey, survey
from runtimes.tensorrt.generations import PACKAGES

_CPUINFO: Final = Path("/proc/cpuinfo")
# Feature → its names in /proc/cpuinfo, of which one is enough.
_FEATURES: Final = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "amx_int8": ("amx_int8",),
    "arm_dot_product": ("asimddp",),
    "arm_int8_matmul": ("i8mm",),
}
_ARM: Final = ("aarch64", "arm64")
#: Runtimes that are providers of ONNX Runtime.
_PROVIDERS: Final = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}
_ANEW: Final = "pip install --force-reinstall resnet-export"  # its dependencies come with it


@dataclass(frozen=True)
class Cpu:
    """The processor, and what in it decides how INT8 files are to be written.

    Attributes:
        architecture: For example ``"x86_64"`` or ``"aarch64"``.
        model: As the system calls it; None where it does not say.
        cores: Logical cores of the machine; None where the system does not say.
        features: ``avx2``, ``avx512``, ``vnni``, ``amx_int8``, ``arm_dot_product`` and ``arm_int8_matmul``: whether it
            has them; all None where the system does not say.
        int8: What that means for INT8, in one sentence with the option of ``quantize``.
    """

    architecture: str
    model: str | None
    cores: int | None
    features: dict[str, bool | None]
    int8: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the features stand beside the other attributes."""
        described = asdict(self)
        features: dict[str, Any] = described.pop("features")
        return described | features


@dataclass(frozen=True)
class RuntimeRow:
    """One runtime.

    Attributes:
        name: As in messages and reports, for example ``"onnxruntime"``.
        installed: Whether its package is here, working or not.
        version: Version of the package; None where it is not here or cannot say.
        usable: Whether something can be done with it on this machine; ``detail`` says what.
        detail: What it has, or what keeps it from working, in one line.
        install: What to do so that it works here; None where nothing is missing or nothing helps.
    """

    name: str
    installed: bool
    version: str | None
    usable: bool
    detail: str
    install: str | None


@dataclass(frozen=True)
class Diagnosis:
    """Everything that ``resnet-export doctor`` tells.

    Attributes:
        python: Version of the interpreter.
        platform: System, its release and architecture.
        cpu: The processor.
        runtimes: One row per runtime, always the same ones in the same order.
        devices: The NVIDIA GPUs, or why there are none.
        jetpack: System software of a Jetson; None elsewhere.
    """

    python: str
    platform: str
    cpu: Cpu
    runtimes: tuple[RuntimeRow, ...]
    devices: DeviceSearch
    jetpack: JetPack | None

    def to_json(self) -> dict[str, Any]:
        """The document of ``doctor --json``."""
        return {
            "python": self.python,
            "platform": self.platform,
            "cpu": self.cpu.to_json(),
            "runtimes": [asdict(row) for row in self.runtimes],
            "devices": [device.to_json() for device in self.devices.devices],
            "no_devices": self.devices.reason or None,
            "jetpack": self.jetpack.to_json() if self.jetpack else None,
        }


def diagnose() -> Diagnosis:
    """Look at this machine; what is missing or broken becomes a row, never an error."""
    found, release = find_devices(), jetpack()
    return Diagnosis(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu(),
        runtimes=(*framework_rows(), *tensorrt_rows(survey(), found, release)),
        devices=found,
        jetpack=release,
    )


def cpu(cpuinfo: Path = _CPUINFO, architecture: str | None = None) -> Cpu:
    """The processor.

    Args:
        cpuinfo: Linux's description of it, one block per core; only the first block is read.
        architecture: Machine name; None for this machine's.
    """
    architecture = architecture or platform.machine()
    fields: dict[str, str] = {}
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    words = fields.get("flags", fields.get("Features"))  # x86's key, and ARM's
    has = None if words is None else set(words.split())
    features = {name: None if has is None else not has.isdisjoint(names) for name, names in _FEATURES.items()}
    model = fields.get("model name")
    return Cpu(architecture, model, os.cpu_count(), features, _int8_advice(features, architecture))


def _int8_advice(features: dict[str, bool | None], architecture: str) -> str:
    if features["avx2"] is None:
        return "not known, as the system does not list the processor's features"
    if architecture in _ARM:
        fast = features["arm_dot_product"] or features["arm_int8_matmul"]
        return f"{'fast' if fast else 'no dot product instruction'}: quantize --target onnxruntime --cpu arm"
    if features["vnni"]:
        return "fast and exact: quantize --target onnxruntime --cpu vnni"
    if features["avx2"]:
        return "sums of two products saturate at 16 bits: keep quantize --cpu any, which avoids it"
    return "no INT8 instructions: an INT8 file may be slower than FP32 here"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def framework_rows(
    version: Callable[[str], str | None] = _version,
    load: Callable[[str], Any] = importlib.import_module,
    which: Callable[[str], str | None] = shutil.which,
) -> tuple[RuntimeRow, ...]:
    """The rows of all runtimes but the TensorRT ones.

    Args:
        version: From a distribution's name to its version; None where it is not installed.
        load: Imports ONNX Runtime.
        which: Finds a program on the path.
    """
    torch, openvino, onnx, client = (version(name) for name in ("torch", "openvino", "onnx", "tritonclient"))
    # A build for GPUs is another distribution of the same module.
    ort = version("onnxruntime") or version("onnxruntime-gpu")
    has_torch, has_openvino, simulates = torch is not None, openvino is not None, None not in (torch, onnx)
    compiler = next((name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and which(name)), None)
    compiles = f"compiles with {Path(compiler).name}" if compiler else "no C++ compiler on the path"
    return (
        RuntimeRow(
            "eager", has_torch, torch, has_torch,
            "PyTorch, the reference of every comparison" if has_torch else "torch is not installed",
            None if has_torch else _ANEW,
        ),
        RuntimeRow(
            "torch-compile", has_torch, torch, has_torch and compiler is not None,
            compiles if has_torch else "torch is not installed",
            _ANEW if not has_torch else None if compiler else "install a C++ compiler, such as g++",
        ),
        *_onnxruntime(ort, load),
        RuntimeRow(
            "openvino", has_openvino, openvino, has_openvino,
            "Intel and ARM processors; not loaded for this look" if has_openvino else "openvino is not installed",
            None if has_openvino else "pip install 'resnet-export[openvino]'",
        ),
        RuntimeRow(
            "int8-sim", simulates, version("resnet-export"), simulates,
            "integer arithmetic of any Q/DQ file, on PyTorch" if simulates else "needs torch and onnx",
            None if simulates else _ANEW,
        ),
        RuntimeRow(
            "triton", client is not None, client, client is not None,
            "models on a server, over HTTP or gRPC; none is looked for" if client else "tritonclient is not installed",
            None if client else "pip install 'resnet-export[triton]'",
        ),
    )  # fmt: skip


def tensorrt_rows(found: Survey, search: DeviceSearch, release: JetPack | None) -> tuple[RuntimeRow, ...]:
    """One row per TensorRT package.

    Args:
        found: The packages of this Python.
        search: The GPUs.
        release: System software of a Jetson.
    """
    working = {item.name: item for item in found.working}
    rows = []
    for name in PACKAGES:
        if name in working:
            rows.append(_working_row(working[name], search))
        elif name in found.broken:
            advice = f"install it anew, {INSTALL[name]}"
            rows.append(RuntimeRow(name, True, None, False, found.broken[name], advice))
        else:
            belongs = f"; JetPack {release.version} brings {release.tensorrt}" if release and release.version else ""
            detail = f"not installed{belongs if name == 'tensorrt' else ''}"
            rows.append(RuntimeRow(name, False, None, False, detail, INSTALL[name]))
    return tuple(rows)


def _working_row(item: Flavour, search: DeviceSearch) -> RuntimeRow:
    # A builder times its kernels on the GPU that it builds for, unless it can be told to build for another one.
    builds = item.can_build and (bool(search.devices) or item.generation.compute_capabilities)
    runs = item.can_run and bool(search.devices)
    able = [word for word, can in (("builds", builds), ("runs", runs)) if can]
    detail = f"{' and '.join(able)} engines" if able else ""
    if not search.devices:  # why there is none stands beside the devices
        detail = f"{detail}; running them needs an NVIDIA GPU" if able else "needs an NVIDIA GPU"
    advice = None if search.devices else "run it where there is an NVIDIA GPU and its driver"
    return RuntimeRow(item.name, True, item.version, builds or runs, detail, advice)


def _onnxruntime(version: str | None, load: Callable[[str], Any]) -> tuple[RuntimeRow, ...]:
    """The row of the package, and one for each of its providers for NVIDIA GPUs."""
    providers: list[str] = []
    if version is None:
        row = RuntimeRow("onnxruntime", False, None, False, "onnxruntime is not installed", _ANEW)
    else:
        try:
            providers = load("onnxruntime").get_available_providers()
            row = RuntimeRow("onnxruntime", True, version, True, ", ".join(providers), None)
        except Exception as error:  # noqa: BLE001  (an import runs foreign code, and two side by side break it)
            row = RuntimeRow("onnxruntime", True, version, False, f"cannot be loaded: {first_line(error)}", _ANEW)
    return (row, *(_provider_row(name, provider, version, providers) for name, provider in _PROVIDERS.items()))


def _provider_row(name: str, provider: str, version: str | None, present: Sequence[str]) -> RuntimeRow:
    if provider in present:
        return RuntimeRow(name, True, version, True, f"{provider}; running it needs an NVIDIA GPU", None)
    detail = f"this onnxruntime has no {provider}" if present else "no onnxruntime that can be loaded"
    return RuntimeRow(name, False, None, False, detail, INSTALL_PROVIDER[provider])
