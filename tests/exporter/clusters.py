"""What the tests of clusters share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from exporter.models.source import load_model
from exporter.pipeline import export_onnx

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"


def digits_onnx(path: Path) -> Path:
    """The embedded example as an ONNX file."""
    export_onnx(load_model(str(DIGITS / "digits_resnet14.pth")), path)
    return path


def mended(document: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without what depends on where it ran."""
    for row in (*document["results"], *document["failures"]):
        row.pop("seconds", None)
        row.pop("used", None)
    return document


def busy_workers(root: int | None = None) -> list[int]:
    """Processes below this one that do a shard: Ray names a process by what it does."""
    return [pid for pid in descendants(root or os.getpid()) if _words(pid).startswith("ray::shard_of_images")]


def descendants(root: int) -> list[int]:
    """Children of a process, their children, and so on."""
    parents = {int(each.name): parent for each in Path("/proc").glob("[0-9]*") if (parent := _parent(each))}
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found[1:]


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""
