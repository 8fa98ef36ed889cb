"""``resnet-export onnx``: the main job."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from exporter.cli.options import (
    model_options,
    output_options,
    output_path,
    preprocessing_options,
    source_options,
    verbose,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from exporter.embed_proof import Pixels
    from exporter.embedded import EmbedOptions
    from exporter.inputs import Images
    from exporter.models.source import LoadedModel
    from exporter.results import OnnxOptions, OnnxReport

_EXAMPLES = """\b
Examples:
  A checkpoint; its architecture is read from its tensors:
    resnet-export onnx resnet20.th -o r20.onnx
  Proven on your own images as well:
    resnet-export onnx resnet20.th -o r20.onnx --data images/ --images 0
  For a Jetson with JetPack 4.6 (TensorRT 8.2) and with JetPack 5 or 6:
    resnet-export onnx resnet50 --weights r50.pth -o r50.onnx --opset 13
    resnet-export onnx resnet50 --weights r50.pth -o r50.onnx --opset 17
  A true FP16 graph, with FP32 input and output:
    resnet-export onnx resnet50 --weights r50.pth -o r50_fp16.onnx --precision fp16
  Your own network:
    resnet-export onnx mypackage.nets:build --weights best.ckpt -o net.onnx
"""
_NOTES_SHOWN = 5
_DEFAULT_OPSET = 17  # exporter.graph.opset.DEFAULT_OPSET, which cannot be imported for `--help` without onnx


@click.command("onnx", epilog=_EXAMPLES, short_help="Fold, export, simplify and prove a model.")
@model_options
@output_path
@click.option(
    "--opset", type=int, default=_DEFAULT_OPSET, show_default=True, metavar="N", help="ONNX operator set, 13 or newer."
)
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True,
              help="fp16: every tensor inside the graph is FP16.")  # fmt: skip
@click.option("--fp16-io", is_flag=True, help="With fp16: input and output are FP16 too.")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Fixed batch; default: any.")
@click.option("--dynamic-size", is_flag=True, help="Height and width stay free.")
@click.option("--no-simplify", is_flag=True, help="Do not ask onnxsim.")
@click.option("--exporter", type=click.Choice(["auto", "torch.export", "torchscript"]), default="auto",
              show_default=True, help="auto: TorchScript's only where torch.export's file fails a check.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Real images to compare every stage on.")
@click.option("--images", "image_count", type=click.IntRange(min=0), default=64, show_default=True, metavar="N",
              help="How many of them, sampled evenly over classes; 0: all.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="Class names, one per line.")
@click.option("--embed-preprocess", is_flag=True, help="The file takes uint8 images [N,H,W,C], and normalises inside.")
@click.option("--embed-resize", is_flag=True, help="And resizes and crops: pictures of any size (opset 18).")
@click.option("--softmax", is_flag=True, help="With --embed-preprocess: probabilities come out, not logits.")
@click.option("--top-k", type=click.IntRange(min=1), metavar="K",
              help="With --embed-preprocess: the K best classes come out.")  # fmt: skip
@preprocessing_options
@output_options
@verbose
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Make an ONNX file of MODEL, and prove that it computes the same.

    BatchNorm is folded into the convolutions, the graph is exported and simplified, and every stage is run beside
    the original on batches of 1 and 7 images (and on --data). Where any stage differs by more than the tolerance
    table allows, it is named, the exit code is 1, and no file is left at the output path.
    """
    from exporter.cli.console import StageLines, stderr_console
    from exporter.cli.stdout import write_document
    from exporter.pipeline import export_onnx
    from exporter.results import StageTime

    silent = given["quiet"] or given["as_json"]
    console = stderr_console()
    lines = None if silent else StageLines(console)
    try:
        begin = time.perf_counter()
        if lines:
            lines.started("load")
        loaded, images, options, pixels = _prepare(given)
        load = StageTime("load", time.perf_counter() - begin, _described(loaded, images))
        if lines:
            lines.close()
            lines.heading(loaded.name, "" if given["model"] == loaded.name else f" from {given['model']}")
            lines.finished(load)
        report = export_onnx(loaded, given["output"], options, images, lines, earlier=[load], pixels=pixels)
    finally:
        if lines:
            lines.close()
    if document is not None:
        write_document(document, report.to_json())
    elif not given["quiet"]:
        from exporter.cli.console import stdout_console

        _show(stdout_console(), report, given["verbose"])


def _described(loaded: LoadedModel, images: Images | None) -> str:
    parts = [f"{loaded.in_channels} x {loaded.size[0]} x {loaded.size[1]}"]
    if loaded.blueprint is not None:
        parts.insert(0, f"{loaded.blueprint.depth} layers, {loaded.blueprint.num_classes} classes")
    if images is not None:
        parts.append(f"{len(images)} images")
    return ", ".join(parts)


def _prepare(given: dict[str, Any]) -> tuple[LoadedModel, Images | None, OnnxOptions, Pixels | None]:
    """The values that the pipeline takes, from the words of the command line."""
    from exporter.files import check_output
    from exporter.inputs import read_images, with_preprocessing
    from exporter.labels import read_labels
    from exporter.models.source import load_model
    from exporter.picture_inputs import read_pixels
    from exporter.results import OnnxOptions

    source = source_options(given)
    options = OnnxOptions(
        opset=given["opset"],
        precision=given["precision"],
        fp16_io=given["fp16_io"],
        batch=given["batch"],
        dynamic_size=given["dynamic_size"],
        simplify=not given["no_simplify"],
        exporter=given["exporter"],
        labels=read_labels(given["labels"]) if given["labels"] else (),
        embed=_embedding(given),
    )
    options.check()
    named = (given["model"], given["weights"], given["data"], given["labels"])
    check_output(given["output"], [Path(name) for name in named if name is not None])
    fields = ("resize", "interpolation", "color", "scale", "mean", "std")
    loaded = with_preprocessing(load_model(given["model"], source), given["preset"], {f: given[f] for f in fields})
    images = pixels = None
    if given["data"] is not None and options.embed is not None:
        pixels, remarks = read_pixels(given["data"], loaded.preprocessing, given["image_count"], given["seed"])
        images = loaded.preprocessing.normalise(pixels)
        loaded = loaded.with_notes(remarks)
    elif given["data"] is not None:
        images, remarks = read_images(given["data"], loaded, given["image_count"], given["seed"])
        loaded = loaded.with_notes(remarks)
    return loaded, images, options, pixels


def _embedding(given: dict[str, Any]) -> EmbedOptions | None:
    from exporter.embedded import EmbedOptions

    if given["embed_preprocess"] or given["embed_resize"]:
        return EmbedOptions(given["embed_resize"], given["softmax"], given["top_k"])
    if given["softmax"] or given["top_k"] is not None:
        raise click.UsageError("--softmax and --top-k need --embed-preprocess")
    return None


def _show(console: Console, report: OnnxReport, verbose: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from exporter.cli.console import print_notes

    console.print()
    table = Table(title=None, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column, justify in _PARITY_COLUMNS:
        table.add_column(column, justify=justify, no_wrap=True)
    for row in _parity_rows(report, verbose):
        table.add_row(*row)
    console.print(table)
    console.print()
    console.print(_facts(report))
    if verbose:
        _show_folds(console, report)
    console.print()
    print_notes(console, report.notes, None if verbose else _NOTES_SHOWN)
    console.print(Text.assemble(("✓ proven", "bold green"), ": every stage agrees with the original"))


def _facts(report: OnnxReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    refused = f", {len(report.fold.refused)} kept" if report.fold.refused else ""
    model = report.model
    simplified = "simplified by onnxsim" if report.simplified else "not simplified"
    lines = {
        "file": f"{report.onnx}  ({report.size / 1e6:.1f} MB)",
        "sha256": report.sha256,
        "graph": f"opset {report.opset}, {report.precision}, {model['input']}, {model['classes']} classes",
        "nodes": "  ".join(f"{op} {count}" for op, count in report.ops.items()),
        "made by": f"{report.exporter} exporter, {len(report.fold.rows)} BatchNorms folded{refused}, {simplified}",
    }
    table = Table.grid(padding=(0, 2))
    for name, line in lines.items():
        table.add_row(Text(name, style="bold"), Text(line))
    return table


_Justify = Literal["left", "right"]
_PARITY_COLUMNS: tuple[tuple[str, _Justify], ...] = (
    ("stage", "left"), ("against", "left"), ("images", "left"), ("SQNR", "right"), ("allowed", "right"),
    ("max |Δ|", "right"), ("top-1 agreement", "right"), ("", "left"),
)  # fmt: skip


def _parity_rows(report: OnnxReport, verbose: bool) -> list[tuple[Any, ...]]:
    """One row per stage against the original: the worst of its inputs; with ``verbose`` every row there is."""
    from rich.text import Text

    rows = list(report.parity)
    if not verbose:
        stages = dict.fromkeys(row["stage"] for row in rows)
        against = {stage: [r for r in rows if r["stage"] == stage and r["reference"] == "original"] for stage in stages}
        rows = [min(group, key=lambda row: row["sqnr_db"]) | _total(group) for group in against.values()]
    shown: list[tuple[Any, ...]] = []
    for row in rows:
        mark = Text("✓", style="green") if row["passed"] else Text("✗", style="red")
        images = f"{row['n']} {row['inputs']}" + (f", batch {row['batch']}" if verbose else "")
        shown.append((
            row["stage"], row["reference"], images, f"{row['sqnr_db']:.1f} dB",
            f"≥ {row['tolerance']['min_sqnr_db']:.0f} dB", f"{row['max_abs']:.1e}",
            f"{100 * row['top1_agreement']:.2f} %", mark,
        ))  # fmt: skip
    return shown


def _total(group: list[dict[str, Any]]) -> dict[str, Any]:
    total = sum(row["n"] for row in group)
    real = sum(row["n"] for row in group if row["inputs"] == "images")
    agreement = sum(row["top1_agreement"] * row["n"] for row in group) / total
    return {
        "n": total,
        "inputs": f"({real} real)" if real else "synthetic",
        "max_abs": max(row["max_abs"] for row in group),
        "top1_agreement": agreement,
        "passed": all(row["passed"] for row in group),
    }


def _show_folds(console: Console, report: OnnxReport) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("folded layer", style="cyan")
    table.add_column("BatchNorm")
    for column in ("channels", "largest scale", "smallest variance", "rounding bound"):
        table.add_column(column, justify="right")
    for row in report.fold.rows:
        numbers = (f"{row.max_scale:.3g}", f"{row.min_variance:.3g}", f"{row.bound:.1e}")
        table.add_row(row.layer, row.norm, str(row.channels), *numbers)
    console.print()
    console.print(table)
