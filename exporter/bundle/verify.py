"""``resnet-export verify``: whether a bundle is whole, and whether this machine computes what it promises."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from exporter.bundle.archive import unpack
from exporter.bundle.integrity import Finding, examine
from exporter.bundle.layout import ARCHIVE_SUFFIX
from exporter.bundle.replay import Replay, check_pixels, replay
from runtimes.errors import InputError
from runtimes.machine import description

SCHEMA: Final = 1


@dataclass(frozen=True)
class VerifyReport:
    """What came of a verification.

    Attributes:
        bundle: As it was named.
        manifest_sha256: Of the manifest that was checked against; ``None`` where it is missing or altered.
        files: How many the manifest lists.
        findings: Files that are not as they were made; nothing is run where there is one.
        pixels: Golden pixels that become other tensors here.
        replays: Models on runtimes; empty where they were not to be run.
    """

    bundle: str
    manifest_sha256: str | None
    files: int
    findings: tuple[Finding, ...]
    pixels: tuple[str, ...] = ()
    replays: tuple[Replay, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything is as it was made, and every model that was run met its goldens."""
        return not self.findings and not self.pixels and all(each.passed for each in self.replays)

    def to_json(self) -> dict[str, Any]:
        """The document of ``verify --json``."""
        return {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "manifest_sha256": self.manifest_sha256,
            "files": self.files,
            "findings": [finding.to_json() for finding in self.findings],
            "pixels": list(self.pixels),
            "replays": [each.to_json() for each in self.replays],
            "passed": self.passed,
            "environment": description(),
        }


def verify_bundle(path: Path, *, run: bool = True) -> VerifyReport:
    """Check the files of a bundle, and run its goldens on whatever runtime this machine has.

    Args:
        path: A folder, or a ``.tar.zst`` file, of anybody.
        run: Whether the models are run once the files are whole.

    Raises:
        InputError: It is no bundle, points outside of itself, or is an archive that cannot be unpacked safely.
        UnavailableError: zstandard or disk space is missing.
    """
    with _folder(path) as folder:
        manifest, findings = examine(folder)
        digest = None if manifest is None else _digest(folder)
        files = 0 if manifest is None else len(manifest.files)
        report = VerifyReport(str(path), digest, files, tuple(findings))
        if manifest is None or findings or not run:
            return report
        pixels, replays = check_pixels(folder, manifest), replay(folder, manifest)
        return VerifyReport(str(path), digest, files, (), tuple(pixels), tuple(replays))


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """The bundle as a folder, unpacked where it is an archive."""
    if path.is_dir():
        yield path
        return
    if not path.exists():
        raise InputError(f"{path} does not exist: give a bundle's folder, or its {ARCHIVE_SUFFIX} file")
    with tempfile.TemporaryDirectory(prefix="resnet-export-") as made:
        folder = Path(made)
        unpack(path, folder)
        yield folder


def _digest(folder: Path) -> str:
    import hashlib

    from exporter.bundle.layout import MANIFEST

    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
