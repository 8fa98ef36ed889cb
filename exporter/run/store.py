"""What is known of earlier runs, beside their outputs: a record per stage, written after its files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from exporter.files import Output
from runtimes.errors import InputError, UnavailableError

_SCHEMA: Final = 1
_HELD: Final = {errno.EACCES, errno.EAGAIN}


@dataclass(frozen=True)
class Record:
    """A stage that has ended well.

    Attributes:
        stage: Its name.
        key: Of everything that decided the outputs.
        parts: The same, one by one, to tell later what has changed.
        outputs: Path relative to the output folder -> ``{"sha256", "bytes"}``.
        summary: What it did in a few words.
        notes: What the user should know.
        seconds: It took.
        skipped: Why it made nothing; ``None`` where it did.
    """

    stage: str
    key: str
    parts: Mapping[str, Any]
    outputs: Mapping[str, Mapping[str, Any]]
    summary: str
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    skipped: str | None = None
    schema: int = field(default=_SCHEMA)


class Store:
    """Records of the stages, and the lock of one output folder.

    Args:
        own: Folder of the bookkeeping.
    """

    def __init__(self, own: Path) -> None:
        self.own = own

    def read(self, stage: str) -> Record | None:
        """The record of a stage; ``None`` where there is none that can be used."""
        try:
            found = json.loads(self._path(stage).read_bytes())
            record = Record(**{**found, "notes": tuple(found["notes"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        whole = isinstance(record.parts, dict) and isinstance(record.outputs, dict)
        return record if whole and record.schema == _SCHEMA and record.stage == stage else None

    def write(self, record: Record) -> None:
        """Put a record in the place of an earlier one, in one step.

        Raises:
            InputError: The folder refuses it.
            UnavailableError: The disk is full.
        """
        path = self._path(record.stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        Output(path).commit((json.dumps(asdict(record), indent=2) + "\n").encode())

    def _path(self, stage: str) -> Path:
        return self.own / "stages" / f"{stage.replace(' ', '-')}.json"

    @contextmanager
    def lock(self, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Hold the folder for this run; another run waits, until this one ends however it ends.

        Args:
            on_wait: Hears who holds the folder, once, before this call waits.

        Raises:
            InputError: The folder cannot be made or written to.
            UnavailableError: Its file system has no locks.
        """
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            stream = (self.own / "lock").open("a+")
        except OSError as error:
            raise InputError(
                f"{self.own.parent} cannot be written ({error.strerror or error}): give another output.folder"
            ) from error
        with stream:
            try:
                _take(stream.fileno(), lambda: on_wait(_holder(self.own / "lock")))
            except OSError as error:
                raise UnavailableError(
                    f"{self.own.parent} cannot be locked ({error.strerror or error}): give an output.folder on a disk "
                    "of this machine"
                ) from error
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            yield


def _take(descriptor: int, on_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            raise
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _holder(lock: Path) -> str:
    try:
        number = lock.read_text(encoding="utf-8").strip()
    except OSError:
        number = ""
    return f"process {number}" if number.isdecimal() else "another process"


def sweep(own: Path, outputs: Iterator[Path]) -> None:
    """Remove the halves of files that a killed run left beside them; only while the folder is locked.

    Args:
        own: Folder of the bookkeeping, where every half is ours.
        outputs: Files that a run of this folder writes.
    """
    for found in own.rglob(".*.part"):
        found.unlink(missing_ok=True)
    for path in outputs:
        half = re.compile(rf"\.{re.escape(path.name)}\.\d+\.part")
        for found in path.parent.glob(".*.part"):
            if half.fullmatch(found.name):
                found.unlink(missing_ok=True)
