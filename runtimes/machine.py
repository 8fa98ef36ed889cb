"""What a measurement was taken on, and in which state: part of every document with times in it.

What a machine does not tell is ``None``: containers hide clocks, and not every kernel has a governor.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = (
    "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "scipy", "tensorrt", "tensorrt-rtx", "torch",
)  # fmt: skip
_ROOT: Final = Path("/")


@dataclass(frozen=True)
class Conditions:
    """The state of the machine at one moment.

    Attributes:
        load: Average number of runnable processes over the last minute.
        mhz: Mean clock of all processors, in MHz.
        governor: What sets the clock, for example ``"performance"``; several are joined by commas.
    """

    load: float | None
    mhz: float | None
    governor: str | None


def conditions(root: Path = _ROOT) -> Conditions:
    """The state of the machine now.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    words = _read(root / "proc/loadavg").split()
    policies = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = sorted({text for policy in policies if (text := _read(policy / "scaling_governor").strip())})
    return Conditions(
        load=_number(words[0]) if words else None,
        mhz=_clock(root, policies),
        governor=",".join(governors) or None,
    )


def environment(before: Conditions, after: Conditions, root: Path = _ROOT) -> dict[str, Any]:
    """The machine and its state around a measurement, as plain JSON values; no host names, no paths.

    Args:
        before: State before the first run.
        after: State after the last one.
        root: Where ``proc`` is.
    """
    return {
        **description(root),
        "load_before": before.load,
        "load_after": after.load,
        "mhz": before.mhz,
        "mhz_after": after.mhz,
        "governor": before.governor,
    }


def description(root: Path = _ROOT) -> dict[str, Any]:
    """The machine alone, as plain JSON values: processor, cores, Python, platform, versions of what is installed.

    Args:
        root: Where ``proc`` is.
    """
    # The affinity mask, not os.cpu_count(): a container may have two of a machine's hundred.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": next(iter(_values(root, "model name")), None) or platform.machine() or None,
        "cores": cores,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def peak_rss_mb(root: Path = _ROOT) -> float | None:
    """The largest resident set that this process has had, in MiB, or ``None`` where the kernel does not tell.

    ``VmHWM`` begins anew with the program; ``ru_maxrss`` of a spawned process can still be its parent's.

    Args:
        root: Where ``proc`` is.
    """
    lines = _read(root / "proc/self/status").splitlines()
    peak = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return int(peak) / 1024 if peak else None


def _clock(root: Path, policies: list[Path]) -> float | None:
    khz = [_number(_read(policy / "scaling_cur_freq")) for policy in policies]
    found = [each / 1e3 for each in khz if each] or [
        each for text in _values(root, "cpu MHz") if (each := _number(text))
    ]
    return round(sum(found) / len(found), 1) if found else None


def _values(root: Path, key: str) -> list[str]:
    lines = _read(root / "proc/cpuinfo").splitlines()
    return [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == key]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
