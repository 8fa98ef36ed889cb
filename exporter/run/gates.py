"""The bounds of ``[gates]`` held against what was measured, and what the documents say themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Final

from exporter.run.runtimes import products, subjects
from exporter.run.settings import Settings

Documents = Mapping[str, dict[str, Any]]
#: Less than any image out of any set that can be evaluated: the rounding of two fractions does not fail a gate.
_ROUNDING: Final = 1e-7


@dataclass(frozen=True)
class Gate:
    """One bound and one model.

    Attributes:
        gate: Name of the bound; ``parity``, ``evaluate`` or ``bench`` for a document's own verdict.
        model: Label of the model; ``None`` where none was measured.
        limit: What is allowed; ``None`` for a document's own verdict.
        found: What was measured; ``None`` where nothing could be.
        passed: Whether it holds.
        message: One sentence for people.
    """

    gate: str
    model: str | None
    limit: float | None
    found: float | None
    passed: bool
    message: str

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


def judge(settings: Settings, documents: Documents) -> tuple[Gate, ...]:
    """Every gate of a pipeline.

    Args:
        settings: Its bounds count for what a device will run, see :func:`exporter.run.runtimes.products`.
        documents: Of ``parity``, ``evaluate`` and ``bench``, as far as they were asked for.
    """
    bounds, who = settings["gates"], products(settings)
    found = list(_own(documents))
    if bounds["max_drop"] is not None:
        reference = subjects(settings)[0].label
        found += _max_drop(documents.get("evaluate", {}), bounds["max_drop"], who, reference)
    if bounds["min_sqnr_db"] is not None:
        found += _min_sqnr(documents.get("parity", {}), bounds["min_sqnr_db"], who)
    if bounds["max_latency_ms"] is not None:
        batch = settings["bench"]["batches"][0]
        found += _max_latency(documents.get("bench", {}), bounds["max_latency_ms"], who, batch)
    return tuple(found)


def annotated(documents: Documents, gates: Sequence[Gate]) -> dict[str, dict[str, Any]]:
    """The documents with the gates in their rows, so that a report shows a gate that fails as a failure."""
    found = {name: deepcopy(document) for name, document in documents.items()}
    for gate in gates:
        if gate.limit is None or gate.model is None:
            continue
        document = found[_DOCUMENT[gate.gate]]
        for row in document["results"]:
            if row["label"] != gate.model or row.get("simulated"):
                continue
            if not gate.passed:
                earlier = f"{row['finding']}; " if row.get("finding") else ""
                row |= {"passed": False, "finding": f"{earlier}{gate.message}"}
            elif row.get("passed", True) is None:
                row["passed"] = True
    return found


_DOCUMENT: Final = {"max_drop": "evaluate", "min_sqnr_db": "parity", "max_latency_ms": "bench"}


def _own(documents: Documents) -> Iterator[Gate]:
    """What the documents say without any bound of the pipeline."""
    for name, document in documents.items():
        bad = [(row["label"], row.get("finding") or row.get("error")) for row in _judged(document)]
        bad += [(row["label"], f"begins to differ at {row['first']}") for row in _drifted(document)]
        for label, finding in bad:
            yield Gate(name, label, None, None, False, f"{label}: {finding or 'it did not pass'}")
        if not bad:
            yield Gate(name, None, None, None, True, f"{len(document['results'])} results hold")


def _judged(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [row for row in document["results"] if row.get("passed") is False]
    return rows + list(document.get("failures") or ())


def _drifted(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document.get("drift") or () if not row["passed"]]


def _max_drop(document: Mapping[str, Any], limit: float, who: frozenset[str], reference: str) -> Iterator[Gate]:
    first = _rows(document, frozenset({reference}))
    rows = _rows(document, who) if first else []
    for row in rows:
        points = 100 * (first[0]["top1"] - row["top1"])
        passed = points <= limit + _ROUNDING
        told = f"loses {points:.2f} points of top-1, allowed are {limit:g}"
        yield _gate("max_drop", row["label"], limit, points, passed, told, f"{points - limit:.2f} points too many")
    yield from _unmeasured("max_drop", limit, rows)


def _min_sqnr(document: Mapping[str, Any], limit: float, who: frozenset[str]) -> Iterator[Gate]:
    rows = [row for row in _rows(document, who) if not row["simulated"]]
    for row in rows:
        found = row.get("sqnr_db")
        if found is None:
            yield Gate("min_sqnr_db", row["label"], limit, None, False, f"{row['label']}: {row['finding']}")
            continue
        told = f"has an SQNR of {found:.1f} dB, wanted are {limit:g}"
        passed = found >= limit
        yield _gate("min_sqnr_db", row["label"], limit, found, passed, told, f"{limit - found:.1f} dB too few")
    yield from _unmeasured("min_sqnr_db", limit, rows)


def _max_latency(document: Mapping[str, Any], limit: float, who: frozenset[str], batch: int) -> Iterator[Gate]:
    rows = [row for row in _rows(document, who) if row["batch"] == batch]
    for row in rows:
        found = row["p50_ms"]
        told = f"takes {found:.3g} ms for a batch of {batch}, allowed are {limit:g}"
        passed = found <= limit
        yield _gate("max_latency_ms", row["label"], limit, found, passed, told, f"{found - limit:.3g} ms too many")
    yield from _unmeasured("max_latency_ms", limit, rows)


def _rows(document: Mapping[str, Any], who: frozenset[str]) -> list[dict[str, Any]]:
    return [row for row in document.get("results") or () if row["label"] in who]


def _gate(name: str, label: str, limit: float, found: float, passed: bool, told: str, excess: str) -> Gate:
    return Gate(name, label, limit, found, passed, f"{label} {told}" + ("" if passed else f": {excess}"))


def _unmeasured(name: str, limit: float, rows: Sequence[object]) -> Iterator[Gate]:
    if not rows:
        yield Gate(name, None, limit, None, False, "no file that it is for could be measured")
