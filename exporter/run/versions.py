"""Versions of tools and of this program, without importing any."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import exporter
from exporter.run.hashes import Hashes

_ROOT = Path(exporter.__file__).parent.parent
_PACKAGES = ("calibration", "exporter", "runtimes")
_WORDS = _ROOT / "exporter" / "cli"  # what is said on the way decides no file


def version(distributions: Sequence[str]) -> str | None:
    """The version of the first distribution that is installed; ``None`` where none is."""
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


@lru_cache(maxsize=1)
def own_code(hashes: Hashes) -> str:
    """This program's version with a hash of its sources, so that a checkout under work never passes for a release."""
    files = [
        path
        for package in _PACKAGES
        for path in sorted((_ROOT / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and _WORDS not in path.parents
    ]
    return f"{exporter.__version__}+{hashes.tree(_ROOT, files)[:12]}"


def gpus() -> list[str]:
    """The GPUs that the driver shows, with their compute capability and the CUDA that it serves."""
    from runtimes.tensorrt.device import find_devices

    return [f"{each.name} {each.compute_capability}, CUDA {each.cuda}" for each in find_devices().devices]


def processor() -> dict[str, Any]:
    """What runs on the CPU runs on."""
    from runtimes.machine import description

    found = description()
    return {name: found[name] for name in ("cpu", "cores", "platform")}
