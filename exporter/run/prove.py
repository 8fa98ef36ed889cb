"""The stages that measure: parity, accuracy, latency, and the report over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.run.gates import annotated, judge
from exporter.run.layout import Layout
from exporter.run.make import write_json
from exporter.run.runtimes import Subject, spec_of, subjects
from exporter.run.settings import Settings
from exporter.run.stage import Made
from runtimes.errors import UnavailableError

if TYPE_CHECKING:
    from calibration.images import BadFile
    from calibration.preprocess import Preprocessing
    from exporter.opening import Opening

_KINDS = {"html": "html", "md": "markdown", "xml": "junit"}


def parity(settings: Settings, who: Sequence[Subject]) -> Made:
    """Every file on its runtime, held against the model."""
    from calibration.listing import find_images
    from exporter.compare import CompareOptions, compare_models

    models, contract, notes = _opened(settings, who)
    wanted, data, images = settings["parity"], settings["data"], _images(settings)
    listing = find_images(images)
    options = CompareOptions(
        images=wanted["images"], seed=data["seed"], batch=wanted["batch"], max_bad=data["max_bad"],
        simulated=wanted["simulated"],
    )  # fmt: skip
    report = compare_models(models, listing, contract, options, path=str(images), on_bad=notes.bad)
    told = report.to_json()
    if wanted["drift"]:
        from exporter.drift_rows import drift_rows

        told["drift"] = drift_rows(models, listing, contract, seed=data["seed"])
        told["passed"] = report.passed and all(row["passed"] for row in told["drift"])
    write_json(Layout(settings.folder).document("parity"), told)
    failed = sum(not row["passed"] for row in told["results"])
    rows = len(told["results"])
    summary = f"{failed} of {rows} do not agree" if failed else f"all {rows} comparisons agree"
    # What is to be said of the model was said when it was exported.
    said = [note for note in report.notes if not note.startswith(f"{models[0].label}: ")]
    return Made(summary, (*notes.lines, *said))


def evaluate(settings: Settings, who: Sequence[Subject]) -> Made:
    """Accuracy of the model and of every file."""
    from calibration.listing import find_images
    from exporter.evaluate import EvaluateOptions, evaluate_models
    from exporter.proof_inputs import agreed_labels

    models, contract, notes = _opened(settings, who)
    wanted, data, images = settings["evaluate"], settings["data"], _images(settings)
    options = EvaluateOptions(
        images=wanted["images"], seed=data["seed"], batch=wanted["batch"], workers=data["workers"] or 0,
        max_bad=data["max_bad"],
    )  # fmt: skip
    names = agreed_labels(models)
    report = evaluate_models(
        [model.subject() for model in models], find_images(images), contract, options, path=str(images),
        class_names=names, on_bad=notes.bad,
    )  # fmt: skip
    write_json(Layout(settings.folder).document("evaluate"), report.to_json())
    tops = [row["top1"] for row in report.results]
    first = f"top-1 {100 * tops[0]:.2f} %" if tops else "nothing could be run"
    told = first + (f", lowest {100 * min(tops):.2f} %" if tops else "")
    return Made(told, (*notes.lines, *report.notes))


def bench(settings: Settings, who: Sequence[Subject]) -> Made:
    """Latency of the model and of every file, in turns."""
    from calibration.listing import find_images, sample
    from exporter.bench import bench_images, bench_models
    from runtimes.turns import Plan

    models, contract, notes = _opened(settings, who)
    wanted, seed = settings["bench"], settings["data"]["seed"]
    plan = Plan(wanted["rounds"], wanted["turn_ms"], seed=seed % (1 << 32), isolated=wanted["cold"])
    sizes = wanted["batches"]
    listing = sample(find_images(settings.images), max(sizes), seed) if settings.images is not None else ()
    # As many as a batch: those of them that can be used are enough, and the other proofs count the rest.
    images = bench_images(contract, max(sizes), listing, max_bad=1.0)
    report = bench_models([model.subject() for model in models], sizes, images, plan)
    write_json(Layout(settings.folder).document("bench"), report.to_json())
    rows = [row for row in report.results if row["batch"] == sizes[0]]
    fastest = min(rows, key=lambda row: float(row["p50_ms"]), default=None)
    told = "nothing could be measured" if fastest is None else f"{fastest['label']} {fastest['p50_ms']:.2f} ms"
    noisy = ("times moved much from turn to turn: measure on a quieter machine",) if _noisy(report.results) else ()
    return Made(told, (*notes.lines, *noisy))


def report(settings: Settings, documents: Sequence[str]) -> Made:
    """One report of all that was measured, in which a gate that fails is a failure."""
    from exporter.report_files import report_of, reserved, write_reports

    layout, output = Layout(settings.folder), settings["output"]
    read = read_documents(settings, documents)
    read = annotated(read, judge(settings, read))
    wanted = {"html": True, "md": output["markdown"], "xml": output["junit"]}
    places = {_KINDS[suffix]: layout.report(suffix) for suffix, asked in wanted.items() if asked}
    title = output["title"] or Path(settings["model"]["source"]).name
    with reserved(places) as open_places:
        write_reports(open_places, title=title, layers=_layers(settings, read.get("parity", {})), documents=read)
    return Made(report_of(read, None).verdict.headline)


def _layers(settings: Settings, document: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What each layer of the first INT8 file holds, where its drift was followed."""
    from exporter.layer_ranges import layer_rows
    from exporter.opening import prepare

    drift = document.get("drift") or ()
    followed = {row["label"] for row in drift if row["layers"]}
    small = (each for each in subjects(settings) if each.int8 and each.label in followed)
    return layer_rows([prepare(spec_of(settings, each)) for each in islice(small, 1)], drift)


def read_documents(settings: Settings, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the stages before wrote, by the name of the command."""
    layout = Layout(settings.folder)
    return {name: json.loads(layout.document(name).read_bytes()) for name in names if layout.document(name).is_file()}


class _Notes:
    """What a stage has to say besides its result."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def bad(self, file: BadFile) -> None:
        self.lines.append(f"{file.path} was skipped: {file.reason}")


def _opened(settings: Settings, who: Sequence[Subject]) -> tuple[list[Opening], Preprocessing, _Notes]:
    """The models that this machine can run, what they are fed with, and a note for each of the others.

    Raises:
        UnavailableError: One that is not optional cannot be run here.
    """
    from exporter.opening import prepare
    from exporter.quantisation_inputs import stored_contract
    from runtimes.kinds import TITLES
    from runtimes.rows import ROWS

    notes, found = _Notes(), []
    for subject in who:
        if subject.optional and not Path(subject.file).exists():  # its engine could not be built here
            notes.lines.append(f"{subject.label} is left out: it was not made on this machine")
            continue
        try:
            spec = spec_of(settings, subject)
            if spec.kind not in ROWS[spec.name].takes:  # an engine of whichever TensorRT was there
                notes.lines.append(f"{subject.label} is left out: it is {TITLES[spec.kind]}")
                continue
            model = prepare(spec)
            if subject.optional:
                with ExitStack() as stack:
                    stack.enter_context(model.runtime)
            found.append(model)
        except UnavailableError as error:
            if not subject.optional:
                raise
            notes.lines.append(f"{subject.label} is left out: {error}")
    # The float file's own: the model's may have been replaced by [data].
    contract = stored_contract(read_float_metadata(settings))
    assert contract is not None  # exporter.pipeline writes it into every file
    return found, contract, notes


def read_float_metadata(settings: Settings) -> dict[str, Any]:
    """What the float file says of itself."""
    from exporter.graph.metadata import read_metadata
    from runtimes.reading import read_model

    model, _ = read_model(Layout(settings.folder).model, "run the pipeline again")
    return read_metadata(model)


def _images(settings: Settings) -> Path:
    assert settings.images is not None  # exporter.run.rows builds no such stage without images
    return settings.images


def _noisy(rows: Sequence[dict[str, Any]]) -> bool:
    return any(row["noisy"] for row in rows)
