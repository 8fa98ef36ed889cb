"""``resnet-export lint``: what a target will make of a quantised file, before it is there."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from calibration.lint import Finding, Report

_EXAMPLES = """\b
Examples:
  resnet-export lint model_int8.onnx --target tensorrt
  resnet-export lint quantize_static.onnx --target onnxruntime --json
"""
_TARGETS = ["tensorrt", "onnxruntime", "openvino"]  # calibration.placement.TARGETS, which needs onnx
_NODES_SHOWN = 3
_FAILED = 1
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@click.command("lint", epilog=_EXAMPLES, short_help="Check a quantised file for a target.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--target", type=click.Choice(_TARGETS), required=True, help="Runtime that the file is meant for.")
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Check FILE, an ONNX file with QuantizeLinear and DequantizeLinear of any maker, for a target.

    An error is what the target refuses or computes wrongly, a warning what is slow or loses accuracy; either makes
    the exit code 1. For onnxruntime the counts are what its optimiser will turn into integer operators on an x86 CPU.
    """
    from calibration.lint import read_quantised, report

    found = report(read_quantised(given["file"]), given["target"])
    told = {"file": str(given["file"]), **found.to_json()}
    tell(document, given["quiet"], told, lambda console: _show(console, given["file"], found))
    if not found.clean:
        # Not ctx.exit(): outside click's standalone mode that is a return value, which nobody reads.
        sys.exit(_FAILED)


def _show(console: Console, file: Path, found: Report) -> None:
    from rich.text import Text

    console.print(Text.assemble((file.name, "bold"), f"  for {found.target}"), soft_wrap=True)
    console.print()
    console.print(_counts(found))
    for _, group in groupby(found.findings, key=lambda finding: finding.rule):
        console.print()
        _show_rule(console, list(group), found)
    console.print()
    if not found.findings:
        console.print(Text.assemble(("✓ ", "green"), "nothing found"))
        return
    parts = [f"{n} {what}{'s' * (n != 1)}" for what in ("error", "warning", "note") if (n := _number(found, what))]
    mark = ("✓ ", "green") if found.clean else ("✗ ", "red")
    console.print(Text.assemble(mark, ", ".join(parts)))


def _number(found: Report, severity: str) -> int:
    return sum(finding.severity == severity for finding in found.findings)


def _counts(found: Report) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("operator", style="cyan")
    table.add_column("integer", justify="right")
    table.add_column("of", justify="right")
    for name, count in found.counts.items():
        table.add_row(name, str(count.quantised), str(count.total))
    return table


def _show_rule(console: Console, findings: list[Finding], found: Report) -> None:
    from rich.padding import Padding
    from rich.text import Text

    first, times = findings[0], f"  {len(findings)} times" if len(findings) > 1 else ""
    head = Text.assemble((f"{first.severity:<7}", _STYLES[first.severity]), "  ", (first.rule, "bold"), (times, "dim"))
    console.print(head)
    shown = [f"{item.node}: {item.message}" if item.node else item.message for item in findings[:_NODES_SHOWN]]
    if len(findings) > _NODES_SHOWN:
        shown.append(f"and {len(findings) - _NODES_SHOWN} more: --json")
    lines = [Text(line) for line in shown]
    lines.append(Text.assemble(("why  ", "dim"), found.reasons[first.rule]))
    lines.append(Text.assemble(("do   ", "dim"), first.advice))
    for line in lines:
        console.print(Padding(line, (0, 0, 0, 9)))
