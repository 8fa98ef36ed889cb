"""The GPUs of this machine, asked of the driver itself: no framework is loaded for it.

``libcuda`` comes with the driver, so a machine without it has none. On a Jetson, L4T's release file tells which JetPack
it is, and so which TensorRT belongs there.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from runtimes.errors import first_line

LoadLibrary: TypeAlias = Callable[[str], Any]
"""From a library's name to an object with its functions, or OSError."""

_LIBRARY: Final = "libcuda.so.1"
_RELEASE_FILE: Final = Path("/etc/nv_tegra_release")
_DEVICE_NODES: Final = Path("/dev")
# CUdevice_attribute of cuda.h
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_NAME_BYTES: Final = 256

# L4T release → JetPack and the TensorRT that it brings, from NVIDIA's JetPack archive. Exact releases only: a later
# patch may bring another TensorRT.
_JETPACKS: Final = {
    "32.6.1": ("4.6", "8.0"),
    "32.7.1": ("4.6.1", "8.2"),
    "32.7.2": ("4.6.2", "8.2"),
    "32.7.3": ("4.6.3", "8.2"),
    "32.7.4": ("4.6.4", "8.2"),
    "35.1.0": ("5.0.2", "8.4.1"),
    "35.2.1": ("5.1", "8.5.2"),
    "35.3.1": ("5.1.1", "8.5.2"),
    "35.4.1": ("5.1.2", "8.5.2"),
    "35.5.0": ("5.1.3", "8.5.2"),
    "35.6.0": ("5.1.4", "8.5.2"),
    "35.6.1": ("5.1.5", "8.5.2"),
    "35.6.2": ("5.1.5", "8.5.2"),
    "36.3.0": ("6.0", "8.6.2"),
    "36.4.0": ("6.1", "10.3"),
    "36.4.3": ("6.2", "10.3"),
    "36.4.4": ("6.2.1", "10.3"),
    "38.4.0": ("7.1", "10.13"),
    "39.2.0": ("7.2", "10.16"),
}


@dataclass(frozen=True)
class JetPack:
    """The system software of a Jetson.

    Attributes:
        l4t: Release of Jetson Linux, for example ``"36.4.3"``.
        version: Release of JetPack, for example ``"6.2"``; None where ``l4t`` is not in the table.
        tensorrt: The TensorRT that this JetPack brings, for example ``"10.3"``; None as for ``version``.
    """

    l4t: str
    version: str | None
    tensorrt: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values under the attributes' names."""
        return asdict(self)


@dataclass(frozen=True)
class Device:
    """One NVIDIA GPU, and what belongs to the machine that it is in.

    Attributes:
        name: As the driver calls it, for example ``"NVIDIA H100 80GB HBM3"``.
        compute_capability: (major, minor): (8, 6) is SM86. Engines are built for one, unless asked otherwise.
        cuda: Newest CUDA that the driver serves, for example ``"12.8"``; TensorRT needs a driver of its own CUDA's
            major version.
        dla_cores: Deep learning accelerators beside this GPU; 0 for anything but a Jetson.
        jetpack: System software, where the machine is a Jetson.
    """

    name: str
    compute_capability: tuple[int, int]
    cuda: str
    dla_cores: int
    jetpack: JetPack | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: ``jetpack`` is left out, as it is the machine's; ``compute_capability`` is ``"8.6"``."""
        return {
            "name": self.name,
            "compute_capability": "{}.{}".format(*self.compute_capability),
            "cuda": self.cuda,
            "dla_cores": self.dla_cores,
        }


@dataclass(frozen=True)
class DeviceSearch:
    """What a look for GPUs found.

    Attributes:
        devices: The GPUs, in the driver's order; CUDA_VISIBLE_DEVICES has its say.
        reason: Why there are none, in one line; empty where there are some.
    """

    devices: tuple[Device, ...]
    reason: str


def find_devices(
    load: LoadLibrary = ctypes.CDLL, release_file: Path = _RELEASE_FILE, device_nodes: Path = _DEVICE_NODES
) -> DeviceSearch:
    """Ask the driver for its GPUs; never raises, as a machine without one is no error.

    Args:
        load: Opens a shared library by name.
        release_file: L4T's release file.
        device_nodes: Folder in which L4T makes one node for each DLA.
    """
    try:
        library = load(_LIBRARY)
    except OSError as error:
        return DeviceSearch((), f"no NVIDIA driver: {first_line(error)}")
    try:
        cuda, found = _ask(library)
    except _DriverError as error:
        return DeviceSearch((), str(error))
    except AttributeError as error:  # a function that a library of this name does not have
        return DeviceSearch((), f"{_LIBRARY} is not a working NVIDIA driver: {first_line(error)}")
    if not found:
        return DeviceSearch((), "the NVIDIA driver shows no GPU: see CUDA_VISIBLE_DEVICES")
    release = jetpack(release_file)
    cores = _dla_cores(device_nodes) if release is not None else 0
    return DeviceSearch(tuple(Device(name, capability, cuda, cores, release) for name, capability in found), "")


def devices(
    load: LoadLibrary = ctypes.CDLL, release_file: Path = _RELEASE_FILE, device_nodes: Path = _DEVICE_NODES
) -> tuple[Device, ...]:
    """The GPUs alone; arguments as for :func:`find_devices`, which also says why there are none."""
    return find_devices(load, release_file, device_nodes).devices


def jetpack(release_file: Path = _RELEASE_FILE) -> JetPack | None:
    """The JetPack of this machine; None where it is no Jetson.

    Args:
        release_file: L4T's release file.
    """
    try:
        text = release_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return parse_release(text)


def parse_release(text: str) -> JetPack | None:
    """``# R36 (release), REVISION: 4.3, GCID: …`` → L4T 36.4.3, JetPack 6.2 with TensorRT 10.3.

    Args:
        text: L4T's release file; None is returned for a text that is none.
    """
    match = re.search(r"\bR(\d+) *\(release\), *REVISION: *(\d+)(?:\.(\d+))?", text)
    if match is None:
        return None
    l4t = f"{match[1]}.{match[2]}.{match[3] or 0}"
    version, tensorrt = _JETPACKS.get(l4t, (None, None))
    return JetPack(l4t, version, tensorrt)


class _DriverError(Exception):
    """A call that the driver refused, in words."""


def _ask(library: Any) -> tuple[str, list[tuple[str, tuple[int, int]]]]:
    """The driver's CUDA version, and each GPU's name and compute capability."""

    def call(function: str, *arguments: Any) -> None:
        code = getattr(library, function)(*arguments)
        if code != 0:
            raise _DriverError(f"the NVIDIA driver says: {_in_words(library, code)} ({function}: {code})")

    def number(function: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        call(function, ctypes.pointer(value), *arguments)
        return value.value

    call("cuInit", 0)
    version = number("cuDriverGetVersion")  # 1000 · major + 10 · minor
    found = []
    for index in range(number("cuDeviceGetCount")):
        handle = number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        call("cuDeviceGetName", name, _NAME_BYTES, handle)
        major = number("cuDeviceGetAttribute", _COMPUTE_CAPABILITY_MAJOR, handle)
        minor = number("cuDeviceGetAttribute", _COMPUTE_CAPABILITY_MINOR, handle)
        found.append((name.value.decode(errors="replace"), (major, minor)))
    return f"{version // 1000}.{version % 1000 // 10}", found


def _in_words(library: Any, code: int) -> str:
    text = ctypes.c_char_p()
    if library.cuGetErrorString(code, ctypes.pointer(text)) != 0 or text.value is None:
        return "an error without a name"
    return text.value.decode(errors="replace")


def _dla_cores(device_nodes: Path) -> int:
    """DLAs by their nodes (``nvhost-nvdla0``, ``nvhost-ctrl-nvdla0``): to ask TensorRT would take a builder."""
    try:
        names = [node.name for node in device_nodes.iterdir()]
    except OSError:
        return 0
    return len({match[1] for name in names if (match := re.search(r"nvdla(\d+)$", name))})
