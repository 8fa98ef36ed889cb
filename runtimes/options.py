"""Options of a runtime as a table holds them and a user writes them: ``option=value,option=value``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from runtimes.errors import InputError

Value: TypeAlias = bool | int | float | str
_SIZE: Final = re.compile(r"[1-9]\d{0,3}(x[1-9]\d{0,3})?")  # height x width
_LARGEST_INT: Final = 2**31 - 1
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: As it is written.
        type: What its value has to be.
        help: What it does, one sentence without a full stop.
        default: Without it, in words.
        choices: Values that there are, where ``type`` is ``choice``.
        lowest: Smallest value, where ``type`` is ``int``.
        highest: Largest value there; by default what a C ``int`` holds, which the runtimes keep it in.
        of_model: Whether it says which model is loaded, and not how it is run.
    """

    name: str
    type: Literal["int", "float", "bool", "choice", "size", "text"]
    help: str
    default: str
    choices: tuple[str, ...] = ()
    lowest: int = 0
    highest: int = _LARGEST_INT
    of_model: bool = False

    @property
    def expects(self) -> str:
        """What a value looks like, for messages and tables."""
        if self.type == "choice":
            return " or ".join(self.choices)
        most = f" to {self.highest}" if self.highest < _LARGEST_INT else ""
        words = {"int": f"a whole number from {self.lowest}{most}", "float": "a number", "bool": "true or false"}
        return {**words, "size": "pixels as 224 or 480x640", "text": "text"}[self.type]

    def read(self, text: str) -> Value:
        """The value that a text stands for.

        Raises:
            ValueError: It stands for none.
        """
        if self.type == "bool":
            if text.lower() not in _BOOLEANS:
                raise ValueError(text)
            return _BOOLEANS[text.lower()]
        if self.type == "int":
            if not self.lowest <= (number := int(text)) <= self.highest:
                raise ValueError(text)
            return number
        if self.type == "float":
            return float(text)
        if self.type == "size" and not _SIZE.fullmatch(text):
            raise ValueError(text)
        if not text or (self.type == "choice" and text not in self.choices):
            raise ValueError(text)
        return text


def read_options(text: str, known: Sequence[Option], who: str) -> Mapping[str, Value]:
    """The options that a user wrote, in the order of their names.

    Args:
        text: ``option=value,option=value``; empty for none.
        known: All that there are.
        who: The runtime, for messages.

    Raises:
        InputError: An unknown option, one given twice, or a value of another type.
    """
    found: dict[str, Value] = {}
    table = {option.name: option for option in known}
    for part in text.split(",") if text else ():
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if name not in table:
            raise InputError(f"{who} has no option '{name}': {_nearest(name, table)}")
        if name in found:
            raise InputError(f"{who}: {name} is given twice: leave one out")
        try:
            found[name] = table[name].read(value if sign else "")
        except ValueError:
            raise InputError(f"{who}: received {name}={value}, expected {table[name].expects}") from None
    return {name: found[name] for name in sorted(found)}


def _nearest(name: str, known: Mapping[str, Option]) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    told = f"the nearest {'is' if len(near) == 1 else 'are'} {' and '.join(near)}; " if near else ""
    return told + (f"its options are {', '.join(known)}" if known else "it has none")
