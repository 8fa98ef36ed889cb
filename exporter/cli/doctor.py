"""``resnet-export doctor``: what this machine can run models on, and what to install for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from exporter.doctor import Diagnosis

_EXAMPLES = """\b
Examples:
  resnet-export doctor
  resnet-export doctor --json
"""


@click.command("doctor", epilog=_EXAMPLES, short_help="Show what this machine can run.")
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Show which runtimes are here and usable, what to install for the others, the GPUs and the processor.

    A runtime that is missing is no error: the exit code is 0.
    """
    from exporter.doctor import diagnose

    found = diagnose()
    tell(document, given["quiet"], found.to_json(), lambda console: _show(console, found))


def _show(console: Console, found: Diagnosis) -> None:
    from rich.text import Text

    console.print(Text.assemble(("Python ", "bold"), found.python, f"  on {found.platform}"), soft_wrap=True)
    processor = found.cpu
    features = ", ".join(name for name, there in processor.features.items() if there) or "no INT8 features seen"
    cores = f", {processor.cores} cores" if processor.cores else ""
    line = Text.assemble(("CPU ", "bold"), f"{processor.model or processor.architecture}{cores}: {features}")
    console.print(line, soft_wrap=True)
    console.print(Text.assemble(("    INT8 ", "dim"), processor.int8), soft_wrap=True)
    for device in found.devices.devices:
        major, minor = device.compute_capability
        dla = f", {device.dla_cores} DLA cores" if device.dla_cores else ""
        about = f"{device.name}: compute capability {major}.{minor}, driver for CUDA {device.cuda}{dla}"
        console.print(Text.assemble(("GPU ", "bold"), about), soft_wrap=True)
    if not found.devices.devices:
        console.print(Text.assemble(("GPU ", "bold"), f"none: {found.devices.reason}"), soft_wrap=True)
    if found.jetpack is not None:
        release = found.jetpack
        known = f"JetPack {release.version}, TensorRT {release.tensorrt}" if release.version else "JetPack unknown"
        console.print(Text.assemble(("Jetson ", "bold"), f"L4T {release.l4t}: {known}"), soft_wrap=True)
    console.print()
    console.print(_table(found))
    # Below the table, not in it: a command to copy must not be broken over lines.
    missing = [row for row in found.runtimes if row.install]
    if missing:
        console.print()
    for row in missing:
        console.print(Text.assemble((f"{row.name:<17} ", "cyan"), row.install or ""), soft_wrap=True)


def _table(found: Diagnosis) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("runtime", style="cyan", no_wrap=True)
    table.add_column("version", no_wrap=True)
    table.add_column("usable", no_wrap=True)
    table.add_column("")
    for row in found.runtimes:
        mark = Text("✓", "green") if row.usable else Text("✗", "red" if row.installed else "dim")
        table.add_row(row.name, row.version or "", mark, Text(row.detail))
    return table
