"""SHA-256 of files, remembered while nothing says that they have changed.

A hash is used again for a file of the same size, times, inode and device. The times are those of the content and of
the inode (``mtime``, ``ctime``): a tool can set the first back, and not the second. A file that was changed in the tick
of the clock in which it was read looks unchanged (git calls it racily clean, Documentation/technical/racy-git.txt):
a hash is remembered only where the file had been left alone for some seconds when it was read.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from exporter.files import Output, file_sha256
from runtimes.errors import ResnetExportError

_VERSION: Final = 1
#: Coarser than the clock of any file system in use (FAT: two seconds).
_SETTLED_NS: Final = 3_000_000_000


class Hashes:
    """Hashes of files by path.

    Args:
        store: Where they are remembered; ``None``: nowhere.
    """

    def __init__(self, store: Path | None = None) -> None:
        self._store = store
        self._known: dict[str, list[Any]] = _read(store)
        self._used: set[str] = set()
        self._sets: dict[Path, str | None] = {}

    def file(self, path: Path) -> str | None:
        """The hash of a file's bytes, 64 hex digits; ``None`` where there is no file that can be read."""
        name = os.path.abspath(path)  # noqa: PTH100  (a link is not followed: it can be turned elsewhere)
        begin = time.time_ns()
        self._used.add(name)
        try:
            seen = _seen(path)
            known = self._known.get(name)
            if known is not None and known[0] == seen:
                return str(known[1])
            digest = file_sha256(path)
            unmoved = _seen(path) == seen
        except OSError:
            return None
        if unmoved and max(seen[1], seen[2]) + _SETTLED_NS < begin:
            self._known[name] = [seen, digest]
        return digest

    def images(self, root: Path) -> str | None:
        """One hash of a set of images: contents, labels and names in order; ``None`` where there is no such set.

        A set is looked at once: several stages read it, and it may be large. What changes it later is seen by the next
        run, as it differs from what this one recorded.
        """
        if root not in self._sets:
            self._sets[root] = self._images(root)
        return self._sets[root]

    def _images(self, root: Path) -> str | None:
        from calibration.listing import find_images

        try:
            files = find_images(root)
        except ResnetExportError:
            return None
        base = root if root.is_dir() else root.parent
        digest = hashlib.sha256()
        for file in files:
            name = os.path.relpath(file.path, base)
            row = "" if file.row is None else str(file.row)
            digest.update(f"{self.file(file.path)}\t{file.label}\t{row}\t{name}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def code(self, module: str) -> str | None:
        """One hash of the sources around a Python module: all of its package; nothing is imported."""
        top = module.partition(".")[0]
        found = importlib.machinery.PathFinder.find_spec(top, [*sys.path, str(Path.cwd())])
        if found is None or found.origin is None:
            return None
        origin = Path(found.origin)
        sources = sorted(origin.parent.rglob("*.py")) if found.submodule_search_locations else [origin]
        return self.tree(origin.parent, sources)

    def tree(self, root: Path, files: list[Path]) -> str:
        """One hash of files and their names relative to a folder."""
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{self.file(path)}\t{path.relative_to(root).as_posix()}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def save(self) -> None:
        """Remember those that were asked for, and forget the others: their files may be gone."""
        files = {name: self._known[name] for name in sorted(self._used & self._known.keys())}
        if self._store is not None and files != _read(self._store):
            document = {"version": _VERSION, "files": files}
            Output(self._store).commit(json.dumps(document, separators=(",", ":")).encode())


def _seen(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _read(store: Path | None) -> dict[str, list[Any]]:
    """What was remembered; a damaged file is as good as none."""
    try:
        document = json.loads(store.read_bytes()) if store is not None else {}
        files = document["files"] if document.get("version") == _VERSION else {}
        return {
            name: [list(map(int, seen)), str(digest)]
            for name, (seen, digest) in files.items()
            if len(seen) == 5 and len(digest) == 64
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
