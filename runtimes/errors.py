"""Every error that a user can cause, as one tree.

::

    ResnetExportError
     ├─ GateError          exit 1   the work was done, and its result must not be used
     │   └─ ParityError             two stages of one model disagree
     ├─ InputError         exit 2   wrong usage, or an input that cannot be used
     │   ├─ ModelSourceError        MODEL names nothing that can be loaded
     │   ├─ CheckpointError         a checkpoint file that is broken, unsafe or of another network
     │   ├─ ArchitectureError       a residual network that cannot be built as described
     │   ├─ GraphError              a model that cannot be captured, folded or exported as asked
     │   ├─ DataError               images that cannot be read, or do not fit the model
     │   └─ TensorError             an array whose name, dtype or shape is not what the model takes
     └─ UnavailableError   exit 3   this machine lacks something: a library, a device, disk space

A message says what was given, what was expected, and the next step. It is one line: the command line
prints it as it is. Foreign exceptions are translated where a backend is called, with the cause chained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ResnetExportError(Exception):
    """Root of the tree; ``exit_code`` is what the command line ends with."""

    exit_code = 2


class GateError(ResnetExportError):
    """A check ran to its end and said no."""

    exit_code = 1


class ParityError(GateError):
    """Two stages of one model give outputs that differ by more than the tolerance table allows.

    Attributes:
        rows: What was measured up to the failure, as plain JSON values; empty where nothing could be.
    """

    def __init__(self, message: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class InputError(ResnetExportError):
    """Wrong usage, or an input that cannot be used."""


class ModelSourceError(InputError):
    """The ``MODEL`` argument names nothing that can be loaded."""


class CheckpointError(InputError):
    """A checkpoint that is broken, unsafe to read, or of another network."""


class ArchitectureError(InputError):
    """A residual network that cannot be built as described."""


class GraphError(InputError):
    """A model that cannot be captured, folded or exported as asked."""


class DataError(InputError):
    """Images that cannot be read, or that do not fit the model."""


class TensorError(InputError):
    """An array whose name, dtype or shape is not what the model takes."""


class UnavailableError(ResnetExportError):
    """This machine lacks something: a library, a device, a download, disk space."""

    exit_code = 3


def missing_package(package: str, extra: str | None = None) -> UnavailableError:
    """The error for a package that is not installed, with the pip line that mends it.

    Args:
        package: Distribution that failed to import, for example ``"timm"``.
        extra: Extra of this project that brings it; ``None`` for a core dependency.
    """
    target = f"resnet-export[{extra}]" if extra else package
    return UnavailableError(f"{package} is not installed: pip install '{target}'")


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first non-empty line of a foreign exception's text, for use inside a one-line message.

    Args:
        error: Any exception; one without text gives its type's name.
        limit: Longest text returned, in characters.
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:limit]
