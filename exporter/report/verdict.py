"""What the documents say together: an outcome per result, and one sentence over all of them.

A document's own ``passed`` is believed only when it says no: a result that failed fails the report whatever the
document holds at its top, and a document that failed without naming a result fails it as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from exporter.report import text

Status = Literal["passed", "failed", "error", "measured"]
Document = dict[str, Any] | None


@dataclass(frozen=True)
class Outcome:
    """One result of one document, or a gate over a whole document.

    Attributes:
        document: ``parity``, ``evaluate`` or ``bench``.
        name: Label of the result; ``gate`` for the document as a whole.
        status: ``measured`` where nothing was judged.
        finding: What did not hold, or why the result could not be had; empty for the others.
        seconds: How long it took; None where the document does not tell.
    """

    document: str
    name: str
    status: Status
    finding: str = ""
    seconds: float | None = None


class Fact(NamedTuple):
    """A number that a reviewer looks for: what it is, its value, and what it is out of."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """The answer of the report.

    Attributes:
        status: ``unproven`` where no document judges anything.
        headline: One sentence for a reader who reads nothing else.
        detail: The numbers behind it, as a sentence; may be empty.
        facts: The same and more, one by one.
    """

    status: Literal["passed", "failed", "unproven"]
    headline: str
    detail: str
    facts: tuple[Fact, ...]


def outcomes_of(name: str, document: Document) -> tuple[Outcome, ...]:
    """Every result of a document as an outcome, and the gate over it where the results do not speak for it.

    Args:
        name: ``parity``, ``evaluate`` or ``bench``.
        document: The document; None gives no outcomes.
    """
    if document is None:
        return ()
    found = [_outcome(name, row) for row in text.rows_of(document)]
    found += [_failed(name, row) for row in text.rows_of(document, "failures")]
    found += [_drifted(name, row) for row in text.rows_of(document, "drift") if text.rows_of(row, "layers")]
    if "passed" not in document or (document["passed"] is None and name != "parity"):
        return tuple(found)
    passed = document["passed"] is True and bool(found)
    told = any(outcome.status in ("failed", "error") for outcome in found)
    if told or (passed and name == "parity"):
        return tuple(found)
    finding = "" if passed else str(document.get("finding") or _silent(name, bool(found)))
    return (*found, Outcome(name, "gate", "passed" if passed else "failed", finding))


def judge(parity: Document, evaluate: Document, bench: Document) -> Verdict:
    """The verdict over all documents, of which each may be missing."""
    found = [
        outcome
        for name, document in (("parity", parity), ("evaluate", evaluate), ("bench", bench))
        for outcome in outcomes_of(name, document)
    ]
    bad = [outcome for outcome in found if outcome.status in ("failed", "error")]
    judged = [outcome for outcome in found if outcome.status == "passed"]
    facts = _facts(parity, evaluate, bench)
    detail = _detail(parity, evaluate)
    if bad:
        return Verdict("failed", _failure(found, bad), detail, facts)
    if judged:
        return Verdict("passed", _success(parity, judged), detail, facts)
    headline = "Measured, not judged: nothing here was compared with a reference."
    return Verdict("unproven", headline if found else "This report holds no results.", detail, facts)


def _outcome(name: str, row: dict[str, Any]) -> Outcome:
    seconds = text.number(row.get("seconds"))
    label = text.label_of(row)
    if row.get("error"):
        return Outcome(name, label, "error", str(row["error"]), seconds)
    if row.get("passed") is None and name != "parity":
        return Outcome(name, label, "measured", "", seconds)
    if row.get("passed") is True:
        return Outcome(name, label, "passed", "", seconds)
    return Outcome(name, label, "failed", str(row.get("finding") or "it did not pass"), seconds)


def _failed(name: str, row: dict[str, Any]) -> Outcome:
    """What could not be measured at all."""
    batch = f"batch {row['batch']}: " if row.get("batch") else ""
    return Outcome(name, text.label_of(row), "error", f"{batch}{row.get('error') or 'it could not be run'}")


def _drifted(name: str, row: dict[str, Any]) -> Outcome:
    """A model whose layers were looked at."""
    label, first = f"{text.label_of(row)}{text.DRIFT}", row.get("first")
    first = first.get("layer") if isinstance(first, dict) else first
    if first or row.get("passed") is False:
        return Outcome(name, label, "failed", f"begins to differ at {first}" if first else "it did not pass")
    return Outcome(name, label, "passed")


def _silent(name: str, any_results: bool) -> str:
    return f"the {name} gate did not pass" if any_results else f"the {name} document holds no results"


def _failure(found: list[Outcome], bad: list[Outcome]) -> str:
    gates = [outcome for outcome in bad if outcome.name == "gate"]
    names = list(dict.fromkeys(_model(outcome) for outcome in bad if outcome.name != "gate"))
    if not names:
        return f"Do not use these models yet: {gates[0].finding}."
    total = len({_model(outcome) for outcome in found if outcome.name != "gate"})
    failed = {_model(outcome) for outcome in bad if outcome.status == "failed"}
    which = text.listing([text.short(name) for name in names])
    if not failed:
        return f"Not proven: {len(names)} of {text.plural(total, 'runtime')} could not be run ({which})."
    if len(names) == total:
        return f"Do not use {'this runtime' if total == 1 else f'any of the {total} runtimes'}: {which}."
    return f"Do not use {len(names)} of {text.plural(total, 'runtime')}: {which}."


def _model(outcome: Outcome) -> str:
    """Whose outcome it is: an INT8 model has two, and one more where its layers were looked at."""
    return outcome.name.removesuffix(text.DRIFT).removesuffix(text.AS_SIMULATED)


def _success(parity: Document, judged: list[Outcome]) -> str:
    compared = {_model(outcome) for outcome in judged if outcome.document == "parity"}
    if not compared:
        return "Accuracy holds: every runtime stays within what is allowed."
    reference = text.mapping(parity, "reference").get("runtime") or "the reference"
    subject = "The runtime computes" if len(compared) == 1 else f"All {len(compared)} runtimes compute"
    return f"{subject} the same as {reference}, within the tolerance of each."


def _detail(parity: Document, evaluate: Document) -> str:
    sentences = []
    worst = lowest(text.rows_of(parity), "top1_agreement")
    if worst:
        sentences.append(
            f"In the worst case, {text.percent(worst['top1_agreement'])} of {text.count(worst.get('n'))} images get "
            f"the same answer ({_named(worst)})."
        )
    rows = text.rows_of(evaluate)
    drop = _largest_drop(rows)
    if drop is not None:
        points = 100 * drop
        sentences.append(
            f"Top-1 accuracy falls by {points:.2f} points at most." if points > 0 else "Top-1 accuracy does not fall."
        )
    return " ".join(sentences)


def _facts(parity: Document, evaluate: Document, bench: Document) -> tuple[Fact, ...]:
    facts = []
    rows = text.rows_of(parity)
    if worst := lowest(rows, "sqnr_db"):
        facts.append(Fact("Lowest SQNR", text.decibels(worst["sqnr_db"]), _named(worst)))
    if worst := lowest(rows, "top1_agreement"):
        bounds = text.interval(worst.get("top1_ci95"))
        note = _named(worst) if bounds == text.MISSING else f"95 % interval {bounds}"
        facts.append(Fact("Lowest agreement", text.percent(worst["top1_agreement"]), note))
    if worst := lowest(text.rows_of(evaluate), "top1"):
        bounds = text.interval(worst.get("top1_ci95"))
        note = _named(worst) if bounds == text.MISSING else f"95 % interval {bounds}"
        facts.append(Fact("Lowest top-1", text.percent(worst["top1"]), note))
    if best := _fastest(text.rows_of(bench)):
        facts.append(Fact("Fastest against the first", f"{best[0]:.2f}× the time", best[1]))
    measured = text.rows_of(bench) or rows
    if smallest := lowest(measured, "bytes"):
        facts.append(Fact("Smallest file", text.size(smallest["bytes"]), _named(smallest)))
    return tuple(facts)


def lowest(rows: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """The row with the smallest finite value of a key; the first one among equals; None where there is none."""
    known = [row for row in rows if not row.get("error") and text.number(row.get(key)) is not None]
    return min(known, key=lambda row: float(row[key]), default=None)


def _largest_drop(rows: list[dict[str, Any]]) -> float | None:
    values = [value for row in rows if (value := text.number(row.get("top1"))) is not None and not row.get("error")]
    return values[0] - min(values) if len(values) > 1 else None


def _fastest(rows: list[dict[str, Any]]) -> tuple[float, str] | None:
    known = [
        (value, f"{_named(row)}, batch {text.plain(row.get('batch'))}")
        for row in rows
        if (against := text.mapping(row, "ratio_to_first")).get("faster") is True
        and (value := text.number(against.get("ratio"))) is not None
    ]
    return min(known, key=lambda item: item[0], default=None)


def _named(row: dict[str, Any]) -> str:
    return text.short(text.label_of(row))
