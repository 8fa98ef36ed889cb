"""Files that are either the old one or the whole new one, and never anything between."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from runtimes.errors import InputError, ResnetExportError, UnavailableError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class Output:
    """A place for one file; made by :func:`reserve`."""

    def __init__(self, path: Path, option: str = "-o") -> None:
        self.path = path
        self.option = option
        self.written = False

    def commit(self, data: bytes) -> str:
        """Write the bytes beside the path, flush them to the disk, and move them into place.

        Returns:
            SHA-256 of the bytes.

        Raises:
            UnavailableError: The disk is full.
            InputError: The folder refuses the file.
        """
        return commit_together([(self, data)])[0]

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
            raise explain(self.path, error, 0, self.option) from error
        return kept

    def fate(self) -> str:
        """Retire a file of an earlier run after a failed check, and say what became of it, for the check's message."""
        try:
            kept = self.retire()
        except InputError as stuck:
            return f"and the earlier file is still there: {stuck}"
        return f"an earlier file is kept as {kept}" if kept else "no file is written"


@contextlib.contextmanager
def reserve(path: Path, option: str = "-o") -> Iterator[Output]:
    """Make sure, before any long work, that a file can be written; folders made for it go again if it is not.

    Args:
        path: Where the file is to be.
        option: What named it, for messages.

    Raises:
        InputError: The path is a folder or a device, or its folder cannot be made or written to.
    """
    path = path.resolve() if path.is_symlink() else path  # the file that a link names is replaced, not the link
    made: list[Path] = []
    try:
        try:
            check_output(path, option=option)
            made = _make_parents(path.parent)
            _probe(path)
        except OSError as error:
            raise explain(path, error, 0, option) from error
        output = Output(path, option)
        yield output
        if output.written:
            made = []
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # somebody else put a file there meanwhile: it stays
                folder.rmdir()


def commit_together(contents: Sequence[tuple[Output, bytes]]) -> tuple[str, ...]:
    """Write files that belong together: all of them are new afterwards, or all are what they were.

    All bytes are on the disk before the first file is moved into place, and what was moved is taken back where a later
    one cannot be.

    Args:
        contents: Places of different paths, and their bytes.

    Returns:
        SHA-256 of each.

    Raises:
        UnavailableError: The disk is full.
        InputError: A folder refuses a file.
    """
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(_written(output, data)) for output, data in contents]
        for index, ((output, data), part) in enumerate(zip(contents, parts, strict=True)):
            try:
                if index < len(contents) - 1:  # nothing can fail after the last one
                    stack.enter_context(_restored_on_error(output.path))
                part.replace(output.path)
            except OSError as error:
                raise explain(output.path, error, len(data), output.option) from error
    for output, _ in contents:
        output.written = True
    return tuple(hashlib.sha256(data).hexdigest() for _, data in contents)


@contextlib.contextmanager
def _written(output: Output, data: bytes) -> Iterator[Path]:
    """The bytes on the disk, beside the path."""
    part = _beside(output.path, "part")
    try:
        try:
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise explain(output.path, error, len(data), output.option) from error
        yield part
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _restored_on_error(path: Path) -> Iterator[None]:
    """Put back what is at the path now, or nothing where there is nothing, if what follows fails."""
    earlier = _beside(path, "earlier")
    existed = path.exists()
    if existed:
        try:
            earlier.hardlink_to(path)
        except OSError:  # no hard links here: for a moment nothing is at the path
            path.replace(earlier)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if existed:
                earlier.replace(path)
            else:
                path.unlink(missing_ok=True)
        raise
    finally:
        earlier.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces; OSError where it cannot be read, which the caller puts into words."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_output(path: Path, inputs: Iterable[Path] = (), option: str = "-o") -> None:
    """Refuse a path that cannot become a file; quick, for use before anything is read.

    Args:
        path: Where a file is to be.
        inputs: Files that are read, and must not be written over.
        option: What named the path, for messages.

    Raises:
        InputError: A folder, a device, one of the inputs, or a path that cannot even be looked at.
    """
    try:
        _check_target(path, inputs, option)
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise explain(path, error, 0, option) from error


def _check_target(path: Path, inputs: Iterable[Path], option: str) -> None:
    if not path.name:
        raise InputError(f"{path} names no file: give {option} FILE")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file in it, for example {path / 'model.onnx'}")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path} is not a regular file: a device or a pipe cannot be replaced in one step")
    for each in inputs:
        same = path.samefile(each) if path.exists() and each.exists() else path.resolve() == each.resolve()
        if same:
            raise InputError(f"{option} {path} is the same file as the input {each}: give another {option}")


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


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{what}")


def _probe(path: Path) -> None:
    part = _beside(path, "part")
    try:
        part.touch()
    finally:
        part.unlink(missing_ok=True)


def explain(path: Path, error: OSError, size: int, option: str = "-o") -> ResnetExportError:
    """The error of this project for a path that the system refuses.

    Args:
        path: Where something is to be.
        error: What the system said.
        size: Bytes that were to be written; 0 where that is not known.
        option: What named the path.
    """
    if error.errno in _NO_SPACE:
        needed = f"{size / 1e6:.1f} MB are needed" if size else "not even an empty file fits"
        return UnavailableError(f"the disk of {path} is full ({needed}): free some space or give another {option}")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return InputError(f"{path} cannot be written ({reason}): give another {option}")
