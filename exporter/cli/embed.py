"""``resnet-export embed``: a file that takes the pixels of a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options, output_path, preprocessing_options
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.embed import EmbedReport

_EXAMPLES = """\b
Examples:
  The file of `resnet-export onnx`, or of `quantize`, knows its preprocessing:
    resnet-export embed r50.onnx -o r50.pixels.onnx
    resnet-export embed r50.int8.onnx -o r50.int8.pixels.onnx --data images/
  Any picture in, the five best classes out:
    resnet-export embed r50.onnx -o r50.pixels.onnx --embed-resize --softmax --top-k 5 --labels classes.txt
  A file from elsewhere:
    resnet-export embed theirs.onnx -o pixels.onnx --preset imagenet
"""


@click.command("embed", epilog=_EXAMPLES, short_help="Put the preprocessing into an ONNX file.")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@output_path
@click.option("--embed-resize", is_flag=True, help="Resize and crop inside too: pictures of any size (opset 18).")
@click.option("--softmax", is_flag=True, help="Probabilities come out, not logits.")
@click.option("--top-k", type=click.IntRange(min=1), metavar="K", help="The K best classes come out.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="Class names, one per line.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Real images to compare on.")
@click.option("--images", "image_count", type=click.IntRange(min=0), default=64, show_default=True, metavar="N",
              help="How many of them, sampled evenly over classes; 0: all.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="N",
              help="Of the sample.")  # fmt: skip
@preprocessing_options
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Make a file that takes uint8 images [N,H,W,C], and prove that it computes what MODEL.onnx does.

    MODEL.onnx is FP32, FP16 or INT8. The normalisation goes into the first convolution, or to where the file quantises
    its input. Where the result differs by more than the tolerance table allows, the exit code is 1, and no file is left
    at the output path.
    """
    from exporter.cli.console import StageLines, stderr_console
    from exporter.cli.proof import fields_of
    from exporter.embed import EmbedInputs, embed_onnx
    from exporter.embedded import EmbedOptions
    from exporter.labels import read_labels

    silent = given["quiet"] or given["as_json"]
    lines = None if silent else StageLines(stderr_console())
    inputs = EmbedInputs(
        model=given["model"], data=given["data"], images=given["image_count"], seed=given["seed"],
        preset=given["preset"], fields=fields_of(given), labels=read_labels(given["labels"]) if given["labels"] else (),
    )  # fmt: skip
    options = EmbedOptions(given["embed_resize"], given["softmax"], given["top_k"])
    try:
        report = embed_onnx(inputs, given["output"], options, lines)
    finally:
        if lines:
            lines.close()
    tell(document, given["quiet"], report.to_json(), lambda console: _show(console, report))


def _show(console: Console, report: EmbedReport) -> None:
    from rich.table import Table
    from rich.text import Text

    from exporter.cli.console import print_notes

    taken = report.input
    shape = ", ".join("any" if side is None else str(side) for side in taken["shape"])
    worst = min(report.parity, key=lambda row: row["sqnr_db"])
    lines = {
        "file": f"{report.onnx}  ({report.size / 1e6:.1f} MB)",
        "sha256": report.sha256,
        "input": f"{taken['name']}: uint8 [{shape}], {report.network.color}",
        "outputs": ", ".join(report.outputs),
        "parity": f"{worst['sqnr_db']:.1f} dB, {worst['tolerance']['min_sqnr_db']:g} dB are required",
    }
    table = Table.grid(padding=(0, 2))
    for name, line in lines.items():
        table.add_row(Text(name, style="bold"), Text(line))
    console.print(table)
    print_notes(console, report.notes)
    console.print(Text.assemble(("✓ proven", "bold green"), ": computes what the file before does"))
