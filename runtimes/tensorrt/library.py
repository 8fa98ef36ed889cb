"""Which TensorRT libraries are installed, for those who keep what only one version of them can read.

Nothing is loaded for it: what a process has loaded once stays, and it may be another one than is used in the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

#: Packages that bring the libraries.
_PACKAGES: Final = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_FILES: Final = "libnvinfer.so*"
# Where NVIDIA's packages for Linux distributions, its containers and JetPack put them.
_FOLDERS: Final = tuple(
    map(
        Path,
        ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/lib",
         "/usr/local/tensorrt/lib", "/usr/local/TensorRT/lib", "/opt/tensorrt/lib"),
    )
)  # fmt: skip


def libraries(folders: Iterable[Path] = _FOLDERS) -> tuple[str, ...]:
    """Everything that could be loaded as TensorRT's library: Python packages by version, files by size and time.

    Args:
        folders: Where the system keeps libraries; those of ``LD_LIBRARY_PATH`` come first.

    Returns:
        One text each, equal in every process as long as nothing is installed or exchanged; empty where there is none.
    """
    own = [Path(each) for each in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if each]
    packages = [f"{name} {version}" for name in _PACKAGES if (version := _version(name)) is not None]
    return (*packages, *(text for folder in (*own, *folders) for text in _files(folder)))


def _files(folder: Path) -> list[str]:
    try:
        found = [(path, path.stat()) for path in sorted(folder.glob(_FILES))]
    except OSError:  # a folder that may not be entered is none that a library is loaded from
        return []
    return [f"{path} {about.st_size} {about.st_mtime_ns}" for path, about in found]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
