"""``resnet-export inspect``: what a model is, before anything is done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import model_options, output_options, source_options
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.models.source import LoadedModel
    from exporter.models.summary import Summary

_EXAMPLES = """\b
Examples:
  resnet-export inspect resnet152
  resnet-export inspect checkpoint.pth --json
  resnet-export inspect timm:resnet50d --input-size 288
"""


@click.command("inspect", epilog=_EXAMPLES, short_help="Show a model's architecture and cost.")
@model_options
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Show MODEL's data flow stage by stage, its residual blocks with their checks, and its cost.

    Parameters are counted with BatchNorm's scale and shift; MACs are multiply-accumulates of convolutions and
    classifier for one image. A variant's name needs no weights here.
    """
    from exporter.models.source import load_model
    from exporter.models.summary import summarise, summarise_module

    loaded = load_model(
        given["model"],
        source_options(given, shapes_only=True),
    )
    if loaded.blueprint is not None:
        summary = summarise(loaded.blueprint, loaded.size)
    else:
        summary = summarise_module(loaded.module, loaded.name, (loaded.in_channels, *loaded.size))
    tell(document, given["quiet"], _document(loaded, summary), lambda console: _show(console, loaded, summary))


def _document(loaded: LoadedModel, summary: Summary) -> dict[str, Any]:
    blueprint = loaded.blueprint
    described = {
        "kind": loaded.kind,
        "family": blueprint.family if blueprint else None,
        "depth": blueprint.depth if blueprint else None,
        "shortcut_option": blueprint.shortcut_option if blueprint else None,
        "preprocessing": loaded.preprocessing.to_json(),
        "source_sha256": loaded.sha256 or None,
        "notes": list(loaded.notes),
    }
    return summary.to_json() | described


def _show(console: Console, loaded: LoadedModel, summary: Summary) -> None:
    from rich.text import Text

    from exporter.cli.console import print_notes

    blueprint = loaded.blueprint
    title = [(summary.name, "bold")]
    if blueprint is not None:
        option = blueprint.shortcut_option
        shortcuts = f", shortcut option {option}" if option in "ABC" else f", shortcuts: {option}"
        title.append(
            (f"  {blueprint.family} family, {blueprint.depth} layers{shortcuts}, {summary.classes} classes", "")
        )
    else:
        title.append((f"  {loaded.kind}, {summary.classes} classes", ""))
    console.print(Text.assemble(*title))
    console.print()
    _show_stages(console, summary)
    if any(stage.blocks for stage in summary.stages):
        console.print()
        _show_blocks(console, summary)
    console.print()
    field = f"   receptive field {summary.receptive_field} px" if summary.receptive_field else ""
    console.print(Text.assemble(
        (f"{summary.parameters:,}", "bold"), " parameters   ", (f"{summary.macs / 1e9:.3f} G", "bold"), f" MACs{field}",
    ))  # fmt: skip
    print_notes(console, loaded.notes)


def _show_stages(console: Console, summary: Summary) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("stage", style="cyan")
    table.add_column("layers")
    for column in ("output", "stride", "sees", "parameters", "MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("input", "", _dims(summary.input), "", "", "", "")
    for stage in summary.stages:
        table.add_row(
            stage.name, stage.what, _dims(stage.output), str(stage.stride or ""),
            f"{stage.receptive_field} px" if stage.receptive_field else "",
            f"{stage.parameters:,}" if stage.parameters else "", f"{stage.macs / 1e6:,.1f} M" if stage.macs else "",
        )  # fmt: skip
    console.print(table)


def _show_blocks(console: Console, summary: Summary) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("block", style="cyan")
    table.add_column("kind")
    for column in ("in", "width", "out", "stride", "parameters", "MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("shortcut and its check")
    for stage in summary.stages:
        for block in stage.blocks:
            width = f"{block.width}" + (f"/{block.groups}" if block.groups > 1 else "")
            check = Text.assemble(("✓ ", "green"), _CHECKS[block.shortcut])
            table.add_row(
                block.name, block.kind, str(block.in_channels), width, str(block.out_channels), str(block.stride),
                f"{block.parameters:,}", f"{block.macs / 1e6:,.1f} M", check,
            )  # fmt: skip
    console.print(table)


# A block that exists has passed its check; the table says how, beside the channels that it already shows.
_CHECKS = {
    "identity": "identity, same shape",
    "projection": "1x1 projection",
    "subsample": "subsample, zero channels",
}


def _dims(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
