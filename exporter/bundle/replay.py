"""The golden inputs again, on what this machine has: does it compute what was computed where the bundle was made?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from exporter.bundle.layout import PREPROCESSING
from exporter.bundle.manifest import Manifest
from exporter.bundle.outputs import judge_rows
from runtimes.base import Array, Floats
from runtimes.batching import run_padded
from runtimes.errors import InputError, ResnetExportError, UnavailableError, first_line
from runtimes.registry import open_runtime, parse
from runtimes.tolerance import MADE_FOR

#: Runtimes that are tried for a model of a kind, and the targets whose INT8 files are theirs; ``None``: everybody's.
_TRIED: Final[Mapping[str, tuple[str, ...]]] = {
    "onnx": ("onnxruntime", "openvino"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}


@dataclass(frozen=True)
class Replay:
    """A model on a runtime, or the reason why it was not run.

    Attributes:
        model: Its id in the bundle.
        runtime: That it was tried on.
        rows: What was measured against each golden; see :func:`exporter.bundle.outputs.judge_rows`.
        skipped: What this machine lacks; ``None`` where it was run.
        error: Why it failed; ``None`` where it did not.
    """

    model: str
    runtime: str
    rows: tuple[dict[str, Any], ...] = ()
    skipped: str | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every golden was met; what was not run has not failed."""
        return self.error is None and all(row["passed"] for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            "model": self.model, "runtime": self.runtime, "rows": list(self.rows), "passed": self.passed,
            "skipped": self.skipped, "error": self.error,
        }  # fmt: skip


def replay(folder: Path, manifest: Manifest) -> list[Replay]:
    """Run every model on every runtime that it is for.

    An INT8 file runs on the runtime that it was made for, and on ONNX Runtime whoever it was made for, as it did when
    the bundle was made.

    Args:
        folder: Of a bundle whose files are whole.
        manifest: Of the same.

    Raises:
        InputError: The goldens cannot be read.
    """
    goldens = manifest.document["goldens"]
    images = load_array(folder / goldens["input"], 4)
    reference = load_array(folder / goldens["reference"], 2)
    results = []
    for model in manifest.models:
        signals = {"reference": reference, "golden": load_array(folder / model["golden"], 2)}
        for runtime in _TRIED.get(str(model["kind"]), ()):
            if (
                runtime == "openvino"
                and model["precision"] == "int8"
                and runtime not in MADE_FOR.get(model["target"], ())
            ):
                continue
            results.append(_run(folder, model, runtime, images, signals))
    return results


def check_pixels(folder: Path, manifest: Manifest) -> list[str]:
    """Pixels that become other tensors here, by their paths in the bundle; bit for bit.

    Args:
        folder: Of a bundle whose files are whole.
        manifest: Of the same.

    Raises:
        InputError: The contract or the goldens cannot be read.
    """
    import json

    from calibration.decoding import decode
    from calibration.listing import ImageFile
    from calibration.preprocess import Preprocessing

    try:
        contract = Preprocessing.from_json(json.loads((folder / PREPROCESSING).read_bytes()))
    except ValueError as error:
        raise InputError(f"{folder / PREPROCESSING} is no JSON document: {first_line(error)}") from error
    goldens = manifest.document["goldens"]
    images = load_array(folder / goldens["input"], 4)
    if len(images) != len(goldens["images"]):
        raise InputError(
            f"{goldens['input']} has {len(images)} images, and the manifest names {len(goldens['images'])}"
        )
    other = []
    for tensor, entry in zip(images, goldens["images"], strict=True):
        if entry["pixels"] is None:
            continue
        made = decode(ImageFile(folder / entry["pixels"]), contract)
        if made.shape != tensor.shape or made.tobytes() != tensor.tobytes():
            other.append(str(entry["pixels"]))
    return other


def load_array(path: Path, rank: int) -> Floats:
    """A golden array.

    Raises:
        InputError: It is no plain float32 array of that rank.
    """
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise InputError(f"{path} is no plain array file: {first_line(error)}") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != rank or not array.size:
        raise InputError(f"{path} is no float32 array of {rank} dimensions: make the bundle again")
    return array


def _run(folder: Path, model: Mapping[str, Any], name: str, images: Floats, signals: Mapping[str, Array]) -> Replay:
    try:
        with open_runtime(parse(f"{name}:{folder / model['file']}")) as runtime:
            outputs = run_padded(runtime, images)
        rows = judge_rows(model["tolerances"], name, str(model["precision"]), outputs, signals)
    except UnavailableError as error:
        return Replay(model["id"], name, skipped=first_line(error))
    except ResnetExportError as error:
        return Replay(model["id"], name, error=first_line(error))
    if not rows:
        return Replay(model["id"], name, error=f"the manifest has no tolerance for {name} {model['precision']}")
    return Replay(model["id"], name, tuple(rows))
