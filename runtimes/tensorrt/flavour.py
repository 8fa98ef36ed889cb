"""Which TensorRT is installed: the full package, TensorRT-RTX, or one of the two that only run engines.

They are four packages with one API. Each is imported here and nowhere else, when somebody asks: an import loads
hundreds of megabytes of libraries, and fails in many ways where the driver or a library is missing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from runtimes.errors import InputError, UnavailableError, first_line
from runtimes.tensorrt.generations import PACKAGES, Generation, generation

Load: TypeAlias = Callable[[str], Any]
"""From an import name to the module, or ImportError and whatever else an import can raise."""

INSTALL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tensorrt": "pip install 'resnet-export[tensorrt]' (on a Jetson it comes with JetPack: python3-libnvinfer)",
        "tensorrt_rtx": "pip install 'resnet-export[tensorrt-rtx]'",
        "tensorrt_lean": "pip install tensorrt-lean",
        "tensorrt_dispatch": "pip install tensorrt-dispatch",
    }
)
"""What to do where a package is missing."""


@dataclass(frozen=True)
class Flavour:
    """A TensorRT package that is installed and can be imported.

    Attributes:
        name: Import name, one of :data:`PACKAGES`.
        version: Its ``__version__``, for example ``"10.3.0"``.
        generation: What this version can do, and how it is asked for it.
        can_build: Whether it has a builder and an ONNX parser; the lean and dispatch packages have not. A GPU may be
            needed besides.
        can_run: Whether it has a runtime for engines. It needs a GPU.
    """

    name: str
    version: str
    generation: Generation
    can_build: bool
    can_run: bool


@dataclass(frozen=True)
class Survey:
    """Every TensorRT package of this Python.

    Attributes:
        working: Those that can be used, in the order of :data:`PACKAGES`.
        broken: Package → why it cannot be used, in one line; packages that are not installed are in neither.
    """

    working: tuple[Flavour, ...]
    broken: Mapping[str, str]


def survey(load: Load = importlib.import_module) -> Survey:
    """Import every package of the family that there is, and say of each whether it can be used.

    Args:
        load: Imports a module by name.
    """
    working: list[Flavour] = []
    broken: dict[str, str] = {}
    for package in PACKAGES:
        try:
            working.append(_described(package, load(package)))
        except ModuleNotFoundError as error:
            if error.name != package:  # the package is there, and something that it needs is not
                broken[package] = f"cannot be imported: {first_line(error)}"
        except UnavailableError as error:
            broken[package] = str(error)
        except Exception as error:  # noqa: BLE001  (an import runs foreign code: OSError, RuntimeError, AttributeError)
            broken[package] = f"cannot be imported: {first_line(error)}"
    return Survey(tuple(working), MappingProxyType(broken))


def installed(load: Load = importlib.import_module) -> tuple[Flavour, ...]:
    """The packages that can be used, in the order of :data:`PACKAGES`; broken ones are left to :func:`survey`.

    Args:
        load: Imports a module by name.
    """
    return survey(load).working


def flavour(name: str | None = None, load: Load = importlib.import_module) -> Flavour:
    """One installed package.

    Args:
        name: One of :data:`PACKAGES`; None for the best one to build with: ``tensorrt`` builds for every NVIDIA GPU,
            ``tensorrt_rtx`` for those of the RTX family.
        load: Imports a module by name.

    Raises:
        InputError: ``name`` is none of :data:`PACKAGES`.
        UnavailableError: It is not installed, too old or broken, or nothing that builds is installed.
    """
    if name is not None and name not in PACKAGES:
        raise InputError(f"no TensorRT package is called {name!r}: expected one of {', '.join(PACKAGES)}")
    found = survey(load)
    wanted = [item for item in found.working if (item.can_build if name is None else item.name == name)]
    if wanted:
        return wanted[0]
    if name is None:
        why = "".join(f"; {package} {reason}" for package, reason in found.broken.items())
        raise UnavailableError(
            f"no TensorRT that builds engines is installed{why}: {INSTALL['tensorrt']}, or, for GeForce RTX and RTX "
            f"professional GPUs, {INSTALL['tensorrt_rtx']}"
        )
    if name in found.broken:
        raise UnavailableError(f"{name} {found.broken[name]}: install it anew, {INSTALL[name]}")
    raise UnavailableError(f"{name} is not installed: {INSTALL[name]}")


def module(flavour: Flavour, load: Load = importlib.import_module) -> Any:
    """The Python module of an installed package.

    Args:
        flavour: What :func:`installed` or :func:`flavour` returned.
        load: Imports a module by name.

    Raises:
        UnavailableError: It can no longer be imported.
    """
    try:
        return load(flavour.name)
    except (ImportError, OSError) as error:
        line = f"{flavour.name} cannot be imported: {first_line(error)}: install it anew, {INSTALL[flavour.name]}"
        raise UnavailableError(line) from error


def _described(package: str, loaded: Any) -> Flavour:
    # A folder of that name on the path, or one that an uninstall left behind, imports as an empty package.
    version = getattr(loaded, "__version__", None)
    if not isinstance(version, str):
        raise ImportError("it has no __version__, so it is not TensorRT or only its folder is left")
    return Flavour(
        name=package,
        version=version,
        generation=generation(package, version),
        can_build=hasattr(loaded, "Builder") and hasattr(loaded, "OnnxParser"),
        can_run=hasattr(loaded, "Runtime"),
    )
