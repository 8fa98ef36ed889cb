"""``resnet-export report``: one report of what parity, evaluate and bench found."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

import click

from exporter.cli.options import output_options
from exporter.cli.proof import report_options

_EXAMPLES = """\b
Examples:
  resnet-export parity … --json > parity.json; resnet-export bench … --json > bench.json
  resnet-export report parity.json evaluate.json bench.json --html report.html --junit report.xml
"""


@click.command("report", epilog=_EXAMPLES, short_help="Make one report of several documents.")
@click.argument("documents", nargs=-1, required=True, metavar="DOCUMENT...", type=click.Path(path_type=Path))
@click.option("--title", metavar="TEXT", help="What it is about; default: the reference's file.")
@report_options
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Make one report of the DOCUMENTs that parity, evaluate and bench printed with --json, at most one of each.

    The exit code is that of the verdict: 1 where one of them failed.
    """
    from exporter.report_files import KINDS, read_documents, report_of, reserved, write_reports

    if not any(given[kind] for kind in KINDS) and document is None:
        raise click.UsageError("give --html FILE, --junit FILE or --markdown FILE, or --json for the verdict alone")
    read = read_documents(given["documents"])
    with reserved(given, given["documents"]) as places:
        write_reports(places, title=given["title"], documents=read)
    verdict = report_of(read, None).verdict
    if document is not None:
        from exporter.cli.stdout import write_document

        write_document(document, {"status": verdict.status, "verdict": verdict.headline, "documents": sorted(read)})
    elif not given["quiet"]:
        click.echo(verdict.headline)
    if verdict.status == "failed":
        raise click.exceptions.Exit(1)
