"""What a bundle looks like: the names of its files, and which names a file may have."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final

from runtimes.errors import InputError

KIND: Final = "resnet-export bundle"
SCHEMA: Final = 1

MANIFEST: Final = "manifest.json"
MANIFEST_SHA256: Final = "manifest.sha256"
PREPROCESSING: Final = "preprocessing.json"
LABELS: Final = "labels.txt"
LICENSE: Final = "LICENSE.txt"
README: Final = "README.md"
RUNNER: Final = "run.py"
INPUT: Final = "goldens/input.npy"
REFERENCE: Final = "goldens/reference.npy"

ARCHIVE_SUFFIX: Final = ".tar.zst"
#: Folder that an archive unpacks to, whatever the archive is called: its bytes do not depend on its name.
ARCHIVE_ROOT: Final = "bundle"

LARGEST_MANIFEST: Final = 16 << 20
"""Bytes of a manifest; hundreds of models are some hundred kilobytes."""
LARGEST_BUNDLE: Final = 64 << 30
"""Bytes that a manifest may announce in all."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def is_safe(name: str) -> bool:
    """Whether a path stays inside of the bundle, on every system: relative, normal, without ``..`` and backslashes."""
    plain = bool(name) and not _CONTROL.search(name) and not re.match(r"[A-Za-z]:", name)
    return plain and not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))


def checked(name: object, where: str) -> str:
    """A path out of a manifest or an archive.

    Raises:
        InputError: It is no text, or points outside of the bundle.
    """
    if not isinstance(name, str) or not is_safe(name):
        raise InputError(
            f"{where} names {name!r}, which is not a path inside of the bundle (relative, without '..'): nothing of it "
            "was used"
        )
    return str(PurePosixPath(name))


def is_sha256(text: object) -> bool:
    """Whether it is 64 hex digits in lower case."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None
