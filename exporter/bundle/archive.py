"""A bundle as one file, ``.tar.zst``: packed to the same bytes every time, unpacked as if an enemy had made it."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from exporter.bundle.layout import ARCHIVE_ROOT, LARGEST_MANIFEST, MANIFEST, MANIFEST_SHA256, RUNNER, checked
from exporter.bundle.manifest import Manifest, parse_manifest
from exporter.bundle.stream import BoundedReader, require_zstd
from runtimes.errors import InputError, UnavailableError, first_line

_LEVEL: Final = 10
_CHUNK: Final = 1 << 20
_CHECKSUM: Final = 256  # bytes of manifest.sha256, at most
_HEADERS: Final = 1 << 16
"""Bytes around a file: its headers, with a long name, what pads it, and what tarfile reads ahead."""
_SPARE: Final = 1 << 20
"""Bytes by which a file may be longer than announced, or a file that is not announced, before reading ends."""

_EXTRA: Final = 1000
"""Files that are not announced, before reading ends."""


def pack(folder: Path, output: Path) -> None:
    """Write the files of a folder: the manifest and its hash first, the others by name; no times, no owners.

    Args:
        folder: Of a whole bundle.
        output: Replaced when the new file is complete.

    Raises:
        UnavailableError: zstandard is not installed.
    """
    first = (MANIFEST, MANIFEST_SHA256)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    part = output.with_name(f".{output.name}.{os.getpid()}.file")
    compressor = require_zstd().ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=False)
    try:
        with part.open("wb") as raw:
            with (
                compressor.stream_writer(raw, closefd=False) as packed,
                tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
            ):
                for name in sorted(names, key=lambda each: (each not in first, each)):
                    _add(tar, folder / name, name)
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(f"{ARCHIVE_ROOT}/{name}")
    entry.size = path.stat().st_size
    entry.mode = 0o755 if name == RUNNER else 0o644
    with path.open("rb") as stream:
        tar.addfile(entry, stream)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into an empty folder what the manifest, which comes first, announces.

    Whether the files are the right ones is not looked at; a file that is not announced is left empty.

    Args:
        archive: A ``.tar.zst`` file of anybody.
        folder: Where the files go.

    Raises:
        InputError: It is no such archive, is damaged, holds links, devices, two files of one name, names that point
            outside, or more bytes than its manifest announces; or the manifest cannot be used.
        UnavailableError: zstandard is not installed, or the disk has less room than the manifest announces.
    """
    manifest: Manifest | None = None
    seen: set[str] = set()
    try:
        with archive.open("rb") as raw:
            reader = BoundedReader(raw, archive)
            for name, size, data in _files(reader, archive):
                if name in seen:
                    raise InputError(f"{archive} holds {name} twice: which one is meant cannot be known")
                seen.add(name)
                if manifest is not None and len(seen) > len(manifest.files) + _EXTRA:
                    raise InputError(f"{archive} holds more than {_EXTRA} files that its manifest does not list")
                if manifest is None:
                    manifest = _first(name, size, data, archive, folder)
                    continue
                announced = _announced(manifest, name)
                if size > (announced or 0) + _SPARE:
                    told = "no such file" if announced is None else f"{announced}"
                    raise InputError(f"{archive} holds {size} bytes of {name}, and its manifest announces {told}")
                _extract(data, folder / name, 0 if announced is None else announced + 1)
            reader.finish()
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise InputError(f"{archive} is no archive of a bundle, or is damaged: {first_line(error)}") from error
    except OSError as error:
        raise InputError(f"{archive} cannot be unpacked: {error.strerror or error}") from error
    if manifest is None:
        raise InputError(f"{archive} is empty: make it with resnet-export bundle")


def _files(reader: BoundedReader, archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of every entry; nothing but plain files inside of the bundle's folder."""
    reader.allow(_HEADERS)
    with tarfile.open(fileobj=cast(IO[bytes], reader), mode="r|") as tar:
        while (entry := tar.next()) is not None:
            root, _, name = entry.name.partition("/")
            if not (entry.isreg() and not entry.issparse() and not entry.linkname):
                raise InputError(f"{archive} holds {entry.name!r}, which is no plain file: expected files")
            if root != ARCHIVE_ROOT:
                raise InputError(f"{archive} holds {entry.name!r}, expected names below {ARCHIVE_ROOT}/")
            data = tar.extractfile(entry)
            if data is None:
                raise InputError(f"{archive} holds {entry.name!r} without content")
            # Nothing is read before the caller has seen the size; what it leaves, tarfile skips.
            reader.allow(_HEADERS + entry.size)
            yield checked(name, str(archive)), entry.size, data


def _first(name: str, size: int, data: IO[bytes], archive: Path, folder: Path) -> Manifest:
    if name != MANIFEST:
        raise InputError(f"{archive} begins with {name}, not {MANIFEST}: is it a bundle?")
    if size > LARGEST_MANIFEST:
        raise InputError(f"{archive} has a manifest of {size} bytes, and none has more than {LARGEST_MANIFEST}")
    content = data.read()
    (folder / name).write_bytes(content)
    manifest = parse_manifest(content, str(archive))
    free = shutil.disk_usage(folder).free
    if manifest.size > free:
        raise UnavailableError(
            f"{archive} announces {manifest.size / 1e9:.1f} GB, and {folder.parent} has room for {free / 1e9:.1f}: "
            "free some space, or set TMPDIR"
        )
    return manifest


def _announced(manifest: Manifest, name: str) -> int | None:
    if name == MANIFEST_SHA256:
        return _CHECKSUM
    entry = manifest.files.get(name)
    return None if entry is None else entry.size


def _extract(data: IO[bytes], path: Path, most: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        while most > 0 and (piece := data.read(min(_CHUNK, most))):
            stream.write(piece)
            most -= len(piece)
