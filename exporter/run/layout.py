"""Which file of the output folder is which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exporter.run.settings import Settings

#: Bookkeeping, in the output folder: records, the lock, remembered hashes.
OWN_FOLDER: Final = ".resnet-export"


@dataclass(frozen=True)
class Layout:
    """Paths of everything that a run can make.

    Attributes:
        folder: The output folder.
    """

    folder: Path

    @property
    def own(self) -> Path:
        """Bookkeeping."""
        return self.folder / OWN_FOLDER

    @property
    def model(self) -> Path:
        """The float ONNX file."""
        return self.folder / "model.onnx"

    @property
    def ranges(self) -> Path:
        """Of the activations."""
        return self.folder / "ranges.json"

    def int8(self, target: str) -> Path:
        """The Q/DQ file for a target."""
        return self.folder / "int8" / f"{target}.onnx"

    def engine(self, name: str) -> Path:
        """An engine; what is known of it is in a document beside it."""
        return self.folder / "engines" / f"{name}.engine"

    def document(self, name: str) -> Path:
        """What a proof command found."""
        return self.folder / f"{name}.json"

    def report(self, suffix: str) -> Path:
        """A report."""
        return self.folder / f"report.{suffix}"

    @property
    def bundle(self) -> Path:
        """The folder that a device gets."""
        return self.folder / "bundle"

    @property
    def archive(self) -> Path:
        """The same as one file."""
        return self.folder / "bundle.tar.zst"


def beside(path: Path) -> Path:
    """The document beside a file."""
    return path.with_name(f"{path.name}.json")


def engine_source(settings: Settings, name: str) -> Path:
    """The ONNX file that an engine is built from."""
    layout, asked = Layout(settings.folder), settings[f"engine.{name}"]["model"]
    of_float = asked == "float" or (asked is None and "tensorrt" not in settings["quantize"]["targets"])
    return layout.model if of_float else layout.int8("tensorrt")
