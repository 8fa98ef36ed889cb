"""Files that are either the old one or the whole new one, and never anything between."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from runtimes.errors import InputError, ResnetExportError, UnavailableError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class Output:
    """A place for one file; made by :func:`reserve`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = False

    def commit(self, data: bytes) -> str:
        """Write the bytes beside the path, flush them to the disk, and move them into place.

        Returns:
            SHA-256 of the bytes.

        Raises:
            UnavailableError: The disk is full.
            InputError: The folder refuses the file.
        """
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(self.path)
        except OSError as error:
            raise explain(self.path, error, len(data)) from error
        finally:
            part.unlink(missing_ok=True)
        self.written = True
        return hashlib.sha256(data).hexdigest()

    def retire(self) -> Path | None:
        """Move a file of an earlier run out of the way, so that a failed check leaves nothing at the path.

        Returns:
            Where it lies now (``NAME.previous``, or with a number where that is taken); ``None`` where there was none.

        Raises:
            InputError: The folder refuses the move.
        """
        if not self.path.exists():
            return None
        names = (f"{self.path.name}.previous{suffix}" for suffix in ("", *(f".{n}" for n in range(1, 1000))))
        kept = next(path for path in map(self.path.with_name, names) if not path.exists())
        try:
            self.path.replace(kept)
        except OSError as error:
            raise explain(self.path, error, 0) from error
        return kept

    def fate(self) -> str:
        """Retire a file of an earlier run after a failed check, and say what became of it, for the check's message."""
        try:
            kept = self.retire()
        except InputError as stuck:
            return f"and the earlier file is still there: {stuck}"
        return f"an earlier file is kept as {kept}" if kept else "no file is written"


@contextlib.contextmanager
def reserve(path: Path) -> Iterator[Output]:
    """Make sure, before any long work, that a file can be written; folders made for it go again if it is not.

    Args:
        path: Where the file is to be.

    Raises:
        InputError: The path is a folder or a device, or its folder cannot be made or written to.
    """
    path = path.resolve() if path.is_symlink() else path  # the file that a link names is replaced, not the link
    made: list[Path] = []
    try:
        try:
            check_output(path)
            made = _make_parents(path.parent)
            _probe(path)
        except OSError as error:
            raise explain(path, error, 0) from error
        output = Output(path)
        yield output
        if output.written:
            made = []
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # somebody else put a file there meanwhile: it stays
                folder.rmdir()


def check_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse a path that cannot become a file; quick, for use before anything is read.

    Args:
        path: Where a file is to be.
        inputs: Files that are read, and must not be written over.

    Raises:
        InputError: A folder, a device, one of the inputs, or a path that cannot even be looked at.
    """
    try:
        _check_target(path, inputs)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise explain(path, error, 0) from error


def _check_target(path: Path, inputs: Iterable[Path]) -> None:
    if not path.name:
        raise InputError(f"{path} names no file: give -o FILE.onnx")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file in it, for example {path / 'model.onnx'}")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path} is not a regular file: a device or a pipe cannot be replaced in one step")
    for each in inputs:
        same = path.samefile(each) if path.exists() and each.exists() else path.resolve() == each.resolve()
        if same:
            raise InputError(f"-o {path} is the same file as the input {each}: give another -o")


def _make_parents(folder: Path) -> list[Path]:
    missing = []
    current = folder
    while not current.exists():
        missing.append(current)
        current = current.parent
    made: list[Path] = []
    try:
        for each in reversed(missing):
            each.mkdir()
            made.append(each)
    except OSError:
        for each in reversed(made):
            each.rmdir()
        raise
    return made


def _probe(path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
    finally:
        part.unlink(missing_ok=True)


def explain(path: Path, error: OSError, size: int) -> ResnetExportError:
    """The error of this project for a path that the system refuses.

    Args:
        path: Where something is to be.
        error: What the system said.
        size: Bytes that were to be written; 0 where that is not known.
    """
    if error.errno in _NO_SPACE:
        needed = f"{size / 1e6:.1f} MB are needed" if size else "not even an empty file fits"
        return UnavailableError(f"the disk of {path} is full ({needed}): free some space or give another -o")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return InputError(f"{path} cannot be written ({reason}): give another -o")
