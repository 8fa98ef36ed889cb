"""``resnet-export bench``: latency, throughput and memory of models on runtimes, beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options, preprocessing_options
from exporter.cli.proof import SPECS, data_options, fields_of, models_argument, moving, report_options, telling
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from exporter.bench import BenchReport

_EXAMPLES = """\b
Examples:
  resnet-export bench onnxruntime:r50.onnx openvino:r50.onnx torch-compile:resnet50@weights=random --batch 1 --batch 8
  resnet-export bench r50.onnx@threads=2 r50.int8.onnx@threads=2 --rounds 50 --json
"""


@click.command("bench", epilog=_EXAMPLES, short_help="Measure latency, throughput and memory.",
               help=f"Measure every model in turns, so that a noisy machine hurts all alike.\n\n{SPECS}\n\nTimes are "
                    "of one run, from an array in memory to an array in memory. With --data the arrays are images; "
                    "without, seeded noise of the size that the models take.")  # fmt: skip
@models_argument
@click.option("--batch", "sizes", type=click.IntRange(1, 4096), multiple=True, default=(1,), show_default=True,
              metavar="N", help="Images in a run; may be repeated.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(2, 10_000), default=20, show_default=True, metavar="N",
              help="Turns that every model gets.")  # fmt: skip
@click.option("--turn-ms", type=click.FloatRange(min=0, min_open=True), default=100.0, show_default=True, metavar="MS",
              help="About how long a turn is.")  # fmt: skip
@click.option("--cold/--no-cold", "isolated", default=True, show_default=True,
              help="Measure cold start and memory too, in a process for each model and batch.")  # fmt: skip
@data_options(required=False, images="How many are read; 0: as many as the largest batch.")
@preprocessing_options
@report_options
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Run the command; its help is above, where it can share sentences."""
    from exporter.bench import bench_images, bench_models
    from exporter.proof_inputs import contract_for, files_read, noise_preset, prepare_all, subjects_of
    from exporter.report_files import reserved, write_reports
    from runtimes.turns import Plan

    plan = Plan(
        rounds=given["rounds"], turn_ms=given["turn_ms"], seed=given["seed"] % (1 << 32), isolated=given["isolated"]
    )
    models = prepare_all(given["models"])
    preset = given["preset"] or (None if given["data"] else noise_preset(models))
    contract = contract_for(models, preset, fields_of(given))
    read, subjects = subjects_of(models, contract)
    listing = _listing(given)
    sizes = tuple(dict.fromkeys(given["sizes"]))
    with reserved(given, files_read(models, given["data"], listing)) as places:
        images = bench_images(read, max(sizes), listing, max_bad=given["max_bad"], on_bad=telling(given["quiet"]))
        with moving("bench", given["quiet"] or given["as_json"]) as progress:
            report = bench_models(subjects, sizes, images, plan, on_progress=progress)
        told = report.to_json()
        try:
            write_reports(places, documents={"bench": told})
        finally:  # what was measured is told, whatever becomes of the reports
            tell(document, given["quiet"], told, lambda console: _show(console, report))
    if report.failures:
        raise click.exceptions.Exit(1)


def _listing(given: dict[str, Any]) -> Any:
    if given["data"] is None:
        return ()
    from calibration.listing import find_images, sample

    return sample(find_images(given["data"]), given["image_count"] or None, given["seed"])


def _show(console: Console, report: BenchReport) -> None:
    from rich.text import Text

    console.print(_table(report))
    for row in report.failures:
        told = f"batch {row['batch']}: {row['error']}"
        console.print(Text.assemble(("  ✗ ", "red"), (f"{row['label']}: ", "bold"), told), soft_wrap=True)
    if any(row["noisy"] for row in report.results):
        told = "times marked ~ moved too much, or had few rounds: measure again on a quieter machine, or more --rounds"
        console.print(Text.assemble(("  note  ", "yellow"), told), soft_wrap=True)


def _table(report: BenchReport) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", style="cyan", overflow="fold")
    for column in ("batch", "p50 ms", "p90", "p99", "images/s", "time to first's", "RSS MB", "cold ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.results:
        ratio = row["ratio_to_first"]
        bounds = f" ({ratio['ci95'][0]:.2f} to {ratio['ci95'][1]:.2f})" if ratio and ratio["ci95"] else ""
        against = "–" if ratio is None else f"{ratio['ratio']:.2f}{bounds}"
        table.add_row(
            row["label"], str(row["batch"]), f"{'~' if row['noisy'] else ''}{row['p50_ms']:.2f}",
            _number(row["p90_ms"], 2), _number(row["p99_ms"], 2), f"{row['images_per_s']:.1f}", against,
            _number(row["peak_rss_mb"]), _number(row["cold_start_ms"]),
        )  # fmt: skip
    return table


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
