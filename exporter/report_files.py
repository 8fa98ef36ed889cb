"""Where reports of the proof commands go, and what is drawn from their documents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exporter.files import Output, check_output, commit_together, reserve
from runtimes.errors import InputError, first_line

if TYPE_CHECKING:
    from exporter.report.model import Report

KINDS: Final = ("html", "junit", "markdown")
DOCUMENTS: Final = ("parity", "evaluate", "bench")


@contextmanager
def reserved(given: Mapping[str, Any], inputs: Sequence[str | Path] = ()) -> Iterator[dict[str, Output]]:
    """Make sure, before any long work, that the reports can be written.

    Args:
        given: Path by kind of report, ``None`` for none.
        inputs: Files that are read, and must not be written over.

    Raises:
        InputError: A path cannot become a file, or two are the same.
    """
    wanted: dict[str, Path] = {kind: given[kind] for kind in KINDS if given.get(kind) is not None}
    read = [path for path in map(Path, inputs) if path.is_file()] if wanted else []
    seen: list[Path] = []
    for kind, path in wanted.items():
        check_output(path, read, f"--{kind}")
        if path.resolve() in seen:
            raise InputError(f"{path} is to be two reports: give each a file of its own")
        seen.append(path.resolve())
    with ExitStack() as stack:
        yield {kind: stack.enter_context(reserve(path, f"--{kind}")) for kind, path in wanted.items()}


def write_reports(
    places: Mapping[str, Output],
    *,
    title: str | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    documents: Mapping[str, dict[str, Any]],
) -> None:
    """Write every report that was asked for.

    Args:
        places: From :func:`reserved`.
        title: What they are about; ``None``: the reference's file.
        layers: Ranges and SQNR by layer.
        documents: By command, of :data:`DOCUMENTS`.

    Raises:
        UnavailableError: The disk is full.
    """
    if not places:
        return
    report = report_of(documents, date.today().isoformat(), title, layers)
    contents: list[tuple[Output, bytes]] = []
    if "html" in places:
        from exporter.report.html import render_html

        contents.append((places["html"], _encoded(render_html(report))))
    if "junit" in places:
        from exporter.report.junit import render_junit

        contents.append((places["junit"], render_junit(report)))
    if "markdown" in places:
        from exporter.report.markdown import render_markdown

        contents.append((places["markdown"], _encoded(render_markdown(report))))
    commit_together(contents)


def _encoded(text: str) -> bytes:
    """In UTF-8; what a file name holds beside it is shown as its bytes."""
    return text.encode("utf-8", "backslashreplace")


def report_of(
    documents: Mapping[str, dict[str, Any]],
    made: str | None,
    title: str | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
) -> Report:
    """The report of documents of one model.

    Args:
        documents: By command, of :data:`DOCUMENTS`.
        made: Date, as text; ``None``: none.
        title: What it is about; ``None``: the reference's file.
        layers: Ranges and SQNR by layer.

    Raises:
        InputError: A document is of another version, or no document of its command.
    """
    from exporter.report.model import Report, check_document
    from exporter.thumbnails import thumbnails

    for name, document in documents.items():
        check_document(name, document)
    evaluated = documents.get("evaluate") or {}
    return Report(
        parity=documents.get("parity"),
        evaluate=documents.get("evaluate"),
        bench=documents.get("bench"),
        title=title or _title(documents),
        date=made,
        layers=tuple(layers),
        stages=tuple(_stages(documents.get("parity"))),
        images=tuple(thumbnails(evaluated.get("results") or (), upright=_upright(evaluated))),
    )


def read_documents(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Documents that the commands wrote with ``--json``, by command.

    Raises:
        InputError: One cannot be read, is of no command, or of the same as another.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read ({first_line(error)}): give what --json printed") from error
        command = document.get("command") if isinstance(document, dict) else None
        if command not in DOCUMENTS:
            raise InputError(f"{path} is no document of {', '.join(DOCUMENTS)}: give what --json printed of one")
        if command in found:
            raise InputError(f"{path} is a second document of {command}: a report takes one of each")
        found[command] = document
    return found


def _upright(evaluated: Mapping[str, Any]) -> bool:
    """Whether the models saw photographs as their EXIF says."""
    from exporter.report import text

    return text.mapping(text.mapping(evaluated, "data"), "preprocessing").get("orientation") != "none"


def _title(documents: Mapping[str, dict[str, Any]]) -> str:
    parity = documents.get("parity")
    if parity:
        return str(_reference(parity).get("file") or "Export report")
    rows = next((document.get("results") for document in documents.values()), None) or [{}]
    return str(rows[0].get("file") or "Export report")


def _stages(parity: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The way from the reference over every model that was held against it."""
    from exporter.report import text

    if parity is None:
        return
    reference = _reference(parity)
    yield {"name": text.label_of(reference), "sqnr_db": None, "passed": True, "note": "the reference"}
    for row in parity["results"]:
        if not row.get("simulated"):
            note = row.get("finding") or f"{text.percent(row.get('top1_agreement'))} agreement"
            passed = row.get("passed") is True
            yield {"name": text.label_of(row), "sqnr_db": row.get("sqnr_db"), "passed": passed, "note": note}


def _reference(parity: Mapping[str, Any]) -> dict[str, Any]:
    found = parity.get("reference")
    return found if isinstance(found, dict) else {}
