"""Protocol buffers' text format, as far as a ``config.pbtxt`` needs it.

Written by hand, so that no package of a server or client is needed; the tests hold the result against Triton's schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union


class Word(str):
    """A name of an enumeration, which stands without quotes."""

    __slots__ = ()


Value: TypeAlias = Union[bool, int, str, "Message", Sequence[int], Sequence["Message"]]
Message: TypeAlias = Mapping[str, Value]
"""Fields by name, in the order in which they are written; a sequence is a repeated field."""

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def text(message: Message, indent: str = "") -> str:
    """A message, one field a line, each line ended.

    Args:
        message: Its fields.
        indent: Before every line.
    """
    return "".join(_field(name, value, indent) for name, value in message.items())


def entries(values: Mapping[str, Message]) -> list[Message]:
    """A ``map`` field, which the text format writes as pairs of ``key`` and ``value``."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _field(name: str, value: Value, indent: str) -> str:
    if isinstance(value, Mapping):
        inner = text(value, f"{indent}  ")
        return f"{indent}{name} {{\n{inner}{indent}}}\n" if inner else f"{indent}{name} {{ }}\n"
    if isinstance(value, bool | int | str):
        return f"{indent}{name}: {_scalar(value)}\n"
    if value and all(isinstance(each, int) for each in value):
        return f"{indent}{name}: [ {', '.join(map(str, value))} ]\n"
    return "".join(_field(name, each, indent) for each in value)


def _scalar(value: bool | int | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | Word):
        return str(value)
    return '"' + "".join(map(_escaped, value)) + '"'


def _escaped(letter: str) -> str:
    """Control characters would end the string or the line; three octal digits are never taken for more."""
    return _ESCAPES.get(letter) or (letter if letter.isprintable() else "".join(f"\\{b:03o}" for b in letter.encode()))
