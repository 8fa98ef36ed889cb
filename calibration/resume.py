"""What an unfinished calibration leaves behind, so that a later one goes on from there.

One JSON object: the ranges of the images done so far, and what else decides the numbers. It has a format of its own,
because the ranges of half of the images must not pass for those of all::

    {"format": "resnet_export.unfinished_calibration", "version": 1, "batch": 32, "providers": [...],
     "ranges": {... "images": images done, "images_sha256": of the whole list ...}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from calibration.observers import Observer
from calibration.preprocess import Preprocessing
from calibration.ranges import Ranges
from runtimes.errors import DataError, ResnetExportError, first_line

FORMAT: Final = "resnet_export.unfinished_calibration"
VERSION: Final = 3  # 3: a bad file shortens its own batch


@dataclass(frozen=True)
class Conditions:
    """Everything that has to be the same for two runs to be halves of one.

    Attributes:
        model_sha256: Of the FP32 ONNX file.
        preprocessing: How the images become tensors.
        images_sha256: Of the contents of all images to observe, in order, those that turn out to be bad among them.
        batch: Images in a batch: a kernel may add in another order for another batch.
        providers: ONNX Runtime's, first choice first.
        tools: Versions of the packages whose arithmetic shapes the ranges.
    """

    model_sha256: str
    preprocessing: Preprocessing
    images_sha256: str
    batch: int
    providers: tuple[str, ...]
    tools: Mapping[str, str]

    def ranges(self, images: int, tensors: Mapping[str, Observer]) -> Ranges:
        """The statistics of the first ``images`` images."""
        return Ranges(self.model_sha256, self.preprocessing, images, self.images_sha256, tensors, self.tools)


@dataclass(frozen=True)
class Start:
    """Where a calibration begins.

    Attributes:
        images: Number of images that are done.
        tensors: Their statistics by tensor name; empty for a calibration that begins with the first image.
        note: Why an unfinished calibration that lies there is not gone on with; one line, or ``None``.
    """

    images: int = 0
    tensors: Mapping[str, Observer] | None = None
    note: str | None = None


def read_state(path: Path, conditions: Conditions) -> Start:
    """Where to go on.

    An unfinished calibration of something else is not used, with a note: who changes the model or the images wants
    the ranges of the new ones.

    Args:
        path: Where an earlier run may have left its state.
        conditions: Of this run.

    Raises:
        DataError: Another kind of file lies there, which this run would write over.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Start()
    except (OSError, ValueError, RecursionError) as error:
        raise _foreign(path, first_line(error)) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise _foreign(path, "another format")
    try:
        reason, ranges = _difference(value, conditions)
    except (ResnetExportError, KeyError, TypeError, ValueError) as error:
        reason, ranges = f"damaged ({first_line(error)})", None
    if reason is None and ranges is not None:
        return Start(ranges.images, ranges.tensors)
    note = f"the unfinished calibration {path} is {reason}: it cannot be gone on with, all images are observed"
    return Start(note=note)


def write_state(path: Path, conditions: Conditions, images: int, tensors: Mapping[str, Observer]) -> None:
    """Keep the statistics of the first ``images`` images; the file is the old one or the new one, never a part.

    Raises:
        OSError: The file cannot be written.
    """
    value = {
        "format": FORMAT,
        "version": VERSION,
        "batch": conditions.batch,
        "providers": list(conditions.providers),
        "ranges": conditions.ranges(images, tensors).to_json(),
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, allow_nan=False)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _difference(value: dict[str, Any], now: Conditions) -> tuple[str | None, Ranges | None]:
    """Why a state does not serve this run; ``None`` and the ranges where it does."""
    if value.get("version") != VERSION:
        return f"of version {value.get('version')!r}, not {VERSION}", None
    ranges = Ranges.from_json(value["ranges"])
    pairs = {
        "model": (ranges.model_sha256, now.model_sha256),
        "preprocessing": (ranges.preprocessing_sha256, now.preprocessing.sha256()),
        "list of images": (ranges.images_sha256, now.images_sha256),
        "batch": (value["batch"], now.batch),
        "execution provider": (value["providers"], list(now.providers)),
        "version of the tools": (dict(ranges.tools), dict(now.tools)),
    }
    other = [name for name, (then, wanted) in pairs.items() if then != wanted]
    if other:
        return f"of another {' and another '.join(other)}", None
    if any(observer.images != ranges.images for observer in ranges.tensors.values()):
        return "damaged (its tensors are not of the same number of images)", None
    return None, ranges


def _foreign(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is not an unfinished calibration ({reason}), and this run would write over it: move it away, "
        f"or write the ranges elsewhere"
    )
