"""The ranges file: what the activations of one model were on one list of images, read once for all targets.

One JSON object. Each tensor has one row with the complete statistics, so that every method and every target reads the
same file; hashes bind it to the model, the preprocessing contract and the images::

    {"format": "resnet_export.ranges", "version": 1,
     "model_sha256": ..., "preprocessing": {...}, "preprocessing_sha256": ...,
     "images": 512, "images_sha256": ..., "tools": {...},
     "tensors": {"layer1.0.relu": {"low": 0.0, "high": 7.9, ..., "histogram": {...}}, ...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from calibration.checks import is_count
from calibration.observers import Observer
from calibration.preprocess import Preprocessing
from runtimes.errors import DataError, InputError, first_line

FORMAT: Final = "resnet_export.ranges"
VERSION: Final = 1
_WHAT: Final = {
    "model_sha256": "model",
    "preprocessing_sha256": "preprocessing",
    "images_sha256": "image list",
}


@dataclass(frozen=True)
class Ranges:
    """Statistics of every tensor that some target may quantise.

    Attributes:
        model_sha256: Of the FP32 ONNX file.
        preprocessing: How the images became tensors.
        images: Number of images that were observed.
        images_sha256: Of their contents in order; empty where they came from a Python iterable.
        tensors: Observer by tensor name, in the order of the graph.
        tools: Versions of the packages that made them.
    """

    model_sha256: str
    preprocessing: Preprocessing
    images: int
    images_sha256: str
    tensors: Mapping[str, Observer]
    tools: Mapping[str, str]

    @property
    def preprocessing_sha256(self) -> str:
        """Of the contract."""
        return self.preprocessing.sha256()

    def require(
        self,
        *,
        model_sha256: str | None = None,
        preprocessing: Preprocessing | None = None,
        images_sha256: str | None = None,
    ) -> None:
        """Check what the ranges were made from.

        Args:
            model_sha256: Of the FP32 ONNX file that they are to serve.
            preprocessing: That it is fed with.
            images_sha256: Of the list of images.

        Raises:
            DataError: One of them differs; names both hashes and what differs.
        """
        if model_sha256 is not None and model_sha256 != self.model_sha256:
            raise self._differs("model_sha256", self.model_sha256, model_sha256)
        if preprocessing is not None and preprocessing.sha256() != self.preprocessing_sha256:
            mine, other = self.preprocessing.to_json(), preprocessing.to_json()
            fields = ", ".join(f"{key} {mine[key]} and {other[key]}" for key in mine if mine[key] != other[key])
            raise self._differs("preprocessing_sha256", self.preprocessing_sha256, preprocessing.sha256(), fields)
        if images_sha256 is not None and images_sha256 != self.images_sha256:
            raise self._differs("images_sha256", self.images_sha256, images_sha256)

    def _differs(self, what: str, mine: str, other: str, fields: str = "") -> DataError:
        detail = f" ({fields})" if fields else ""
        return DataError(
            f"the ranges are of another {_WHAT[what]}: they have {mine or 'none'}, given is {other or 'none'}{detail}: "
            f"calibrate again, or give what they were made from"
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON; the same ranges give the same text."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model_sha256": self.model_sha256,
            "preprocessing": self.preprocessing.to_json(),
            "preprocessing_sha256": self.preprocessing_sha256,
            "images": self.images,
            "images_sha256": self.images_sha256,
            "tools": dict(self.tools),
            "tensors": {name: observer.to_json() for name, observer in self.tensors.items()},
        }

    def dumps(self) -> bytes:
        """The text of a ranges file, one tensor to a line."""
        head = self.to_json()
        rows = head.pop("tensors")
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row, allow_nan=False)}" for name, row in rows.items())
        return f'{json.dumps(head, indent=1)[:-2]},\n "tensors": {{\n{lines}\n }}\n}}\n'.encode()

    @classmethod
    def from_json(cls, value: Any) -> Ranges:
        """What :meth:`to_json` gave.

        Raises:
            DataError: The value is something else, damaged, or of a version that is not known.
        """
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise DataError("this is not a ranges file: make one with resnet-export calibrate")
        if value.get("version") != VERSION:
            raise DataError(
                f"the ranges file is of version {value.get('version')!r}, expected {VERSION}: calibrate again"
            )
        try:
            ranges = cls(
                model_sha256=_text(value, "model_sha256"),
                preprocessing=Preprocessing.from_json(value["preprocessing"]),
                images=_count(value, "images"),
                images_sha256=_text(value, "images_sha256"),
                tensors={name: Observer.from_json(row) for name, row in value["tensors"].items()},
                tools={name: str(version) for name, version in value["tools"].items()},
            )
            claimed = _text(value, "preprocessing_sha256")
        # Python reads Infinity as JSON, and cannot make a whole number of it: hence the overflow.
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"the ranges file is damaged ({error!r}): calibrate again") from error
        except DataError:
            raise
        except InputError as error:
            raise DataError(f"the ranges file is damaged ({first_line(error)}): calibrate again") from error
        if claimed != ranges.preprocessing_sha256:
            raise DataError("the preprocessing in the ranges file was changed: calibrate again")
        return ranges


def _text(value: Mapping[str, Any], name: str) -> str:
    if not isinstance(value[name], str):
        raise TypeError(f"{name} is {value[name]!r}")
    return str(value[name])


def _count(value: Mapping[str, Any], name: str) -> int:
    if not is_count(value[name]):
        raise ValueError(f"{name} is {value[name]!r}")
    return int(value[name])


def read_ranges(path: Path) -> Ranges:
    """A ranges file.

    Raises:
        DataError: It cannot be read, is no ranges file, or is damaged.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): make a ranges file with resnet-export calibrate") from error
    try:
        return Ranges.from_json(value)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
