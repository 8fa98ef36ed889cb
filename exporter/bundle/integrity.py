"""Whether the files of a folder are those that its manifest names: what is missing, altered, extra or no file."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from exporter.bundle.layout import LARGEST_MANIFEST, MANIFEST, MANIFEST_SHA256
from exporter.bundle.manifest import Manifest, parse_manifest
from exporter.files import file_sha256
from runtimes.errors import InputError

Fault = Literal["missing", "altered", "extra", "unsafe"]

_CHUNK: Final = 1 << 20
_CHECKSUM: Final = re.compile(rb"([0-9a-f]{64})  manifest\.json\n")
_FEW: Final = 8  # hex digits by which the hash of another manifest does not differ by chance: 56 of 64 would be equal


@dataclass(frozen=True)
class Finding:
    """A file that is not as it was made.

    Attributes:
        path: In the bundle.
        fault: What is wrong with it.
        detail: In words.
    """

    path: str
    fault: Fault
    detail: str

    def to_json(self) -> dict[str, str]:
        """The fields as plain JSON values."""
        return {"path": self.path, "fault": self.fault, "detail": self.detail}


def examine(folder: Path) -> tuple[Manifest | None, list[Finding]]:
    """Hold the files of a folder against its manifest, and that against its hash.

    Args:
        folder: A bundle of anybody.

    Returns:
        The manifest, ``None`` where it is missing or altered, and everything that is not as it was made.

    Raises:
        InputError: The folder is no bundle, or its manifest points outside of it.
    """
    manifest, findings = _manifest(folder)
    if manifest is None:
        return None, findings
    found: dict[str, os.stat_result] = {}
    for name, status in _walk(folder):
        if stat.S_ISREG(status.st_mode):
            found[name] = status
        elif not stat.S_ISDIR(status.st_mode):
            findings.append(Finding(name, "unsafe", "it is a link or a device, and a bundle has neither"))
        elif not any(path.startswith(f"{name}/") for path in manifest.files):
            findings.append(Finding(name, "extra", "the manifest has no such folder"))
    unsafe = {finding.path for finding in findings}
    for name, entry in manifest.files.items():
        if name not in found:
            if name not in unsafe:
                findings.append(Finding(name, "missing", "the manifest lists it"))
        elif found[name].st_size != entry.size:
            findings.append(Finding(name, "altered", f"it has {found[name].st_size} bytes, expected {entry.size}"))
        elif sha256_of(folder / name) != entry.sha256:
            findings.append(Finding(name, "altered", "its sha256 is another one"))
    known = {*manifest.files, MANIFEST, MANIFEST_SHA256}
    findings += [Finding(name, "extra", "the manifest does not list it") for name in found if name not in known]
    return manifest, sorted(findings, key=lambda finding: finding.path)


def _manifest(folder: Path) -> tuple[Manifest | None, list[Finding]]:
    """A manifest is read only where it is the one that was written: an altered one says nothing."""
    data, recorded = (_read(folder / name) for name in (MANIFEST, MANIFEST_SHA256))
    if data is None and recorded is None:
        raise InputError(f"{folder} is no bundle: it has neither {MANIFEST} nor {MANIFEST_SHA256}")
    if data is None:
        return None, [Finding(MANIFEST, "missing", "nothing can be checked without it")]
    if recorded is None:
        return parse_manifest(data, str(folder)), [
            Finding(MANIFEST_SHA256, "missing", "whether the manifest is whole cannot be known")
        ]
    told = _CHECKSUM.fullmatch(recorded)
    digest = hashlib.sha256(data).hexdigest().encode()
    if told is not None and told[1] == digest:
        return parse_manifest(data, str(folder)), []
    # A changed manifest has quite another hash; one that differs in few digits is itself what changed.
    checksum = told is None or sum(a != b for a, b in zip(told[1], digest, strict=True)) <= _FEW
    if checksum:
        detail = "it is not the hash of the manifest" if told else "it is not a hash and the manifest's name"
        return parse_manifest(data, str(folder)), [Finding(MANIFEST_SHA256, "altered", detail)]
    return None, [Finding(MANIFEST, "altered", f"{MANIFEST_SHA256} has the hash of another one")]


def _read(path: Path) -> bytes | None:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no plain file: a bundle has no links or devices")
        if status.st_size > LARGEST_MANIFEST:
            raise InputError(f"{path} has {status.st_size} bytes, and none has more than {LARGEST_MANIFEST}")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a folder, links not followed."""
    waiting = [folder]
    try:
        while waiting:
            for path in sorted(waiting.pop().iterdir()):
                status = path.lstat()
                yield path.relative_to(folder).as_posix(), status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(path)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror or error}") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
