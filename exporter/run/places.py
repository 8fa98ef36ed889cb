"""Where in a TOML file a key stands: the parser does not tell, and a message should."""

from __future__ import annotations

import re
from typing import Final

_HEADER: Final = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]")
_NAME: Final = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY: Final = re.compile(rf"^\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")
_PART: Final = re.compile(_NAME)


def line_of(text: str, address: tuple[str, ...]) -> int | None:
    """The line on which a key or a table begins.

    A scan for headers and keys, good enough to point at a line; the file has been parsed before by a real parser.

    Args:
        text: Of the file.
        address: Names from the outermost table to the key.

    Returns:
        Counted from 1; that of the innermost table around it where it has no line of its own; ``None`` where even that
        has none.
    """
    table: tuple[str, ...] = ()
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = found = _parts(header[1])
        elif key := _KEY.match(line):
            found = (*table, *_parts(key[1]))
        else:
            continue
        depth = len(found) if address[: len(found)] == found else 0
        if found[: len(address)] == address:  # `a.b.c = 1` is the first line of the table a.b
            depth = len(address)
        if depth and (best is None or depth > best[0]):
            best = (depth, number)
    return best[1] if best else None


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(text))
