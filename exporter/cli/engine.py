"""``resnet-export engine``: ONNX in, a TensorRT engine out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options
from runtimes.precision import PRECISIONS

if TYPE_CHECKING:
    from exporter.engine import EngineReport

_EXAMPLES = """\b
Examples:
  resnet-export engine model.onnx -o model.engine
  resnet-export engine model_int8.onnx -o model.engine --max 32 --timing-cache kernels.cache
  resnet-export engine model.onnx -o model.engine --compute-capability 8.6 --compute-capability 8.9
  resnet-export engine model.onnx --ranges model.ranges.json -o model.engine --dla-core 0 --opt 8

\b
INT8 is in the file: resnet-export quantize --target tensorrt. So is FP16 where TensorRT takes types from the file
(11, TensorRT-RTX): resnet-export onnx --precision fp16. TensorRT 10 and before also takes a FP32 file with --ranges;
their DLA takes no Q/DQ, so a file with Q/DQ becomes a float network and a calibration cache.
"""
_SOURCES = {"qdq": "from the file's Q/DQ", "ranges": "from the ranges"}
_FLAVOURS = ["tensorrt", "tensorrt_rtx"]


@click.command("engine", epilog=_EXAMPLES, short_help="Build a TensorRT engine of an ONNX file.")
@click.argument("model", metavar="MODEL.onnx", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT.engine",
              help="The engine; what is known of it goes to OUT.engine.json.")  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), help="Default: what the file carries.")
@click.option("--ranges", type=click.Path(path_type=Path), metavar="RANGES.json",
              help="INT8 for a FP32 file: ranges of resnet-export calibrate. TensorRT 10 and before.")  # fmt: skip
@click.option("--min", "smallest", metavar="N[xHxW]", help="Smallest batch, and image where it is free; default 1.")
@click.option("--opt", "best", metavar="N[xHxW]", help="The batch that kernels are chosen for; default: --min.")
@click.option("--max", "largest", metavar="N[xHxW]", help="Largest batch; default 8.")
@click.option("--compute-capability", "capabilities", multiple=True, metavar="M.N",
              help="A GPU to build for, here or not; may be repeated. TensorRT-RTX.")  # fmt: skip
@click.option("--workspace", type=click.IntRange(1, 1 << 20), metavar="MIB", help="Memory that kernels may use.")
@click.option("--timing-cache", type=click.Path(path_type=Path), metavar="FILE",
              help="Measured kernels of earlier builds; made, and renewed where it is of another GPU.")  # fmt: skip
@click.option("--calibration-cache", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the scales that --ranges or --dla-core gave, for trtexec --calib.")  # fmt: skip
@click.option("--version-compatible", is_flag=True,
              help="Runs on later versions too, by a program that it brings and that has to be trusted.")  # fmt: skip
@click.option("--hardware-compatible", "hardware", type=click.Choice(["ampere+", "same"]),
              help="Runs on all GPUs from Ampere on, or of the same compute capability.")  # fmt: skip
@click.option("--strip", is_flag=True, help="Leave the weights out, to be filled in on the device.")
@click.option("--refit", is_flag=True, help="Weights can be exchanged later.")
@click.option("--dla-core", type=click.IntRange(min=0), metavar="N",
              help="Deep learning accelerator to run on, with the GPU for the rest.")  # fmt: skip
@click.option("--flavour", type=click.Choice(_FLAVOURS), help="Which TensorRT; default: the best that is installed.")
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Build a TensorRT engine of MODEL.onnx.

    Engines run on the GPU and the TensorRT version that they are built with; TensorRT-RTX builds for other GPUs than
    the one that is here, and on machines without one.
    """
    from exporter.engine import build_engine
    from runtimes.tensorrt.build import BuildOptions
    from runtimes.tensorrt.profile import Size

    sizes = [None if given[name] is None else Size.parse(given[name]) for name in ("smallest", "best", "largest")]
    options = BuildOptions(
        precision=given["precision"],
        sizes=(sizes[0], sizes[1], sizes[2]),
        workspace_mib=given["workspace"],
        compute_capabilities=given["capabilities"],
        version_compatible=given["version_compatible"],
        hardware=given["hardware"],
        strip=given["strip"],
        refit=given["refit"],
        dla_core=given["dla_core"],
    )
    bar = None if given["quiet"] or given["as_json"] else _bar()
    try:
        report = build_engine(
            given["model"], given["output"], options, name=given["flavour"], ranges=given["ranges"],
            timing_cache=given["timing_cache"], calibration_cache=given["calibration_cache"], listener=bar,
        )  # fmt: skip
    finally:
        if bar is not None:
            bar.close()
    if document is not None:
        from exporter.cli.stdout import write_document

        write_document(document, report.to_json())
    elif not given["quiet"]:
        _show(report)


def _show(report: EngineReport) -> None:
    from rich.text import Text

    from exporter.cli.console import print_notes, stdout_console

    console, built = stdout_console(), report.built
    calibration = built.calibration
    rows = {
        "engine": f"{report.engine}  {len(built.plan) / 1e6:.1f} MB",
        "built by": f"{report.flavour.name} {report.flavour.version} in {built.seconds:.1f} s",
        "for": _targets(report),
        "precision": built.precision,
        **({"scales": f"{calibration.tensors} tensors, {_SOURCES[calibration.source]}"} if calibration else {}),
        "shapes": ", ".join(
            f"{name} {'x'.join(map(str, shape))}"
            for name, shape in zip(("min", "opt", "max"), built.profile.shapes, strict=True)
        ),
    }
    for name, value in rows.items():
        console.print(Text.assemble((f"{name:<10}", "bold"), value), soft_wrap=True)
    if built.notes:
        print_notes(console, built.notes)


def _targets(report: EngineReport) -> str:
    named = ", ".join(report.built.targets)
    if named:
        return f"compute capability {named}"
    if report.options.hardware == "ampere+" or report.flavour.generation.compute_capabilities:
        return "every GPU from Ampere on"
    return "GPUs of the compute capability that is here" if report.options.hardware else "the GPU that is here"


def _bar() -> Any:
    """Progress on stderr. Made here, so that `--help` imports neither rich nor the work."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from exporter.cli.console import stderr_console
    from runtimes.tensorrt.monitor import Listener

    class Bar(Listener):
        """One bar for the whole build; nothing where stderr is no terminal."""

        def __init__(self) -> None:
            console = stderr_console()
            columns = (TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
            if self._bar is not None:
                self._task = self._bar.add_task("build", total=1.0)
                self._bar.start()

        def progress(self, fraction: float, phase: str) -> None:
            if self._bar is not None:
                self._bar.update(self._task, completed=fraction, description=phase[:40])

        def close(self) -> None:
            if self._bar is not None:
                self._bar.stop()

    return Bar()
