"""``resnet-export bundle``: everything that a device needs, in one folder or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

import click

from exporter.cli.options import output_options

_EXAMPLES = """\b
Examples:
  resnet-export bundle r50.onnx r50_trt.onnx r50_ort.onnx --data images/ -o build/bundle
  resnet-export bundle r50.onnx r50.engine --data images/ --license NOTICE -o r50.tar.zst
  resnet-export verify build/bundle
  python3 build/bundle/run.py check
"""


@click.command("bundle", epilog=_EXAMPLES, short_help="Put everything that a device needs into one folder or file.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER|FILE.tar.zst",
    help="Where the bundle goes.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Golden images: a folder, class folders, a list or an array file.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="N",
    help="How many, sampled evenly over the classes.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="N", help="Of the sample."
)
@click.option("--preset", type=click.Choice(["imagenet", "cifar"]), help="Preprocessing, where the models tell none.")
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="Class names, one a line.")
@click.option(
    "--license",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Licence of the weights, or a notice of where they come from.",
)
@click.option("--dla", is_flag=True, help="Also what a DLA of TensorRT 10 and before needs for INT8.")
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Put MODELs, how images become their input, golden inputs and outputs and a program that runs them into a bundle.

    A MODEL is an ONNX file, or an engine with the document that lies beside it; its metadata tell what it is for. Every
    ONNX model is run here and has to compute what the first float one does, or there is no bundle. The same models and
    images give the same bytes.
    """
    from calibration.listing import find_images
    from exporter.bundle.write import BundleOptions, write_bundle

    names = ("images", "seed", "preset", "labels", "license", "dla")
    options = BundleOptions(**{name: given[name] for name in names})
    report = write_bundle(given["models"], find_images(given["data"]), given["output"], options)
    if document is not None:
        from exporter.cli.stdout import write_document

        write_document(document, report.to_json())
    elif not given["quiet"]:
        _show(report)


def _show(report: Any) -> None:
    for model in report.manifest["models"]:
        click.echo(f"{model['id']:<24} {model['file']}")
        for row in model["measured"]:
            click.echo(
                f"  against the {row['against']}: {row['sqnr_db']:.1f} dB, top-1 agreement {row['top1_agreement']:.2%}"
            )
    if not report.manifest["license"]["given"]:
        click.echo("no licence was given (--license FILE), and the bundle says so", err=True)
    click.echo(f"{report.bundle}  {report.size / 1e6:.1f} MB, manifest {report.manifest_sha256}")
