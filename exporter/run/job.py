"""All of a run: the plan, the stages, the gates. One function each for a plan and for the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from exporter.run.gates import Gate, judge
from exporter.run.hashes import Hashes
from exporter.run.layout import Layout
from exporter.run.prove import read_documents
from exporter.run.rows import stages
from exporter.run.runner import Listener, Step, execute, plan
from exporter.run.runtimes import DISTRIBUTIONS, subjects
from exporter.run.settings import Settings
from exporter.run.store import Store, sweep
from exporter.run.versions import version
from runtimes.errors import missing_package

SCHEMA: Final = 1
_PROOFS: Final = ("parity", "evaluate", "bench")


@dataclass(frozen=True)
class RunReport:
    """What a run did, or would do.

    Attributes:
        settings: What was asked for.
        steps: Of the stages, in order.
        gates: What was held against its bound; empty in a plan.
        dry: Whether this is a plan.
    """

    settings: Settings
    steps: tuple[Step, ...]
    gates: tuple[Gate, ...] = ()
    dry: bool = False

    @property
    def passed(self) -> bool | None:
        """Whether every gate held; ``None`` in a plan."""
        return None if self.dry else all(gate.passed for gate in self.gates)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the stages have to say, each sentence once."""
        # The last first: what was left out counts for more than what was assumed on the way.
        said = [note for step in reversed(self.steps) for note in _said(step)]
        return tuple(dict.fromkeys(said))

    def to_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        return {
            "schema": SCHEMA,
            "pipeline": str(self.settings.file),
            "folder": str(self.settings.folder),
            "dry_run": self.dry,
            "stages": [step.to_json() for step in self.steps],
            "gates": [gate.to_json() for gate in self.gates],
            "passed": self.passed,
        }


def planned(settings: Settings) -> RunReport:
    """What a run would do now; writes nothing.

    Args:
        settings: From :func:`exporter.run.reading.read_pipeline`.
    """
    layout = Layout(settings.folder)
    hashes = Hashes(layout.own / "hashes.json")
    return RunReport(settings, tuple(plan(stages(settings), Store(layout.own), hashes, layout.folder)), dry=True)


def run(
    settings: Settings, listener: Listener | None = None, on_wait: Callable[[str], None] = lambda holder: None
) -> RunReport:
    """Do what has to be done of a pipeline, and judge what was measured.

    Args:
        settings: From :func:`exporter.run.reading.read_pipeline`.
        listener: Hears of each stage.
        on_wait: Hears who holds the output folder where this run has to wait for it.

    Returns:
        What was done; a gate that failed is told and does not raise.

    Raises:
        ResnetExportError: A stage failed; those before it are kept, and the next run goes on from there.
        UnavailableError: A runtime that was asked for and is not optional is not installed.
    """
    _require_runtimes(settings)
    layout = Layout(settings.folder)
    store = Store(layout.own)
    with store.lock(on_wait):
        todo = stages(settings)
        sweep(layout.own, (path for stage in todo for path in stage.outputs))
        hashes = Hashes(layout.own / "hashes.json")
        try:
            steps = execute(todo, store, hashes, layout.folder, listener)
        finally:
            hashes.save()
        gates = judge(settings, read_documents(settings, [each.name for each in todo if each.name in _PROOFS]))
    return RunReport(settings, tuple(steps), gates)


def _require_runtimes(settings: Settings) -> None:
    """Refuse before the work what would be refused after it."""
    from runtimes.rows import ROWS

    for subject in subjects(settings):
        if not subject.optional and version(DISTRIBUTIONS[subject.runtime]) is None:
            raise missing_package(DISTRIBUTIONS[subject.runtime][0], ROWS[subject.runtime].extra)


def _said(step: Step) -> Sequence[str]:
    record = step.record
    if record is None:
        return ()
    return (f"{step.stage} is left out: {record.skipped}",) if record.skipped else record.notes
