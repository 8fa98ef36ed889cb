"""``resnet-export layers``: what an engine really runs, in which precision, and why INT8 may be no faster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options, verbose
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from exporter.layers import LayerReport

_EXAMPLES = """\b
Examples:
  resnet-export layers model.engine
  resnet-export layers model.engine --verbose
  trtexec --loadEngine=model.engine --profilingVerbosity=detailed --exportLayerInfo=layers.json
  resnet-export layers layers.json --model model.onnx
"""
_SHOWN = 12


@click.command("layers", epilog=_EXAMPLES, short_help="Show what an engine runs, layer by layer.")
@click.argument("engine", metavar="ENGINE", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), metavar="MODEL.onnx",
              help="What it was built from; default: as OUT.engine.json tells.")  # fmt: skip
@click.option("--trust-host-code", "host_code", is_flag=True,
              help="Let a version-compatible engine run the program that it brings.")  # fmt: skip
@verbose
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Show which layers of ENGINE compute in which precision, what TensorRT fused, and what costs INT8 its speed.

    ENGINE is an engine of `resnet-export engine`, any other plan on a machine with its GPU, or the JSON that trtexec
    writes with --exportLayerInfo.
    """
    from exporter.layers import read_layer_report

    report = read_layer_report(given["engine"], given["model"], host_code=given["host_code"])
    told = {"engine": str(given["engine"]), **report.to_json()}
    tell(document, given["quiet"], told, lambda console: _show(console, report, given["verbose"]))


def _show(console: Console, report: LayerReport, full: bool) -> None:
    from rich.text import Text

    found = report.summary
    if found is None:
        console.print(Text("no --model: the layers are not held against a network", style="dim"))
    else:
        for sentence in found["sentences"]:
            console.print(Text(sentence, style="bold"), soft_wrap=True)
        for operator, counts in found["counts"].items():
            told = ", ".join(f"{number} in {precision}" for precision, number in counts.items())
            console.print(Text.assemble((f"{operator:<18}", "cyan"), told), soft_wrap=True)
        for sentence in found["advice"]:
            console.print(Text.assemble(("  why not faster  ", "yellow"), sentence), soft_wrap=True)
    rows = list(report.layers or ())
    console.print()
    console.print(_table(rows if full else rows[:_SHOWN]))
    if not full and len(rows) > _SHOWN:
        console.print(Text(f"and {len(rows) - _SHOWN} more: --verbose", style="dim"))


def _table(rows: list[Mapping[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("layer", style="cyan", overflow="fold", ratio=2)
    table.add_column("does", no_wrap=True)
    table.add_column("in", no_wrap=True)
    table.add_column("tactic", overflow="fold", ratio=3)
    for row in rows:
        what = "copies" if row["is_reformat"] else "quantises" if row["is_quantiser"] else " ".join(row["operators"])
        names = ", ".join(row["modules"]) or row["name"]
        table.add_row(Text(names), Text(what or row["kind"]), Text(row["precision"] or "?"), Text(row["tactic"]))
    return table
