"""``resnet-export triton``: a model repository for a Triton server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options

if TYPE_CHECKING:
    from exporter.serving.repository import RepositoryReport

_EXAMPLES = """\b
Examples:
  resnet-export triton r20.onnx -o models/
  resnet-export triton r50.engine --preferred 8 --preferred 16 --delay 200 --instances 2 -o models/
  resnet-export triton r50=r50.onnx r50_int8=r50.int8.onnx --kind cpu --warmup images/cat.jpg -o models/

\b
Then start the server, and hold what it answers against the file:
  tritonserver --model-repository models/
  resnet-export parity r20.onnx triton:http://localhost:8000/r20 --data images/
"""


@click.command("triton", epilog=_EXAMPLES, short_help="Write a model repository for a Triton server.")
@click.argument("models", metavar="[NAME=]FILE...", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="REPOSITORY",
              help="A folder, new or not; models of other names in it stay.")  # fmt: skip
@click.option("--max-batch", type=click.IntRange(min=1), metavar="N",
              help="Images that requests are put together to; default 32, or what an engine takes.")  # fmt: skip
@click.option("--dynamic-batching/--no-dynamic-batching", default=True, show_default=True,
              help="Whether requests of several clients become one batch.")  # fmt: skip
@click.option("--preferred", type=click.IntRange(min=1), multiple=True, metavar="N",
              help="A batch that the server waits for; may be repeated.")  # fmt: skip
@click.option("--delay", "delay_us", type=click.IntRange(min=0), default=0, show_default=True, metavar="US",
              help="Longest wait for more requests, in microseconds.")  # fmt: skip
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Copies of each model, on each device.")  # fmt: skip
@click.option("--kind", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True,
              help="Where models run; auto: on a GPU if the server has one.")  # fmt: skip
@click.option("--warmup", default="zero", show_default=True, metavar="none|zero|IMAGE",
              help="What models are run on before the server calls them ready.")  # fmt: skip
@click.option("--ensemble/--no-ensemble", default=True, show_default=True,
              help="Whether there is also a model that takes pixels.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE",
              help="Class names, one per line; default: those in the files.")  # fmt: skip
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Write FILEs, ONNX or TensorRT engines, into a Triton model repository.

    Each becomes a model with its configuration; where a file says how its images are preprocessed, also an ensemble
    that takes pixels (uint8, height x width x channels), whose first step is an ONNX file made here.
    """
    from exporter.serving.config import ServingOptions
    from exporter.serving.repository import RepositoryOptions, write_repository

    serving = ServingOptions(
        max_batch=given["max_batch"],
        dynamic_batching=given["dynamic_batching"],
        preferred=given["preferred"],
        delay_us=given["delay_us"],
        instances=given["instances"],
        kind=given["kind"],
    )
    options = RepositoryOptions(serving, given["ensemble"], given["warmup"], given["labels"])
    report = write_repository(given["models"], given["output"], options)
    if document is not None:
        from exporter.cli.stdout import write_document

        write_document(document, report.to_json())
    elif not given["quiet"]:
        _show(report)


def _show(report: RepositoryReport) -> None:
    from rich.table import Table
    from rich.text import Text

    from exporter.cli.console import print_notes, stdout_console

    console = stdout_console()
    console.print(Text.assemble(("repository  ", "bold"), str(report.repository)), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", style="cyan", overflow="fold")
    for column in ("platform", "batches", "from"):
        table.add_column(column, overflow="fold")
    for row in report.models:
        most = row["max_batch_size"]
        table.add_row(row["name"], row["platform"], f"up to {most}" if most else "as they come", row["source"] or "–")
    console.print(table)
    if report.notes:
        print_notes(console, report.notes)
