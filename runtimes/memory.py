"""How much memory there is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
# Of the container, in both versions of control groups.
_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def available_memory(meminfo: Path = _MEMINFO, limits: tuple[Path, ...] = _LIMITS) -> int | None:
    """Bytes that a program may take before the machine swaps or its container is at its end.

    Args:
        meminfo: The kernel's table.
        limits: Files that may hold a container's limit.

    Returns:
        ``None`` where the system does not tell.
    """
    found = [number for path in limits if (number := _number(path)) is not None]
    try:
        lines = meminfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(found, default=None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii", errors="replace"))
    except (OSError, ValueError):  # not there, or "max"
        return None
