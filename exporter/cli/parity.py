"""``resnet-export parity``: does it still compute the same, on every runtime?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options, preprocessing_options
from exporter.cli.proof import SPECS, data_options, fields_of, models_argument, moving, report_options, telling
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from exporter.compare import CompareReport

_EXAMPLES = """\b
Examples:
  resnet-export parity eager:resnet20.th onnxruntime:r20.onnx openvino:r20.onnx --data cifar10/test
  resnet-export parity r20.onnx r20.int8.onnx tensorrt:r20.engine@model=r20.int8.onnx --data images/ --drift
  resnet-export parity eager:resnet50@weights=DEFAULT r50.onnx --data val/ --images 500 --html report.html
"""


@click.command("parity", epilog=_EXAMPLES, short_help="Hold models on runtimes against the first.",
               help="Hold every model against the first, on images, and say with exit code 1 when one differs.\n\n"
                    f"{SPECS}\n\nAn INT8 model is judged twice: against the simulation of its file (was computed what "
                    "it asks for?) and against the first model (does it ask for the right thing?).")  # fmt: skip
@models_argument
@data_options(required=True, images="How many, sampled evenly over classes; 0: all.")
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True, metavar="N",
              help="Images that are run at once.")  # fmt: skip
@click.option("--simulated", type=click.IntRange(min=0), default=256, show_default=True, metavar="N",
              help="Images on which INT8 is held against its simulation, at most; 0: none.")  # fmt: skip
@click.option("--min-sqnr", type=float, metavar="DB", help="Instead of the table's bound on SQNR.")
@click.option("--min-agreement", type=click.FloatRange(0, 1), metavar="N",
              help="Instead of the table's bound on the fraction of images with the same class.")  # fmt: skip
@click.option("--drift", is_flag=True, help="Follow the difference from layer to layer, and name where it begins.")
@preprocessing_options
@report_options
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Run the command; its help is above, where it can share sentences."""
    from calibration.listing import find_images
    from exporter.compare import CompareOptions, compare_models
    from exporter.layer_ranges import layer_rows
    from exporter.proof_inputs import contract_for, files_read, prepare_all
    from exporter.report_files import reserved, write_reports

    options = CompareOptions(
        images=given["image_count"], seed=given["seed"], batch=given["batch"], max_bad=given["max_bad"],
        simulated=given["simulated"], min_sqnr_db=given["min_sqnr"], min_agreement=given["min_agreement"],
    )  # fmt: skip
    models = prepare_all(given["models"])
    if given["drift"]:
        from exporter.drift_rows import check_reference, drift_rows

        check_reference(models[0])
    contract = contract_for(models, given["preset"], fields_of(given))
    listing = find_images(given["data"])
    silent = given["quiet"] or given["as_json"]
    with reserved(given, files_read(models, given["data"], listing)) as places:
        with moving("compare", silent) as progress:
            report = compare_models(
                models, listing, contract, options, path=str(given["data"]), on_bad=telling(given["quiet"]),
                on_progress=progress,
            )  # fmt: skip
        told = report.to_json()
        if given["drift"]:
            with moving("drift", silent) as progress:
                told["drift"] = drift_rows(models, listing, contract, seed=given["seed"], on_progress=progress)
            told["passed"] = report.passed and all(row["passed"] for row in told["drift"])
        try:
            write_reports(places, layers=layer_rows(models, told.get("drift") or ()), documents={"parity": told})
        finally:  # what was measured is told, whatever becomes of the reports
            drift, passed = told.get("drift") or (), told["passed"]
            tell(document, given["quiet"], told, lambda console: _show(console, report, drift, passed))
    if not told["passed"]:
        raise click.exceptions.Exit(1)


def _show(console: Console, report: CompareReport, drift: Any, passed: bool) -> None:
    from rich.text import Text

    from exporter.cli.console import print_notes

    console.print(Text.assemble(("reference  ", "bold"), report.reference["label"]), soft_wrap=True)
    told = f"{report.data['images']} images of {report.data['path']}"
    console.print(Text.assemble(("data       ", "bold"), told), soft_wrap=True)
    console.print()
    console.print(_table(report))
    for row in report.results:
        if not row["passed"]:
            where = f" (worst: {row['worst_file']})" if row.get("worst_file") else ""
            line = Text.assemble(("  ✗ ", "red"), (f"{row['label']}: ", "bold"), f"{row['finding']}{where}")
            console.print(line, soft_wrap=True)
    for found in drift:
        within = "stays within its bounds" if found["layers"] else found["probed"]
        place = f"begins at {found['first']}" if found["first"] else within
        console.print(Text.assemble(("  drift  ", "yellow"), f"{found['label']}: {place}"), soft_wrap=True)
    if report.notes:
        print_notes(console, report.notes)
    rows = (*report.results, *drift)
    failed = sum(not row["passed"] for row in rows)
    verdict = ("✓ all agree", "green") if passed else (f"✗ {failed} of {len(rows)} do not agree", "red")
    console.print(Text.assemble(verdict))


def _table(report: CompareReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", style="cyan", overflow="fold")
    table.add_column("against", overflow="fold")
    for column in ("SQNR", "allowed", "max |Δ|", "agreement", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.results:
        mark = Text("✓", "green") if row["passed"] else Text("✗", "red")
        against = "its simulation" if row["simulated"] else "the reference"
        if not row["n"]:
            table.add_row(row["label"], against, "–", "", "–", "–", mark)
            continue
        bound = row["tolerance"]["min_sqnr_db"]
        largest = "–" if row["max_abs"] is None else f"{row['max_abs']:.2g}"
        table.add_row(
            row["label"], against, f"{row['sqnr_db']:.1f} dB", "" if bound is None else f"≥ {bound:g} dB", largest,
            _agreement(row), mark,
        )  # fmt: skip
    return table


def _agreement(row: dict[str, Any]) -> str:
    low, high = row["top1_ci95"]
    return f"{100 * row['top1_agreement']:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
