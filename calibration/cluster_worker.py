"""What a worker of a cluster does: make sure that it computes as the driver does, open a job once, do shards of it.

Nothing here knows Ray: :mod:`calibration.cluster` sends what this module is given.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final, Protocol

from calibration.shards import Shard
from runtimes.errors import ResnetExportError

# Kernels are chosen by these, and another kernel may add in another order.
_DECIDING: Final = frozenset((
    "avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimd",
    "asimddp", "i8mm", "bf16", "sve", "sve2",
))  # fmt: skip


class Job(Protocol):
    """Work on shards. It is pickled once, and every worker process opens it once."""

    @property
    def modules(self) -> tuple[str, ...]:
        """What it computes with, as Python imports it: versions have to agree."""

    def open(self) -> Callable[[Shard], Any]:
        """Make ready; what comes back is called for one shard after the other, and may be called again for one."""


@dataclass(frozen=True)
class Answer:
    """What a worker says to one shard.

    Attributes:
        host: Name of the machine.
        processor: What its kernels are chosen by.
        value: What the job made of the shard; ``None`` with an error.
        error: Why there is no value.
    """

    host: str
    processor: str
    value: Any = None
    error: ResnetExportError | None = None


@lru_cache
def versions(modules: Sequence[str]) -> dict[str, str]:
    """This project and the modules that a job computes with, by name; one that is missing says so.

    Args:
        modules: A tuple of names, as Python imports them.
    """
    found = {"Python": platform.python_version(), "resnet-export": _own_version()}
    for name in modules:
        try:
            found[name] = str(import_module(name).__version__)
        except ImportError:
            found[name] = "missing"
    return found


def work(token: str, job: Callable[[], bytes], shard: bytes) -> bytes:
    """Do one shard.

    Args:
        token: Tells jobs apart.
        job: Gives the pickled job; called where this process has not opened it yet.
        shard: Pickled.

    Returns:
        The pickled :class:`Answer`.
    """
    try:
        if token not in _OPEN:
            _OPEN.clear()  # one job at a time: the old one's networks go
            _OPEN[token] = pickle.loads(job()).open()  # noqa: S301  (of the driver, who runs code here anyway)
        answer = Answer(socket.gethostname(), processor(), _OPEN[token](pickle.loads(shard)))  # noqa: S301
    except ResnetExportError as error:
        answer = Answer(socket.gethostname(), processor(), error=error)
    return pickle.dumps(answer)


@lru_cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Architecture and the instruction sets that kernels are chosen by, as text."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "feat"))), [])
    return " ".join([platform.machine(), *sorted(_DECIDING.intersection(flags))])


_OPEN: dict[str, Callable[[Shard], Any]] = {}


def _own_version() -> str:
    """The release and the sources: two checkouts of one release can compute differently."""
    try:
        release = metadata.version("resnet-export")
    except metadata.PackageNotFoundError:
        release = "not installed"
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for package in ("calibration", "exporter", "runtimes"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{release} ({digest.hexdigest()[:8]})"
