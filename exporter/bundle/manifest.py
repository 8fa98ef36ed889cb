"""``manifest.json``: what a bundle holds, with the hash and size of every file, and how it is read from a stranger.

The manifest covers every file but itself; ``manifest.sha256`` covers the manifest. A byte that flips anywhere is found.
Somebody who alters a file, the manifest and ``manifest.sha256`` together is not: the three are a checksum, not a
signature. Keep the 64 digits of ``manifest.sha256`` elsewhere, or sign them, where that matters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from exporter.bundle.layout import (
    KIND,
    LARGEST_BUNDLE,
    MANIFEST,
    MANIFEST_SHA256,
    SCHEMA,
    checked,
    is_sha256,
)
from runtimes.errors import InputError, first_line

_BOUNDS: Final = ("min_sqnr_db", "min_decision_db", "max_ulp", "min_top1")


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle.

    Attributes:
        path: Relative, with forward slashes.
        sha256: Of its bytes.
        size: In bytes.
    """

    path: str
    sha256: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {"path": self.path, "sha256": self.sha256, "bytes": self.size}


@dataclass(frozen=True)
class Manifest:
    """A manifest whose outer form is sound and whose paths stay inside of the bundle.

    Attributes:
        document: All of it.
        files: Every file but the manifest and its hash, by path.
    """

    document: Mapping[str, Any]
    files: Mapping[str, FileEntry]

    @property
    def models(self) -> Sequence[Mapping[str, Any]]:
        """The models, as the document has them."""
        found: Sequence[Mapping[str, Any]] = self.document["models"]
        return found

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())


def manifest_bytes(document: Mapping[str, Any]) -> bytes:
    """The bytes of ``manifest.json``: the same document gives the same bytes."""
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def checksum_bytes(manifest: bytes) -> bytes:
    """The bytes of ``manifest.sha256``, as ``sha256sum -c`` reads them."""
    return f"{sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest that anybody may have written.

    Args:
        data: Bytes of ``manifest.json``.
        where: What the bundle is called in messages.

    Raises:
        InputError: It is no manifest, of another version, or a path in it points outside of the bundle.
    """
    title = f"{where}: {MANIFEST}"
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{title} is no JSON document ({first_line(error)}): is this a bundle?") from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise InputError(f"{title} is not the manifest of a bundle: expected one of resnet-export bundle")
    if document.get("schema") != SCHEMA:
        raise InputError(f"{title} has schema {document.get('schema')!r}, expected {SCHEMA}: update resnet-export")
    files = _files(document.get("files"), title)
    total = sum(entry.size for entry in files.values())
    if total > LARGEST_BUNDLE:
        raise InputError(
            f"{title} announces {total / 2**30:.0f} GiB, and no bundle has more than {LARGEST_BUNDLE >> 30}"
        )
    _check_references(document, files, title)
    return Manifest(document, files)


def _files(entries: object, title: str) -> dict[str, FileEntry]:
    if not isinstance(entries, list):
        raise InputError(f"{title} has no list of files: make the bundle again")
    files: dict[str, FileEntry] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise InputError(f"{title} lists {entry!r} as a file, expected an object")
        path = checked(entry.get("path"), title)
        size, digest = entry.get("bytes"), entry.get("sha256")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not is_sha256(digest):
            raise InputError(f"{title} lists {path} without a size in bytes and a sha256: make the bundle again")
        if path in files or path in (MANIFEST, MANIFEST_SHA256):
            raise InputError(f"{title} lists {path} twice: a file has one content")
        files[path] = FileEntry(path, str(digest), size)
    folders = {path.rsplit("/", depth)[0] for path in files for depth in range(1, path.count("/") + 1)}
    if both := sorted(folders & files.keys()):
        raise InputError(f"{title} lists {both[0]} both as a file and as a folder")
    return files


def _check_references(document: Mapping[str, Any], files: Mapping[str, FileEntry], title: str) -> None:
    """Every file that something else in the manifest names is one of the files."""
    try:
        goldens = document["goldens"]
        named = [document["preprocessing"], document["license"]["file"], goldens["input"], goldens["reference"]]
        named += [document["labels"]] if document["labels"] is not None else []
        named += [image["pixels"] for image in goldens["images"] if image["pixels"] is not None]
        for model in document["models"]:
            named += [model["file"], model["golden"], *model["others"]]
            named += [] if model["dla"] is None else [model["dla"]["file"], model["dla"]["scales"]]
            _check_model(model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{title} is incomplete ({type(error).__name__}: {first_line(error)})") from error
    for path in named:
        if checked(path, title) not in files:
            raise InputError(f"{title} refers to {path}, and does not list it among its files")


def _check_model(model: Mapping[str, Any]) -> None:
    from runtimes.tolerance import Tolerance

    str(model["id"]), str(model["kind"]), str(model["precision"]), str(model["target"])
    for row in model["tolerances"]:
        str(row["against"]), str(row["runtime"]), str(row["precision"])
        bounds = {name: None if row[name] is None else float(row[name]) for name in _BOUNDS}
        Tolerance(**bounds, reason=str(row["reason"]))
