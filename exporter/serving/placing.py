"""Folders that are made beside where they belong and moved into place, all of them or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from exporter.files import explain
from runtimes.errors import InputError


@contextlib.contextmanager
def staging(output: Path) -> Iterator[Path]:
    """An empty folder on the disk of a folder that is to be written, and beside it; it goes when this ends.

    Args:
        output: The folder that is to be written; made by :func:`placed`.

    Raises:
        InputError: It is a file, or cannot be made where it is to be.
        UnavailableError: The disk is full.
    """
    parent = output.absolute().parent
    made: list[Path] = []
    try:
        if output.exists() and not output.is_dir():
            raise InputError(f"{output} is a file: give a folder as -o")
        made = [each for each in (parent, *parent.parents) if not each.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        # A repository that is a mounted disk of its own has to hold it: from another disk a move would be a copy.
        mounted = output.exists() and output.stat().st_dev != parent.stat().st_dev
        place = output if mounted else parent
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=place))
    except OSError as error:
        raise explain(output, error, 0) from error
    try:
        yield folder
        made = []
    except OSError as error:
        raise explain(output, error, 0) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for each in made:
            with contextlib.suppress(OSError):  # somebody else put a file there meanwhile: it stays
                each.rmdir()


def placed(folder: Path, output: Path, names: Sequence[str], mark: str) -> None:
    """Move folders into a repository; what this project wrote there before under the same names goes.

    Args:
        folder: Holds them, from :func:`staging`.
        output: The repository; made where it is not there.
        names: Of the folders.
        mark: First line of a ``config.pbtxt`` that may be replaced.

    Raises:
        InputError: A name is taken by something else; nothing has been moved.
        OSError: A move failed; those that were made have been undone.
    """
    for name in names:
        taken = output / name
        if (taken.exists() or taken.is_symlink()) and not _is_ours(taken, mark):
            raise InputError(f"{taken} was not written by resnet-export: give NAME=FILE, or another -o")
    created = not output.exists()
    output.mkdir(exist_ok=True)
    undo: list[tuple[Path, Path]] = []
    try:
        for name in names:
            _sync(folder / name)
            if (output / name).exists():
                _move(output / name, folder / f"{name}.old", undo)
            _move(folder / name, output / name, undo)
    except BaseException:
        for source, target in reversed(undo):
            target.replace(source)
        if created:
            output.rmdir()
        raise


def _move(source: Path, target: Path, undo: list[tuple[Path, Path]]) -> None:
    source.replace(target)
    undo.append((source, target))


def _is_ours(folder: Path, mark: str) -> bool:
    try:
        with (folder / "config.pbtxt").open(encoding="utf-8", errors="replace") as stream:
            return not folder.is_symlink() and stream.readline() == mark
    except OSError:
        return False


def _sync(folder: Path) -> None:
    """Have the files on the disk before their folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
