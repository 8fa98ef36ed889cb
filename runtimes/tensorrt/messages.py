"""What TensorRT says: its log, and the exceptions of its bindings.

It keeps the first logger of a process for good, so there is one for all work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from runtimes.errors import GraphError, ResnetExportError, UnavailableError, first_line

_MOST = 200


class Messages:
    """Errors and warnings of one piece of work.

    Attributes:
        logger: What the bindings take.
        errors: Lines, the newest last.
        warnings: The same.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def last(self) -> str:
        """The error that says most: the first, as later ones only follow from it; empty without one."""
        return next((" ".join(line.split())[:300] for line in self.errors), "")


_loggers: dict[str, Any] = {}


@contextmanager
def listening(trt: Any) -> Iterator[Messages]:
    """Collect what is logged meanwhile.

    Args:
        trt: The bindings' module.
    """
    if trt.__name__ not in _loggers:
        _loggers[trt.__name__] = _logger(trt)
    logger = _loggers[trt.__name__]
    before, logger.sink = logger.sink, Messages(logger)
    try:
        yield logger.sink
    finally:
        logger.sink = before


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn whatever the bindings raise into one line; pybind's exceptions have no common base.

    Args:
        what: Did not work, as the beginning of a sentence.

    Raises:
        UnavailableError: This machine has no memory left.
        GraphError: Anything else.
    """
    try:
        yield
    except ResnetExportError:
        raise
    except MemoryError as error:
        raise UnavailableError(f"{what}: this machine has no memory left") from error
    except Exception as error:
        raise GraphError(f"{what}: {first_line(error)}") from error


def _logger(trt: Any) -> Any:
    severe, loud = trt.ILogger.ERROR, trt.ILogger.WARNING

    class Logger(trt.ILogger):  # type: ignore[misc]  # a class of the bindings
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind wants it by name
            self.sink: Messages | None = None

        def log(self, severity: Any, text: str) -> None:
            if self.sink is None:
                return
            if severity <= severe and len(self.sink.errors) < _MOST:
                self.sink.errors.append(text)
            elif severity == loud and len(self.sink.warnings) < _MOST:
                self.sink.warnings.append(text)

    return Logger()
