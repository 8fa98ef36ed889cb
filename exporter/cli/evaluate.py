"""``resnet-export evaluate``: accuracy on labelled images, and what a model changes against the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.cluster import ray_options
from exporter.cli.options import output_options, preprocessing_options
from exporter.cli.proof import SPECS, data_options, fields_of, models_argument, moving, report_options, telling
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from calibration.images import ImageFile
    from calibration.preprocess import Preprocessing
    from exporter.evaluate import EvaluateOptions, EvaluateReport
    from exporter.opening import Opening

_EXAMPLES = """\b
Examples:
  resnet-export evaluate eager:resnet20.th onnxruntime:r20.onnx onnxruntime:r20.int8.onnx --data cifar10/test
  resnet-export evaluate r50.onnx r50.int8.onnx --data imagenet/val --images 5000 --max-drop 0.005
  resnet-export evaluate r50.onnx r50.int8.onnx --data /shared/imagenet/val --ray auto
"""


@click.command("evaluate", epilog=_EXAMPLES, short_help="Measure accuracy on labelled images.",
               help="Measure top-1 and top-5 of every model, with intervals, and whether it differs from the first.\n\n"
                    f"{SPECS}")  # fmt: skip
@models_argument
@data_options(required=True, images="How many, sampled evenly over classes; 0: all.")
@click.option("--batch", type=click.IntRange(1, 4096), default=32, show_default=True, metavar="N",
              help="Images that are run at once.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Processes that decode images; 0: a thread beside the models.")  # fmt: skip
@click.option("--max-drop", type=click.FloatRange(0, 1), metavar="N",
              help="Largest drop of top-1 against the first model, as a fraction: exit code 1 beyond it.")  # fmt: skip
@ray_options
@preprocessing_options
@report_options
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Run the command; its help is above, where it can share sentences."""
    from calibration.listing import find_images
    from exporter.cli.cluster import check_ray
    from exporter.evaluate import EvaluateOptions
    from exporter.proof_inputs import agreed_labels, contract_for, files_read, prepare_all
    from exporter.report_files import reserved, write_reports

    check_ray(given, "workers", 0)
    options = EvaluateOptions(
        images=given["image_count"], seed=given["seed"], batch=given["batch"], workers=given["workers"],
        max_bad=given["max_bad"], max_drop=given["max_drop"],
    )  # fmt: skip
    models = prepare_all(given["models"])
    contract = contract_for(models, given["preset"], fields_of(given))
    listing = find_images(given["data"])
    names = agreed_labels(models)
    total = min(options.images or len(listing), len(listing))
    with reserved(given, files_read(models, given["data"], listing)) as places:
        with moving("evaluate", given["quiet"] or given["as_json"]) as progress:
            report = _evaluate(
                given, models, listing, contract, options, path=str(given["data"]), class_names=names,
                on_bad=telling(given["quiet"]), on_progress=lambda done: progress(done, total),
            )  # fmt: skip
        told = report.to_json()
        try:
            write_reports(places, documents={"evaluate": told})
        finally:  # what was measured is told, whatever becomes of the reports
            tell(document, given["quiet"], told, lambda console: _show(console, report))
    if report.passed is False:
        raise click.exceptions.Exit(1)


def _evaluate(
    given: dict[str, Any],
    models: list[Opening],
    listing: list[ImageFile],
    contract: Preprocessing,
    options: EvaluateOptions,
    **rest: Any,
) -> EvaluateReport:
    """In this process, or on a cluster."""
    if given["ray"] is None:
        from exporter.evaluate import evaluate_models
        from exporter.proof_inputs import subjects_of

        read, subjects = subjects_of(models, contract)
        return evaluate_models(subjects, listing, read, options, **rest)
    from calibration.cluster import connected
    from exporter.evaluate_distributed import evaluate_on
    from exporter.sent_models import check_cpu, most_threads
    from runtimes.errors import InputError

    fed = next((model for model in models if model.takes is not None), None)
    if fed is not None:
        raise InputError(f"{fed.label} takes pixels, which a cluster does not read yet: evaluate it without --ray")
    check_cpu(models)
    with connected(given["ray"], given["ray_workers"], most_threads(models)) as cluster:
        return evaluate_on(
            cluster, models, listing, contract, options, ship=given["ray_ship"],
            on_note=lambda line: click.echo(f"warning: {line}", err=True), **rest,
        )  # fmt: skip


def _show(console: Console, report: EvaluateReport) -> None:
    from rich.text import Text

    from exporter.cli.console import print_notes

    told = f"{report.data['images']} images of {report.data['path']}"
    console.print(Text.assemble(("data  ", "bold"), told), soft_wrap=True)
    console.print()
    console.print(_table(report))
    for row in report.results:
        if worst := _worst(row["per_class"]):
            console.print(Text.assemble(("  worst  ", "bold"), f"{row['label']}: {worst}"), soft_wrap=True)
    for row in report.failures:
        console.print(Text.assemble(("  ✗ ", "red"), (f"{row['label']}: ", "bold"), row["error"]), soft_wrap=True)
    for row in report.results:
        if row["finding"]:
            console.print(Text.assemble(("  ✗ ", "red"), (f"{row['label']}: ", "bold"), row["finding"]), soft_wrap=True)
    if report.notes:
        print_notes(console, report.notes)


def _worst(classes: list[dict[str, Any]], most: int = 3) -> str:
    """The classes with the lowest accuracy; empty where all are right, or there is only one."""
    found = sorted((each for each in classes if each["top1"] < 1), key=lambda each: each["top1"])[:most]
    if len(classes) < 2:
        return ""
    return ", ".join(f"{each['name'] or each['class']} {100 * each['top1']:.1f} % of {each['n']}" for each in found)


def _table(report: EvaluateReport) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", style="cyan", overflow="fold")
    for column in ("top-1", "95 % interval", "top-5", "changed", "lost", "won", "McNemar p"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.results:
        low, high = row["top1_ci95"]
        top5 = "–" if row["top5"] is None else f"{100 * row['top5']:.2f} %"
        first = row["mcnemar_p"] is None
        table.add_row(
            row["label"], f"{100 * row['top1']:.2f} %", f"{100 * low:.2f} to {100 * high:.2f}", top5,
            *(("–",) * 4 if first else (
                str(row["changed"]), str(row["only_reference_right"]), str(row["only_this_right"]),
                f"{row['mcnemar_p']:.3g}",
            )),
        )  # fmt: skip
    return table
