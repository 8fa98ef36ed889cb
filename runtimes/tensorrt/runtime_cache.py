"""Kernels that TensorRT-RTX compiled when an engine ran first, kept for the next process.

One file per engine, version and GPU, so that no two share an entry. A cache is a convenience: where it cannot be
written, everything works as without it, and the reason is told.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from runtimes.tensorrt.device import Device
from runtimes.tensorrt.flavour import Flavour


def cache_root() -> Path:
    """``$XDG_CACHE_HOME/resnet-export``, ``~/.cache/resnet-export`` without it (XDG Base Directory Specification)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(given) if given.startswith("/") else Path.home() / ".cache") / "resnet-export"


@dataclass
class RuntimeCache:
    """A file with compiled kernels.

    Attributes:
        path: Where it lies.
        note: What became of it, for reports.
    """

    path: Path
    note: str = "new"

    @classmethod
    def of(cls, plan: bytes, flavour: Flavour, device: Device) -> RuntimeCache:
        """The cache of an engine under one version on one GPU."""
        capability = "{}.{}".format(*device.compute_capability)
        key = sha256(f"{flavour.name} {flavour.version} {device.name} {capability}\n".encode() + plan).hexdigest()
        path = cache_root() / "kernels" / f"{key[:32]}.cache"
        return cls(path, "used" if path.is_file() else "new")

    def read(self) -> bytes:
        """Kernels of earlier processes; empty without any."""
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def keep(self, kernels: bytes) -> None:
        """Write the file, whole or not at all, if there is something new in it."""
        if not kernels or kernels == self.read():
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(dir=self.path.parent, prefix=".kernels-")
            part = Path(name)
            try:
                with os.fdopen(number, "wb") as stream:
                    stream.write(kernels)
                part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            self.note = f"not kept: {error.strerror or error}"
