"""``resnet-export calibrate``: the ranges of a network's activations, read off once for all targets."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.bar import Bar
from exporter.cli.cluster import check_ray, ray_options
from exporter.cli.options import output_options, output_path, preprocessing_options
from exporter.cli.stdout import tell

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from calibration.calibrate import Calibration
    from calibration.graph import Network
    from calibration.grids import Grid
    from calibration.images import ImageFile
    from calibration.observers import Observer
    from calibration.preprocess import Preprocessing

_EXAMPLES = """\b
Examples:
  A file of resnet-export onnx, which says itself how its images are preprocessed:
    resnet-export calibrate r20.onnx --data images/train -o r20.ranges.json
  All images, and the ranges that each method would choose:
    resnet-export calibrate r20.onnx --data images/train --images 0 -o r20.ranges.json --verbose
  A file from elsewhere:
    resnet-export calibrate net.onnx --data images/ --preset imagenet -o net.ranges.json
  A large set on the machines of a Ray cluster, which share the folder:
    resnet-export calibrate r50.onnx --data /shared/train --images 50000 -o r50.ranges.json --ray auto
"""


@click.command("calibrate", epilog=_EXAMPLES, short_help="Read the ranges of a model's activations off images.")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="Images such as the model will see: a folder, class folders, a list or an array file.")  # fmt: skip
@output_path
@click.option("--images", "image_count", type=click.IntRange(min=0), default=512, show_default=True, metavar="N",
              help="How many of them, sampled evenly over classes; 0: all.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="N",
              help="Of the sample.")  # fmt: skip
@click.option("--max-bad", type=click.FloatRange(0, 1), default=0.01, show_default=True, metavar="N",
              help="Fraction of the images that may be unusable; they are skipped and listed.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=0), metavar="N",
              help="Processes that decode images; default: as many as are worth it.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N",
              help="Threads that run the model; default: one per core, and one in each worker of --ray.")  # fmt: skip
@click.option("--provider", "providers", multiple=True, metavar="NAME", default=["CPUExecutionProvider"],
              help="ONNX Runtime's execution provider; several: first choice first.")  # fmt: skip
@click.option("--resume/--no-resume", default=True, show_default=True,
              help="Keep what an interrupted run has in FILE.partial, and go on with it; not with --ray.")  # fmt: skip
@ray_options
@preprocessing_options
@output_options
@click.option("-v", "--verbose", is_flag=True, help="Print the range of every tensor by every method.")
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Run MODEL.onnx over images once, and write the ranges of its activations.

    One pass serves every method (minmax, average, percentile, entropy, mse) and every target: both are chosen when
    the model is quantised. Images without which a range is poor (few, of one class, copies, wrong pixels) are warned
    of. The file is bound to the model, the preprocessing and the images by their hashes.
    """
    check_ray(given, "workers", None)
    check_ray(given, "providers", ("CPUExecutionProvider",))
    silent = given["quiet"] or given["as_json"]
    done = _run(given, None if silent else Bar())
    tell(document, given["quiet"], _document(done), lambda console: _show(console, done, given["verbose"]))


@dataclass(frozen=True)
class _Done:
    """What the command did: where the ranges are, their hash, and seconds by stage."""

    model: Path
    output: Path
    sha256: str
    result: Calibration
    resumed: int
    seconds: dict[str, float]


def _run(given: dict[str, Any], bar: Bar | None) -> _Done:
    from exporter.contracts import FIELDS
    from exporter.files import check_output, reserve
    from exporter.quantisation_inputs import choose_images, contract_of, open_model

    begin = time.perf_counter()
    check_output(given["output"], [given["model"], given["data"]])
    network, metadata = open_model(given["model"])
    contract = contract_of(network, metadata, given["preset"], {name: given[name] for name in FIELDS})
    files = choose_images(given["data"], given["image_count"], given["seed"])
    with reserve(given["output"]) as output:
        loaded = time.perf_counter()
        kept = given["resume"] and given["ray"] is None
        state = output.path.with_name(f"{output.path.name}.partial") if kept else None
        result, resumed = _observe(network, files, contract, given, state, bar)
        observed = time.perf_counter()
        digest = output.commit(result.ranges.dumps())
    end = time.perf_counter()
    seconds = {
        "load": loaded - begin,
        "calibrate": observed - loaded,
        "of_it_forward": result.seconds,
        "write": end - observed,
        "total": end - begin,
    }
    return _Done(given["model"], output.path, digest, result, resumed, seconds)


def _observe(
    network: Network,
    files: list[ImageFile],
    contract: Preprocessing,
    given: dict[str, Any],
    state: Path | None,
    bar: Bar | None,
) -> tuple[Calibration, int]:
    """The calibration, and how many images of it an earlier run did."""
    heard: list[int] = []

    def progress(images: int) -> None:
        heard.append(images)
        if bar:
            bar.show(images, len(files))

    try:
        result = _calibrate(network, files, contract, given, state, progress)
    except KeyboardInterrupt:
        if bar:
            bar.close()
            # Before the first batch, what lies there is an earlier run's, and perhaps of something else.
            if state is not None and any(heard) and state.exists():
                bar.note(f"{state} holds the images done so far: the same command goes on from there")
        raise
    finally:
        if bar:
            bar.close()
    if bar:
        bar.finished(result.ranges.images - heard[0])
    return result, heard[0]


def _calibrate(
    network: Network,
    files: list[ImageFile],
    contract: Preprocessing,
    given: dict[str, Any],
    state: Path | None,
    progress: Callable[[int], None],
) -> Calibration:
    """In this process, or on a cluster."""
    if given["ray"] is None:
        from calibration.calibrate import calibrate

        return calibrate(
            network, files, contract,
            providers=given["providers"], threads=given["threads"], workers=given["workers"],
            max_bad=given["max_bad"], state=state, progress=progress,
        )  # fmt: skip
    from calibration.cluster import connected
    from calibration.distributed import calibrate_on

    with connected(given["ray"], given["ray_workers"], given["threads"] or 1) as cluster:
        return calibrate_on(
            cluster, network, files, contract, max_bad=given["max_bad"], ship=given["ray_ship"], progress=progress
        )


def _grid(observer: Observer) -> tuple[str, Grid]:
    """The 8 bits in which a range is shown; the one that counts is the target's."""
    from calibration.grids import S8, U8

    return ("uint8", U8) if observer.low >= 0 else ("int8", S8)


def _methods(observer: Observer) -> dict[str, dict[str, float]]:
    """What each method would choose: the range, and how real numbers become integers."""
    from calibration.thresholds import METHODS, choose

    grid = _grid(observer)[1]
    found = {method: choose(observer, method, grid) for method in METHODS}
    return {
        method: {"low": each.low, "high": each.high, "scale": each.scale, "zero_point": each.zero_point}
        for method, each in found.items()
    }


def _document(done: _Done) -> dict[str, Any]:
    ranges = done.result.ranges
    return {
        "ranges": str(done.output),
        "sha256": done.sha256,
        "model": str(done.model),
        "model_sha256": ranges.model_sha256,
        "preprocessing": ranges.preprocessing.to_json(),
        "preprocessing_sha256": ranges.preprocessing_sha256,
        "images": ranges.images,
        "images_of_an_earlier_run": done.resumed,
        "images_sha256": ranges.images_sha256,
        "tensors": [
            {"name": name, "low": each.low, "high": each.high, "grid": _grid(each)[0], "methods": _methods(each)}
            for name, each in ranges.tensors.items()
        ],
        "skipped": [{"path": str(file.path), "reason": file.reason} for file in done.result.bad],
        "warnings": list(done.result.warnings),
        "seconds": {name: round(value, 4) for name, value in done.seconds.items()},
    }


def _show(console: Console, done: _Done, verbose: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    ranges, result = done.result.ranges, done.result
    earlier = f" ({done.resumed} of them by an earlier run)" if done.resumed else ""
    facts = {
        "model": f"{done.model}  ({ranges.model_sha256})",
        "images": f"{ranges.images}{earlier}",
        "tensors": str(len(ranges.tensors)),
        "skipped": f"{len(result.bad)} files",
        "warnings": str(len(result.warnings)),
        "ranges": f"{done.output}  ({done.output.stat().st_size / 1e6:.1f} MB)",
        "sha256": done.sha256,
    }
    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(Text(name, style="bold"), Text(fact))
    console.print(table)
    if verbose:
        _show_tensors(console, done)
    for file in result.bad:
        console.print(Text.assemble(("  skipped  ", "yellow"), f"{file.path}: {file.reason}"), soft_wrap=True)
    for line in result.warnings:
        console.print(Text.assemble(("  warning  ", "yellow"), line), soft_wrap=True)


def _show_tensors(console: Console, done: _Done) -> None:
    from rich.table import Table

    from calibration.thresholds import METHODS

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("tensor", style="cyan", overflow="fold")
    table.add_column("grid")
    for column in METHODS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, observer in done.result.ranges.tensors.items():
        kind, chosen = _grid(observer)[0], _methods(observer)
        spans = (f"{chosen[method]['low']:.3g} … {chosen[method]['high']:.3g}" for method in METHODS)
        table.add_row(name, kind, *spans)
    console.print()
    console.print(table)
    console.print()
