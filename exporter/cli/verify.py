"""``resnet-export verify``: is a bundle whole, and does this machine compute what it promises?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from exporter.cli.options import output_options

if TYPE_CHECKING:
    from exporter.bundle.verify import VerifyReport

_EXAMPLES = """\b
Examples:
  resnet-export verify build/bundle
  resnet-export verify r50.tar.zst --no-run --json
"""


@click.command("verify", epilog=_EXAMPLES, short_help="Check a bundle: its files, and what it computes here.")
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option("--run/--no-run", default=True, show_default=True, help="Run the goldens, once the files are whole.")
@output_options
@click.pass_obj
def command(document: TextIO | None, /, bundle: Path, run: bool, quiet: bool, **_: object) -> None:
    """Check the files of BUNDLE, a folder or a .tar.zst file, and run its goldens on what this machine has.

    Every file that is missing, altered or extra is named. The exit code is 1 where one is, or where a model computes
    something else than where the bundle was made.
    """
    from exporter.bundle.verify import verify_bundle

    report = verify_bundle(bundle, run=run)
    if document is not None:
        from exporter.cli.stdout import write_document

        write_document(document, report.to_json())
    elif not quiet or not report.passed:
        _show(report, run)
    if not report.passed:
        raise click.exceptions.Exit(1)


def _show(report: VerifyReport, run: bool) -> None:
    for finding in report.findings:
        click.echo(f"{finding.fault:<8} {finding.path}: {finding.detail}")
    for path in report.pixels:
        click.echo(f"differs  {path}: its pixels become another tensor here")
    for each in report.replays:
        title = f"{each.model} on {each.runtime}"
        if each.skipped or each.error:
            click.echo(f"{title}: {'not run: ' + each.skipped if each.skipped else 'FAILED: ' + str(each.error)}")
        for row in each.rows:
            mark = "ok" if row["passed"] else f"FAILED: {row['finding']}"
            click.echo(f"{title}, against the {row['against']}: {row['sqnr_db']:.1f} dB  {mark}")
    if report.passed:
        ran = len({each.model for each in report.replays if each.rows})
        told = f"{ran} models compute what they did where it was made" if run else "no model was run"
        click.echo(f"all {report.files} files are whole; {told}")
    else:
        click.echo("this bundle must not be used as it is", err=True)
