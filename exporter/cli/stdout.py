"""With ``--json``, stdout carries one document and nothing else, whatever a library prints."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO
from weakref import WeakSet

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def only_json_on_stdout() -> Iterator[TextIO]:
    """Send file descriptor 1 to stderr, native libraries included, and hand out the real stdout."""
    if sys.stdout is None:  # closed by the caller: descriptor 1 may be anybody's by now
        raise OSError(errno.EBADF, "stdout is closed")
    sys.stdout.flush()
    real = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        yield real
    finally:
        sys.stdout.flush()
        real.flush()
        os.dup2(real.fileno(), 1)
        real.close()


#: Streams that have their document: what fails after it is told on stderr alone.
_DELIVERED: Final[WeakSet[TextIO]] = WeakSet()


def write_document(stream: TextIO, value: dict[str, Any]) -> None:
    """Write a document; NaN and Infinity, which JSON does not have, are a fault and raise."""
    stream.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    _DELIVERED.add(stream)


def tell(document: TextIO | None, quiet: bool, told: dict[str, Any], show: Callable[[Console], None]) -> None:
    """The result on stdout: the document where one is wanted, else what ``show`` prints of it."""
    if document is not None:
        write_document(document, told)
    elif not quiet:
        from exporter.cli.console import stdout_console

        show(stdout_console())


def failure_document(stream: TextIO, message: str, code: int, error: BaseException | None) -> None:
    """What ``--json`` prints when the command fails before its document: the error, and the parity rows so far."""
    if stream in _DELIVERED:
        return
    value: dict[str, Any] = {
        "error": {"type": type(error).__name__ if error else "Interrupted", "message": message, "exit_code": code}
    }
    rows = getattr(error, "rows", ())
    if rows:
        value["parity"] = list(rows)
    write_document(stream, value)
