"""The report as a value: the documents it is made of, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from exporter.report.points import TradeOff, trade_off
from exporter.report.verdict import Outcome, Verdict, judge, outcomes_of
from runtimes.errors import InputError

SCHEMA: Final = 1
"""Version of the documents that are read here."""


@dataclass(frozen=True)
class Report:
    """Documents of the proof commands, each of which may be missing, and what else is known about the model.

    Attributes:
        parity: Document of ``parity``, with its drift; see ``schemas/parity.json``.
        evaluate: Document of ``evaluate``; its first result is the reference; see ``schemas/evaluate.json``.
        bench: Document of ``bench``; see ``schemas/bench.json``.
        title: What the report is about, for example the name of the model.
        date: When it was made, as text; None leaves it out. No clock is read: the same report gives the same bytes.
        stages: The way of the model, ``{"name", "sqnr_db", "passed", "note"}`` each, in order.
        layers: Per layer ``{"layer", "low", "high", "scale", "sqnr_db"}``, in order of depth.
        images: Images whose answer changed, ``{"image", "file", "label", "from", "to"}`` and optionally ``runtime``
            each; ``image`` is a ``data:`` URI of a PNG or JPEG.

    Raises InputError for a document of another version, or one that is no object with a list of results.
    """

    parity: dict[str, Any] | None = None
    evaluate: dict[str, Any] | None = None
    bench: dict[str, Any] | None = None
    title: str = "Export report"
    date: str | None = None
    stages: tuple[Mapping[str, Any], ...] = ()
    layers: tuple[Mapping[str, Any], ...] = ()
    images: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name, document in self.documents():
            check_document(name, document)
        for field in ("stages", "layers", "images"):
            _check_rows(field, getattr(self, field))

    def documents(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """The documents that there are, with the names of their commands."""
        named = (("parity", self.parity), ("evaluate", self.evaluate), ("bench", self.bench))
        return tuple((name, document) for name, document in named if document is not None)

    def outcomes(self) -> tuple[Outcome, ...]:
        """An outcome for every result and every gate."""
        return tuple(outcome for name, document in self.documents() for outcome in outcomes_of(name, document))

    @property
    def verdict(self) -> Verdict:
        """The one answer over all documents."""
        return judge(self.parity, self.evaluate, self.bench)

    @property
    def trade_off(self) -> TradeOff:
        """Accuracy against latency against size."""
        return trade_off(self.parity, self.evaluate, self.bench)


def check_document(name: str, document: object) -> None:
    """Refuse what cannot be read as a document of a command.

    Args:
        name: The command.
        document: What ``json.load`` gives.

    Raises:
        InputError: It is of another version, or no object with a list of results.
    """
    if not isinstance(document, dict):
        raise InputError(f"{name}: received {type(document).__name__}, expected the JSON object that {name} wrote")
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{name}: received schema {document.get('schema')!r}, expected {SCHEMA}: run {name} again with this version"
        )
    if not isinstance(document.get("results"), list):
        raise InputError(f"{name}: the document has no list of results; give the file that {name} wrote")
    _check_rows(f"{name}: results", document["results"])


def _check_rows(name: str, rows: Iterable[object]) -> None:
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}[{index}]: received {type(row).__name__}, expected an object")
