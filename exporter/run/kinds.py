"""What a value of a pipeline file can be: how it is written, checked and read from the command line."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["text", "path", "source", "int", "float", "bool", "choice", "size", "ints", "floats", "texts"]
_SIZE: Final = re.compile(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?")  # height x width
_WORDS: Final = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True)
class Key:
    """One key of a pipeline file, which is an option of ``run`` as well.

    Attributes:
        name: As it is written.
        kind: What its value has to be. ``path`` is relative to the file that holds it; so is ``source`` where it names
            a file and not a network; ``size`` is a height and width.
        help: What it does, one sentence without a full stop.
        default: Without it; ``None`` where there is no value then.
        choices: Values that there are, for ``choice`` and ``texts``.
        low: Smallest number.
        high: Largest number.
        example: Shown by ``init`` where there is no default.
        flag: Option of ``run`` of its own, beside ``--set``.
        required: Whether there is no pipeline without it.
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    example: Any = None
    flag: str | None = None
    required: bool = False

    @property
    def expects(self) -> str:
        """What a value looks like, for messages and tables."""
        if self.kind == "choice":
            return " or ".join(f'"{choice}"' for choice in self.choices)
        if self.kind == "texts":
            return f"a list of {', '.join(self.choices) or 'texts'}"
        words = {
            "text": "text", "path": "a path", "source": "a name or a path", "bool": "true or false",
            "int": "a whole number", "float": "a number", "size": 'pixels as "224" or "480x640"',
            "ints": "a list of whole numbers", "floats": "a list of numbers",
        }  # fmt: skip
        return words[self.kind] + self._bounds()

    def check(self, value: object) -> Any:
        """The value that a TOML value stands for.

        Returns:
            A tuple for a list, ``(height, width)`` in pixels for a size, else the value itself. Paths stay text.

        Raises:
            ValueError: It is of another type, or out of range.
        """
        if self.kind in ("ints", "floats", "texts"):
            if not isinstance(value, list):
                raise ValueError(value)
            return tuple(self._one(item) for item in value)
        return self._one(value)

    def read(self, text: str) -> Any:
        """The TOML value that a text on the command line stands for; lists have commas.

        Raises:
            ValueError: It stands for none.
        """
        if self.kind in ("ints", "floats", "texts"):
            parts = [part.strip() for part in text.split(",")] if text.strip() else []
            return [self._word(part) for part in parts]
        return self._word(text)

    def _word(self, text: str) -> Any:
        if self.kind == "bool":
            if text.lower() not in _WORDS:
                raise ValueError(text)
            return _WORDS[text.lower()]
        if self.kind in ("int", "ints"):
            return int(text)
        return float(text) if self.kind in ("float", "floats") else text

    def _one(self, value: object) -> Any:
        if self.kind == "bool":
            return _of_type(value, bool)
        if self.kind in ("int", "ints", "float", "floats"):
            number = _of_type(value, int) if self.kind in ("int", "ints") else _number(value)
            if not self.low <= number <= self.high:
                raise ValueError(value)
            return number
        if self.kind == "size" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        text = _of_type(value, str)
        if not text or "\0" in text or (self.choices and text not in self.choices):
            raise ValueError(value)
        if self.kind == "size":
            if not _SIZE.fullmatch(text):
                raise ValueError(value)
            sides = text.split("x")
            return int(sides[0]), int(sides[-1])
        return text

    def _bounds(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f" from {self.low:g} to {self.high:g}"
        return f" from {self.low:g}" if math.isfinite(self.low) else ""


def toml_text(value: Any) -> str:
    """A value as TOML writes it; of the kinds that keys have, JSON writes each in the same way."""
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=False)


def _of_type(value: object, kind: type) -> Any:
    # Python counts True among the whole numbers.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(value)
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)
