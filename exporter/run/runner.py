"""Does the stages that have to be done, in order, and says why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from exporter.run.hashes import Hashes
from exporter.run.stage import Made, Stage, key_of
from exporter.run.store import Record, Store
from runtimes.errors import InputError, UnavailableError

Status = Literal["cached", "to do", "done", "skipped"]
_SHORT: Final = 12  # characters of a hash that people see


@dataclass(frozen=True)
class Step:
    """A stage of a run, and what became of it.

    Attributes:
        stage: Its name.
        status: ``to do`` in a plan only; ``skipped`` where it made nothing, as this machine lacks something.
        cached: Whether it was done by an earlier run, made or skipped.
        reasons: Why it had to be done; empty where it had not.
        record: What is known of it; ``None`` in a plan for one that is to be done.
    """

    stage: str
    status: Status
    cached: bool
    reasons: tuple[str, ...]
    record: Record | None = None

    def to_json(self) -> dict[str, Any]:
        """The row of the run's document."""
        record = self.record
        outputs = record.outputs if record else {}
        return {
            "stage": self.stage,
            "status": self.status,
            "cached": self.cached,
            "reasons": list(self.reasons),
            "summary": record.summary if record else None,
            "outputs": [{"path": path, **facts} for path, facts in outputs.items()],
            "notes": list(record.notes) if record else [],
            "skipped": record.skipped if record else None,
            "seconds": round(record.seconds, 3) if record else None,
        }


class Listener:
    """Hears of stages; this one keeps quiet."""

    def started(self, stage: Stage) -> None:
        """A stage begins."""

    def ended(self, step: Step) -> None:
        """A stage has been done, or need not be."""


def plan(stages: Sequence[Stage], store: Store, hashes: Hashes, folder: Path) -> list[Step]:
    """What a run would do; nothing is done and nothing is written.

    A stage that reads what is to be made anew is listed as to do. A run may find that the same bytes come out, and then
    need not do it.

    Args:
        stages: In order: a stage reads what those before it made.
        store: Records of earlier runs.
        hashes: Of files.
        folder: The output folder.
    """
    pending: dict[Path, str] = {}
    found = []
    for stage in stages:
        record, reasons = _known(stage, store, hashes, folder, frozenset(pending))
        if record is not None:
            makers = dict.fromkeys(pending[each.path] for each in stage.inputs if each.path in pending)
            waits = (f"{', '.join(makers)} may change what it reads",) if makers else ()
            reasons = (*waits, *reasons)
        if reasons:
            pending |= dict.fromkeys(stage.outputs, stage.name)
            found.append(Step(stage.name, "to do", False, reasons))
        else:
            found.append(_cached(stage, record))
    return found


def execute(
    stages: Sequence[Stage], store: Store, hashes: Hashes, folder: Path, listener: Listener | None = None
) -> list[Step]:
    """Do what has to be done; only while the folder is locked.

    Each stage's record is written after its files, so that a run that is killed at any moment is gone on with.

    Args:
        stages: In order: a stage reads what those before it made.
        store: Records of earlier runs.
        hashes: Of files.
        folder: The output folder.
        listener: Hears of each stage.

    Raises:
        ResnetExportError: A stage failed; those before it are kept.
    """
    listener = listener or Listener()
    found = []
    for stage in stages:
        record, reasons = _known(stage, store, hashes, folder)
        if reasons:
            listener.started(stage)
            record = _do(stage, hashes, folder)
            store.write(record)
            step = Step(stage.name, "skipped" if record.skipped else "done", False, reasons, record)
        else:
            step = _cached(stage, record)
        listener.ended(step)
        found.append(step)
    return found


def _cached(stage: Stage, record: Record | None) -> Step:
    skipped = record is not None and record.skipped is not None
    return Step(stage.name, "skipped" if skipped else "cached", True, (), record)


def _do(stage: Stage, hashes: Hashes, folder: Path) -> Record:
    parts = stage.parts(hashes)
    begin = time.perf_counter()
    skipped, made = None, Made("")
    try:
        made = stage.function()
    except UnavailableError as error:
        if not stage.optional:
            raise
        skipped = str(error)
        for path in stage.outputs:  # of an earlier run, which had what this one lacks
            path.unlink(missing_ok=True)
    outputs = {} if skipped else {_name(path, folder): _facts(stage, path, hashes) for path in stage.outputs}
    return Record(
        stage.name, key_of(parts), parts, outputs, made.summary, made.notes, time.perf_counter() - begin, skipped
    )  # fmt: skip


def _facts(stage: Stage, path: Path, hashes: Hashes) -> dict[str, Any]:
    digest = hashes.file(path)
    if digest is None:
        raise InputError(f"{stage.name} has not left {path}: is something else changing the output folder?")
    return {"sha256": digest, "bytes": path.stat().st_size}


def _known(
    stage: Stage, store: Store, hashes: Hashes, folder: Path, pending: frozenset[Path] = frozenset()
) -> tuple[Record | None, tuple[str, ...]]:
    """The record of an earlier run, and why the stage has to be done all the same."""
    record = store.read(stage.name)
    if record is None:
        return None, ("it has not been done yet",)
    parts = stage.parts(hashes)
    for each in stage.inputs:
        if each.path in pending:  # what it is now says nothing of what it will be
            parts["input"][each.name] = record.parts.get("input", {}).get(each.name)
    reasons = list(_changes(record.parts, parts))
    if not reasons and record.key != key_of(parts):
        reasons.append("its record does not fit itself")
    if record.skipped is None:
        reasons += [reason for path in stage.outputs if (reason := _spoilt(path, folder, record, hashes))]
    return record, tuple(reasons)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed, in words."""
    told = []
    for group in now:
        old, new = before.get(group) or {}, now[group]
        for name in sorted(old.keys() | new.keys()):
            a, b = old.get(name), new.get(name)
            if a != b:
                told.append(f"{name} changed" if group == "input" else f"{name}: {_word(a)} → {_word(b)}")
    return told


def _word(value: object) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _spoilt(path: Path, folder: Path, record: Record, hashes: Hashes) -> str | None:
    name = _name(path, folder)
    digest = hashes.file(path)
    if digest is None:
        return f"{name} is missing"
    wanted = record.outputs.get(name, {}).get("sha256")
    return None if digest == wanted else f"{name} was altered ({digest[:_SHORT]}…)"


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
