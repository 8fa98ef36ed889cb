"""Kernels that TensorRT-RTX compiled when an engine ran first, kept for the next process.

One folder per engine, version and GPU, so that no two share an entry. A cache is a convenience: where it cannot be
kept, everything works as without it, and the reason is told.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from runtimes.cache import cache_folder
from runtimes.errors import UnavailableError
from runtimes.tensorrt.device import Device
from runtimes.tensorrt.flavour import Flavour

_KIND: Final = "kernels"
_NAME: Final = "kernels.cache"


@dataclass
class RuntimeCache:
    """A file with compiled kernels.

    Attributes:
        path: Where it lies; ``None`` where no file can be kept.
        note: What became of it, for reports.
    """

    path: Path | None
    note: str = "new"
    _earlier: bytes = b""

    @classmethod
    def of(cls, plan: bytes, flavour: Flavour, device: Device) -> RuntimeCache:
        """The cache of an engine under one version on one GPU."""
        capability = "{}.{}".format(*device.compute_capability)
        key = sha256(f"{flavour.name} {flavour.version} {device.name} {capability}\n".encode() + plan).hexdigest()
        try:
            return cls(cache_folder(_KIND, key) / _NAME)
        except UnavailableError as error:
            return cls(None, str(error))

    def read(self) -> bytes:
        """Kernels of earlier processes; empty without any."""
        try:
            self._earlier = b"" if self.path is None else self.path.read_bytes()
        except OSError:
            return b""
        if self._earlier:
            self.note = "used"
        return self._earlier

    def refuse(self) -> None:
        """Note that TensorRT does not take the kernels that were read."""
        self.note = "started anew: the earlier one is of another version or GPU"

    def keep(self, kernels: bytes) -> None:
        """Write the file, whole or not at all, if there is something new in it."""
        if self.path is None or kernels == self._earlier:
            return
        part: Path | None = None
        try:
            number, name = tempfile.mkstemp(dir=self.path.parent, prefix=".kernels-")
            part = Path(name)
            with os.fdopen(number, "wb") as stream:
                stream.write(kernels)
            part.replace(self.path)
        except OSError as error:
            self.note = f"not kept: {error.strerror or error}"
            if part is not None:
                with contextlib.suppress(OSError):
                    part.unlink()
