"""What the proof commands are about: a model on a runtime, as the user named it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from exporter.feeding import Feed, fed
from runtimes.base import Runtime
from runtimes.errors import TensorError


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


def declared_classes(models: Iterable[tuple[str, Runtime]]) -> int | None:
    """How many classes open models tell apart, before any image is read; ``None`` where none of them declares it.

    Args:
        models: Labels and runtimes.

    Raises:
        TensorError: They differ.
    """
    known = [(label, runtime.outputs[0].shape[-1]) for label, runtime in models if runtime.outputs[0].shape]
    told = [(label, classes) for label, classes in known if classes is not None]
    for label, classes in told[1:]:
        if classes != told[0][1]:
            raise TensorError(
                f"{told[0][0]} tells {told[0][1]} classes apart and {label} {classes}: give models of the same classes"
            )
    return told[0][1] if told else None
