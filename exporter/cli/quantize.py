"""``resnet-export quantize``: a float ONNX file becomes an INT8 file for one target, with what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options, output_path, preprocessing_options, verbose
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from calibration.outcome import Step
    from exporter.quantise import QuantiseReport

_EXAMPLES = """\b
Examples:
  For TensorRT, from images such as the model will see:
    resnet-export quantize r50.onnx --data images/train --target tensorrt -o r50.int8.onnx
  The same ranges for several targets:
    resnet-export calibrate r50.onnx --data images/train -o r50.ranges.json
    resnet-export quantize r50.onnx --ranges r50.ranges.json --target onnxruntime -o r50.ort.onnx
    resnet-export quantize r50.onnx --ranges r50.ranges.json --target openvino -o r50.ov.onnx
  The best that INT8 can do, measured on other images, and at most 0.2 points of agreement lost:
    resnet-export quantize r50.onnx --data train/ --eval-data val/ --target tensorrt --effort best --max-drop 0.2 \\
        -o r50.int8.onnx
"""
_SHOWN_LAYERS = 8


@click.command("quantize", epilog=_EXAMPLES, short_help="Make an INT8 file for one target.")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("--target", type=click.Choice(["tensorrt", "onnxruntime", "openvino"]), required=True,
              help="The runtime: each wants its own placement of Q/DQ.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR",
              help="Images such as the model will see: a folder, class folders, a list or an array file.")  # fmt: skip
@click.option("--ranges", type=click.Path(path_type=Path), metavar="FILE",
              help="Ranges of resnet-export calibrate, instead of calibrating here.")  # fmt: skip
@output_path
@click.option("--method", type=click.Choice(["minmax", "average", "percentile", "entropy", "mse"]), default="mse",
              show_default=True, help="How a range is chosen from what was seen.")  # fmt: skip
@click.option("--effort", type=click.Choice(["fast", "balanced", "best"]),
              help="fast: no refinement; balanced: equalisation and bias correction; best: scales, roundings and "
                   "biases are learned. Default: balanced with --data, else fast.")  # fmt: skip
@click.option("--max-drop", type=click.FloatRange(min=0), metavar="POINTS",
              help="Leave the worst layers in float until at most so many points of top-1 accuracy, or without labels "
                   "of agreement, are lost.")  # fmt: skip
@click.option("--keep-fp", metavar="N|NAMES",
              help="Leave the N most sensitive layers in float, or those named (with commas).")  # fmt: skip
@click.option("--cpu", type=click.Choice(["any", "vnni", "avx2", "arm"]), default="any", show_default=True,
              help="any: right on every x86; vnni: needs VNNI, a little finer; avx2: 7-bit weights; arm: signed "
                   "activations.")  # fmt: skip
@click.option("--fold-zero-point", "folds", type=click.Choice(["all", "free", "none"]),
              help="tensorrt: 256 levels for activations after ReLU, with their zero point folded into biases: "
                   "before all convolutions (padded ones get an explicit Pad), only where it is free, or never. "
                   "Default: all with --effort best, else free.")  # fmt: skip
@click.option("--eval-data", type=click.Path(path_type=Path), metavar="DIR",
              help="Images to measure fidelity on; default: some of --data are set aside.")  # fmt: skip
@click.option("--images", "image_count", type=click.IntRange(min=0), default=512, show_default=True, metavar="N",
              help="How many of --data, sampled evenly over classes; 0: all.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="N",
              help="Of the sample and of learning.")  # fmt: skip
@click.option("--max-bad", type=click.FloatRange(0, 1), default=0.01, show_default=True, metavar="N",
              help="Fraction of the images that may be unusable; they are skipped and listed.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=0), metavar="N",
              help="Processes that decode images; default: as many as are worth it.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N",
              help="Threads that run the model; default: one per core.")  # fmt: skip
@preprocessing_options
@output_options
@verbose
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Quantise MODEL.onnx to INT8 for one target.

    Refinement is judged on images held back from it, and a step that does not help is not taken. Fidelity is measured
    on yet other images. The file keeps the names, the preprocessing and the metadata of MODEL.onnx.
    """
    from exporter.quantise import Inputs, quantise_onnx

    if given["data"] is None and given["ranges"] is None:
        raise click.UsageError("give --data DIR to calibrate with, or --ranges FILE of resnet-export calibrate")
    if given["effort"] is None:
        given["effort"] = "fast" if given["data"] is None else "balanced"
    silent = given["quiet"] or given["as_json"]
    lines = None if silent else _lines()
    inputs = Inputs(
        model=given["model"], data=given["data"], ranges=given["ranges"], evaluation=given["eval_data"],
        images=given["image_count"], preset=given["preset"], fields=_fields(given), max_bad=given["max_bad"],
        workers=given["workers"], threads=given["threads"],
    )  # fmt: skip
    try:
        report = quantise_onnx(
            inputs, given["output"], _options(given), lines.listener() if lines else None,
            lines.calibrated if lines else None,
        )  # fmt: skip
    finally:
        if lines:
            lines.close()
    tell(document, given["quiet"], report.to_json(), lambda console: _show(console, report, given["verbose"]))


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    from exporter.contracts import FIELDS

    return {name: given[name] for name in FIELDS}


def _options(given: dict[str, Any]) -> Any:
    from calibration.outcome import Options
    from calibration.placement import target

    folds = given["folds"]
    if folds is None and given["target"] == "tensorrt":
        folds = "all" if given["effort"] == "best" else "free"
    kept = given["keep_fp"] or "0"
    counted = kept.isascii() and kept.isdecimal()
    count = int(kept) if counted else 0
    names = frozenset() if counted else frozenset(filter(None, map(str.strip, kept.split(","))))
    return Options(
        target(given["target"], cpu=given["cpu"], folds=folds),
        method=given["method"],
        effort=given["effort"],
        keep=names,
        keep_worst=count,
        max_drop=given["max_drop"],
        seed=given["seed"],
    )


def _lines() -> Any:
    """Progress on stderr. Made here, so that `--help` imports neither rich nor the work."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    from calibration.outcome import Listener
    from exporter.cli.console import stderr_console

    class Lines:
        """A moving line for the step in progress, and one that stays for each that is done."""

        def __init__(self) -> None:
            self.console: Console = stderr_console()
            self._bar: Progress | None = None

        def moving(self, name: str) -> None:
            self.close()
            if self.console.is_terminal:
                columns = (TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, console=self.console, transient=True)
                self._bar.add_task(name, total=None)
                self._bar.start()

        def moved(self, done: int, total: int | None) -> None:
            if self._bar is not None:
                self._bar.update(self._bar.tasks[0].id, completed=done, total=total)

        def calibrated(self, images: int) -> None:
            if self._bar is None or self._bar.tasks[0].description != "calibrate":
                self.moving("calibrate")
            if self._bar is not None:
                self._bar.update(self._bar.tasks[0].id, description="calibrate", completed=images)

        def close(self) -> None:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

        def listener(self) -> Listener:
            return Steps(self)

    class Steps(Listener):
        def __init__(self, lines: Lines) -> None:
            self._lines = lines

        def started(self, name: str) -> None:
            self._lines.moving(name)

        def progress(self, done: int, total: int) -> None:
            self._lines.moved(done, total)

        def finished(self, step: Step) -> None:
            self._lines.close()
            mark = ("  ✓ ", "green") if step.applied else ("  – ", "dim")
            line = Text.assemble(mark, f"{step.name:<20}", (f"{step.seconds:6.2f} s  ", "dim"), _gain(step))
            self._lines.console.print(line, soft_wrap=True)

    return Lines()


def _gain(step: Step) -> str:
    if step.before_db is None or step.after_db is None:
        return step.note
    taken = "" if step.applied else ", not taken"
    return f"{step.before_db:.1f} → {step.after_db:.1f} dB{taken}"


def _show(console: Console, report: QuantiseReport, full: bool) -> None:
    from rich.text import Text

    from exporter.cli.console import print_notes

    console.print(_facts(report))
    if report.result.sensitivity:
        console.print()
        console.print(_layers(report, full))
    console.print()
    print_notes(console, (*report.warnings, *report.result.notes), None if full else 6)
    for file in report.skipped:
        console.print(Text.assemble(("  skipped  ", "yellow"), f"{file.path}: {file.reason}"), soft_wrap=True)


def _facts(report: QuantiseReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    placement = report.result.placement
    layers = len(placement.weights)
    smaller = report.float_size / report.size
    facts = {
        "file": f"{report.onnx}  ({report.size / 1e6:.1f} MB, {smaller:.1f} times smaller)",
        "sha256": report.sha256,
        "target": f"{report.options.target.name}, ranges by {report.options.method} of {report.ranges.images} images",
        "layers": f"{layers} of {layers + len(placement.left)} in INT8, {len(placement.sites)} activations",
        "nodes": "  ".join(f"{name} {count}" for name, count in report.ops.items()),
    }
    found = report.fidelity
    if found is None:
        facts["fidelity"] = "not measured: give --data or --eval-data"
    else:
        facts["fidelity"] = (
            f"SQNR {found.sqnr_db:.1f} dB, top-1 agrees on {100 * found.agreement:.2f} % of {found.images} images "
            f"that {'took no part' if found.unseen else 'may have taken part in calibration'} ({found.runtime})"
        )
        if found.top1_float is not None and found.top1_int8 is not None:
            facts["top-1"] = f"{100 * found.top1_float:.2f} % float → {100 * found.top1_int8:.2f} % INT8"
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(Text(name, style="bold"), Text(fact))
    return table


def _layers(report: QuantiseReport, full: bool) -> Table:
    from rich.table import Table

    rows = report.result.sensitivity
    shown = rows if full else rows[:_SHOWN_LAYERS]
    rest = f" ({len(rows) - len(shown)} more: --verbose)" if len(shown) < len(rows) else ""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", caption_justify="left")
    table.add_column(f"most sensitive layers{rest}", style="cyan")
    table.add_column("share of the damage", justify="right")
    table.add_column("alone", justify="right")
    table.add_column("")
    for row in shown:
        table.add_row(row.layer, f"{row.share:.1%}", f"{row.sqnr_db:.1f} dB", "float" if row.kept else "INT8")
    return table
