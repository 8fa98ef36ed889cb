"""What the proof commands are about: a model on a runtime, as the user named it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exporter.feeding import Feed, fed
from runtimes.base import Runtime


@dataclass(frozen=True)
class Subject:
    """A model on a runtime.

    Attributes:
        label: Unlike every other subject's; for people.
        backend: Name of the runtime, for example ``"onnxruntime"``.
        file: What the user named, or None where there is no file.
        runtime: Not open yet, or open already; it is left as it came.
        feed: Makes its input of the images that are read; ``None``: they are its input.
    """

    label: str
    backend: str
    file: str | None
    runtime: Runtime
    feed: Feed | None = None

    def fed(self) -> Runtime:
        """A runtime that takes the images as they are read."""
        return fed(self.runtime, self.feed)

    def to_json(self) -> dict[str, Any]:
        """Label, runtime and file as plain JSON values."""
        return {"runtime": self.backend, "file": self.file, "label": self.label}
