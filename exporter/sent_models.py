"""Models on their way to the workers of a cluster: files sent once, opened by each worker, found to be the same."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

from exporter.opening import Opening, prepare
from runtimes.base import Runtime
from runtimes.errors import InputError, ResnetExportError, UnavailableError
from runtimes.kinds import Kind
from runtimes.reading import external_files
from runtimes.registry import RuntimeSpec
from runtimes.rows import ROWS

# Runtimes that compute on a CPU, and what they compute with, as Python imports it.
_MODULES: Final = {
    "eager": ("torch",),
    "torch-compile": ("torch",),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "int8-sim": ("torch",),
}


@dataclass(frozen=True)
class SentModel:
    """A model on its way to the workers.

    Attributes:
        name: Of the runtime.
        file: The model's file relative to ``files``, or the name of a network.
        kind: Of the model.
        options: Of the runtime, as they were given; ``weights`` is relative to ``files`` where it is one of them.
        label: What the user wrote.
        sha256: What every worker has to find again.
        files: Contents by relative path.
    """

    name: str
    file: str
    kind: Kind
    options: dict[str, Any]
    label: str
    sha256: str | None
    files: dict[str, bytes]

    @property
    def modules(self) -> tuple[str, ...]:
        """What it computes with, as Python imports it."""
        return _MODULES[self.name]

    def open(self, stack: ExitStack) -> Runtime:
        """The model on its runtime, open until ``stack`` closes.

        Raises:
            UnavailableError: This machine makes another model of it.
            ResnetExportError: It cannot be opened.
        """
        with TemporaryDirectory(prefix="resnet-export-") as folder:
            for name, content in self.files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            options = {
                name: str(Path(folder, value)) if value in self.files else value for name, value in self.options.items()
            }
            file = str(Path(folder, self.file)) if self.file in self.files else self.file
            spec = RuntimeSpec(self.name, file, self.kind, MappingProxyType(options), self.label)
            try:
                found = prepare(spec)
                runtime = stack.enter_context(found.runtime)
            except ResnetExportError as error:  # nobody knows the copy by its path
                raise type(error)(str(error).replace(f"{folder}/", "")) from error
        if found.sha256 != self.sha256:
            host = socket.gethostname()
            raise UnavailableError(f"{self.label} is another model on {host}: install the same packages there")
        return runtime


def sent(model: Opening, threads: int) -> SentModel:
    """A model with all that a worker needs to open it.

    Args:
        model: On a runtime that computes on a CPU.
        threads: Of one operator, where the user named none.

    Raises:
        InputError: It computes on a GPU.
        UnavailableError: A file of it cannot be read any more.
    """
    spec = model.spec
    options = dict(spec.options)
    check_cpu([model])
    if "threads" in {option.name for option in ROWS[spec.name].options}:
        options.setdefault("threads", threads)
    file, contents = spec.file, dict[str, bytes]()
    try:
        if spec.path.is_file():
            file = spec.path.name
            contents[file] = spec.path.read_bytes()
            beside = external_files(spec.path) if spec.kind == "onnx" else []
            contents.update({str(each.relative_to(spec.path.parent)): each.read_bytes() for each in beside})
        weights = Path(str(options.get("weights", "")))
        if weights.is_file():
            place = f"weights/{weights.name}"
            options["weights"], contents[place] = place, weights.read_bytes()
    except OSError as error:
        raise UnavailableError(f"{spec.label} cannot be read any more: {error.strerror or error}") from error
    return SentModel(spec.name, file, spec.kind, options, spec.label, model.sha256, contents)


def check_cpu(models: Sequence[Opening]) -> None:
    """Refuse models that the workers of a cluster are not made for.

    Raises:
        InputError: One computes on a GPU.
    """
    for spec in (model.spec for model in models):
        if spec.name not in _MODULES or not str(spec.options.get("device", "cpu")).lower().startswith("cpu"):
            raise InputError(f"{spec.label} does not compute on a CPU, as the workers of --ray do: leave out --ray")


def most_threads(models: Sequence[Opening]) -> int:
    """Processors that one worker needs: the most threads that a model names, and 1 where none does."""
    return max((int(str(model.spec.options.get("threads", 1))) for model in models), default=1)
