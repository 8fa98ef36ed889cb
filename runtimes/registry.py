"""All runtimes, one row each, and the text that names one: ``NAME:FILE[@option=value,…]``.

Nothing is imported for a row before it is opened::

    with open_runtime(parse("openvino:build/r20.onnx@threads=2")) as runtime:
        logits = runtime.run(images)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from runtimes.base import Runtime
from runtimes.errors import InputError
from runtimes.kinds import TITLES, Kind, is_file, kind_of
from runtimes.options import Value, read_options
from runtimes.rows import ROWS, Row

if TYPE_CHECKING:
    import torch

_OPTIONS_BEGIN: Final = re.compile(r"[a-z][a-z0-9_-]*\s*=")
_COULD_BE_A_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_CLOSE: Final = 0.75  # of difflib's ratio: "onnxruntme" is, the name of somebody's package is not


class LoadedModule(Protocol):
    """A module that somebody loaded."""

    @property
    def module(self) -> torch.nn.Module:
        """In evaluation mode, on the CPU."""


@dataclass(frozen=True)
class RuntimeSpec:
    """A model and what is to run it.

    Attributes:
        name: Of the runtime, a key of :data:`runtimes.rows.ROWS`.
        file: Path of the model, its URL, or the name of a network.
        kind: Of ``file``.
        options: Those that were given, by name.
        label: The whole as text, in one spelling: it tells apart what a report sets side by side.
    """

    name: str
    file: str
    kind: Kind
    options: Mapping[str, Value]
    label: str

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file)


LoadModule: TypeAlias = Callable[[RuntimeSpec], LoadedModule]


def parse(text: str) -> RuntimeSpec:
    """Read ``NAME:FILE[@option=value,…]``.

    A file that exists under the whole text wins, so that paths may hold ``:`` and ``@``. Without NAME, the first
    runtime of the table that takes such a file is meant.

    Args:
        text: As the user wrote it.

    Raises:
        InputError: No such runtime, option or file, or a file of a kind that the runtime does not take.
    """
    named, body = (None, text) if is_file(text) else _split_name(text)
    file, given = _split_options(body)
    if not file:
        raise InputError(f"'{text}' names no model: expected NAME:FILE[@option=value,…]")
    kind = kind_of(file)
    row = ROWS[named] if named else next(each for each in ROWS.values() if kind in each.takes)
    _refuse_kind(row, file, kind)
    options = read_options(given, row.options, row.name)
    shown = ",".join(f"{name}={_shown(value)}" for name, value in options.items())
    label = f"{row.name}:{file}" + (f"@{shown}" if shown else "")
    return RuntimeSpec(row.name, file, kind, MappingProxyType(dict(options)), label)


def open_runtime(spec: RuntimeSpec, *, load_module: LoadModule | None = None) -> Runtime:
    """The runtime that a spec names, not opened yet.

    Args:
        spec: From :func:`parse`.
        load_module: Makes the module that ``eager`` and ``torch-compile`` run, from a checkpoint or a name.

    Raises:
        InputError: Options that contradict each other, or a module is needed and nobody loads it.
    """
    row = ROWS[spec.name]
    options = {name: spec.options[name] for name in spec.options if name not in row.of_model}
    if not row.takes & {"checkpoint", "source"}:
        return row.open(spec.file if spec.kind == "served" else spec.path, options)
    if load_module is None:
        raise InputError(f"{spec.label}: {spec.name} runs a module, and nobody loads it here: give an ONNX file")
    return row.open(load_module(spec).module, options)


def _split_name(text: str) -> tuple[str | None, str]:
    """The runtime's name and the rest; a first word that is neither is part of the model's own name."""
    head, colon, rest = text.partition(":")
    if not colon:
        return None, text
    if head in ROWS:
        return head, rest
    near = difflib.get_close_matches(head.lower(), ROWS, n=2, cutoff=_CLOSE)
    if near or (_COULD_BE_A_NAME.fullmatch(head) and is_file(_split_options(rest)[0])):
        told = f"the nearest {'is' if len(near) == 1 else 'are'} {' and '.join(near)}; " if near else ""
        raise InputError(f"there is no runtime '{head}': {told}known are {', '.join(ROWS)}")
    return None, text


def _split_options(body: str) -> tuple[str, str]:
    """Model and options: at the first ``@`` with a file before it, else at the first with ``option=`` behind it."""
    if is_file(body):
        return body, ""
    places = [index for index, letter in enumerate(body) if letter == "@"]
    for place in places:
        if is_file(body[:place]):
            return body[:place], body[place + 1 :]
    for place in places:
        if _OPTIONS_BEGIN.match(body, place + 1):
            return body[:place], body[place + 1 :]
    return body, ""


def _refuse_kind(row: Row, file: str, kind: Kind) -> None:
    if kind in row.takes:
        return
    if "served" in row.takes:
        raise InputError(f"{row.name} takes {row.takes_text}, and {file} is {TITLES[kind]}")
    others = [each.name for each in ROWS.values() if kind in each.takes]
    uses = " or ".join(f"{name}:{file}" for name in others[:2])
    raise InputError(f"{row.name} takes {row.takes_text}, and {file} is {TITLES[kind]}: use {uses}")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
