"""A stage as a value: what it reads, what it makes, what else decides the result, and the function that does it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from exporter.run.hashes import Hashes
from exporter.run.versions import own_code, version

#: What is hashed of an input: a file's bytes, a set of images, the sources of a Python module.
InputKind = Literal["file", "images", "code"]
_NOTHING: Final = "none"


@dataclass(frozen=True)
class Input:
    """Something that a stage reads.

    Attributes:
        name: For people: ``the float file``.
        path: Where it is; the name of the module for ``code``.
        kind: What of it counts.
    """

    name: str
    path: Path
    kind: InputKind = "file"

    def digest(self, hashes: Hashes) -> str:
        """What it is now, as 64 hex digits, or ``none``: whoever reads it says what is missing."""
        if self.kind == "code":
            return hashes.code(str(self.path)) or _NOTHING
        found = hashes.images(self.path) if self.kind == "images" else hashes.file(self.path)
        return found or _NOTHING


@dataclass(frozen=True)
class Made:
    """What a stage did.

    Attributes:
        summary: In a few words.
        notes: What the user should know, one sentence each.
    """

    summary: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: Unlike every other stage's, for people; a word, or a word and a name.
        inputs: What it reads.
        outputs: Files that it makes, each written in one step; in the output folder.
        options: What else decides the result, by address in the pipeline file; plain JSON values.
        tools: Name of a tool -> distributions that it can come from.
        facts: Of the machine, where the result depends on it.
        function: Makes the outputs.
        optional: Whether the run goes on where this machine lacks what it needs.
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Path, ...]
    function: Callable[[], Made]
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False

    def parts(self, hashes: Hashes) -> dict[str, Any]:
        """Everything that decides the outputs, as plain JSON values.

        Args:
            hashes: Of files.
        """
        return {
            "input": {each.name: each.digest(hashes) for each in self.inputs},
            "option": dict(self.options),
            "tool": {name: version(names) for name, names in self.tools.items()},
            "machine": dict(self.facts),
            "code": {"resnet-export": own_code(hashes)},
        }


def key_of(parts: Mapping[str, Any]) -> str:
    """The key of a stage: equal for equal parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
