"""A folder that is either the old one or the whole new one, and never anything between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from exporter.bundle.layout import ARCHIVE_SUFFIX, KIND, MANIFEST
from exporter.files import Output, check_output
from runtimes.errors import GateError, InputError, UnavailableError


def is_archive(path: Path) -> bool:
    """Whether a bundle is to be one file."""
    return path.name.endswith(ARCHIVE_SUFFIX)


def check_place(output: Path, inputs: list[Path]) -> None:
    """Refuse a place that cannot become a bundle; quick, for use before anything is read.

    Args:
        output: A folder, or a file that ends in ``.tar.zst``.
        inputs: Files that are read, and must not be written over.

    Raises:
        InputError: There is something else than a bundle already, or an input lies in the folder.
    """
    if is_archive(output):
        check_output(output, inputs)
        return
    if not output.name or output.name in (".", ".."):
        raise InputError(
            f"-o {output} is a folder that exists already: give the name of a new one, as {output / 'bundle'}"
        )
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InputError(f"-o {output} is a file: give a folder, or a file that ends in {ARCHIVE_SUFFIX}")
    if output.is_dir() and not _is_bundle(output) and any(output.iterdir()):
        raise InputError(f"-o {output} holds other things than a bundle: it would be replaced; give another folder")
    inside = [path for path in inputs if output.resolve() in path.resolve().parents]
    if inside:
        raise InputError(f"{inside[0]} lies in -o {output}, which is replaced: give another folder")


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A new, empty folder beside the output, which takes its place where the block ends well.

    Where a check says no, an earlier bundle is moved to ``NAME.previous``: what failed must not look as if it had
    passed. Where anything else ends the block, an earlier bundle stays.

    Args:
        output: From :func:`check_place`; for an archive, the folder is where its files are put together.

    Raises:
        InputError: The folder cannot be made.
        UnavailableError: The disk is full.
    """
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    missing = [folder for folder in output.parents if not folder.exists()]
    try:
        try:
            part.mkdir(parents=True)
            yield part
            if not is_archive(output):
                _replace(part, output)
        except OSError as error:
            raise _explained(output, error) from error
        except GateError:
            Output(output).retire()
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for folder in missing:  # made for a bundle that did not come; one that did is in the way of it
            with contextlib.suppress(OSError):
                folder.rmdir()


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file of the staged folder through to the disk."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def copy_file(source: Path, folder: Path, name: str) -> None:
    """Copy the bytes of a file, and nothing else of it, into the staged folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as given, path.open("wb") as stream:
        shutil.copyfileobj(given, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())


def _replace(part: Path, output: Path) -> None:
    """Two renames, and the old folder back where the second one fails: no system swaps folders portably."""
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    there = output.exists()
    if there:
        output.replace(old)
    try:
        part.replace(output)
    except BaseException:
        if there:
            old.replace(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_bundle(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_bytes()).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return False


def _explained(output: Path, error: OSError) -> Exception:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(f"the disk of {output} is full: free some space or give another -o")
    return InputError(f"{output} cannot be written ({error.strerror or error}): give another -o")
