"""The stages that make files: each calls the one function that its command calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.files import reserve
from exporter.run.layout import Layout, beside, engine_source
from exporter.run.settings import Settings
from exporter.run.stage import Made

_FIELDS = ("resize", "interpolation", "color", "scale", "mean", "std")


def onnx(settings: Settings) -> Made:
    """The float file, folded, simplified and proven."""
    from exporter.inputs import with_preprocessing
    from exporter.labels import read_labels
    from exporter.models.source import SourceOptions, load_model
    from exporter.pipeline import export_onnx
    from exporter.results import OnnxOptions

    model, wanted, data = settings["model"], settings["onnx"], settings["data"]
    options = OnnxOptions(
        opset=wanted["opset"], precision=wanted["precision"], fp16_io=wanted["fp16_io"], batch=wanted["batch"],
        dynamic_size=wanted["dynamic_size"], simplify=wanted["simplify"], exporter=wanted["exporter"],
        labels=read_labels(Path(wanted["labels"])) if wanted["labels"] else (),
    )  # fmt: skip
    options.check()
    source = SourceOptions(
        weights=model["weights"], num_classes=model["num_classes"], in_channels=model["in_channels"],
        input_size=model["input_size"], checkpoint_key=model["checkpoint_key"], seed=model["seed"],
        norm_eps=model["bn_eps"],
    )  # fmt: skip
    loaded = load_model(model["source"], source)
    loaded = with_preprocessing(loaded, data["preset"], {name: data[name] for name in _FIELDS})
    output = Layout(settings.folder).model
    report = export_onnx(loaded, output, options)
    write_json(beside(output), report.to_json())
    worst = min(row["sqnr_db"] for row in report.parity)
    return Made(f"{report.size / 1e6:.1f} MB, opset {report.opset}, {worst:.0f} dB", report.notes)


def ranges(settings: Settings) -> Made:
    """The ranges of all activations, once for all targets; a run that was killed is gone on with."""
    from calibration.calibrate import calibrate
    from exporter.quantisation_inputs import choose_images, contract_of, open_model

    layout, data = Layout(settings.folder), settings["data"]
    network, metadata = open_model(layout.model)
    files = choose_images(Path(data["calibration"]), data["images"], data["seed"])
    with reserve(layout.ranges) as place:
        done = calibrate(
            network, files, contract_of(network, metadata, None, {}), threads=settings["quantize"]["threads"],
            workers=data["workers"], max_bad=data["max_bad"], state=layout.own / "ranges.partial",
        )  # fmt: skip
        place.commit(done.ranges.dumps())
    skipped = tuple(f"{file.path} was skipped: {file.reason}" for file in done.bad)
    return Made(f"{done.ranges.images} images, {len(done.ranges.tensors)} tensors", (*done.warnings, *skipped))


def int8(settings: Settings, target: str) -> Made:
    """The Q/DQ file for one target."""
    from calibration.outcome import Options
    from calibration.placement import target as target_of
    from exporter.quantise import Inputs, quantise_onnx

    layout, data, wanted = Layout(settings.folder), settings["data"], settings["quantize"]
    folds = wanted["fold_zero_point"]
    if target != "tensorrt":
        folds = None
    elif folds is None:
        folds = "all" if wanted["effort"] == "best" else "free"
    options = Options(
        target_of(target, cpu="any" if target == "tensorrt" else wanted["cpu"], folds=folds), wanted["method"],
        wanted["effort"], frozenset(wanted["keep_fp"]), wanted["keep_worst"], wanted["max_drop"], data["seed"],
    )  # fmt: skip
    inputs = Inputs(
        layout.model, Path(data["calibration"]), layout.ranges, None, data["images"], max_bad=data["max_bad"],
        workers=data["workers"], threads=wanted["threads"],
    )  # fmt: skip
    output = layout.int8(target)
    report = quantise_onnx(inputs, output, options)
    write_json(beside(output), report.to_json())
    layers = len(report.result.placement.weights)
    told = f"{report.size / 1e6:.1f} MB, {layers} layers"
    if report.fidelity is not None:
        told += f", {report.fidelity.sqnr_db:.1f} dB"
    skipped = tuple(f"{file.path} was skipped: {file.reason}" for file in report.skipped)
    return Made(told, (*report.warnings, *report.result.notes, *skipped))


def engine(settings: Settings, name: str) -> Made:
    """A TensorRT engine, with its document beside it."""
    from exporter.engine import build_engine
    from runtimes.tensorrt.build import BuildOptions
    from runtimes.tensorrt.profile import Size

    layout, wanted = Layout(settings.folder), settings[f"engine.{name}"]
    sizes = [None if wanted[each] is None else Size.parse(wanted[each]) for each in ("min", "opt", "max")]
    options = BuildOptions(
        precision=wanted["precision"], sizes=(sizes[0], sizes[1], sizes[2]), workspace_mib=wanted["workspace"],
        compute_capabilities=wanted["compute_capability"], version_compatible=wanted["version_compatible"],
        hardware=wanted["hardware_compatible"], strip=wanted["strip"], refit=wanted["refit"],
        dla_core=wanted["dla_core"],
    )  # fmt: skip
    report = build_engine(
        engine_source(settings, name), layout.engine(name), options, name=wanted["flavour"],
        ranges=layout.ranges if wanted["ranges"] else None,
    )  # fmt: skip
    told = f"{len(report.built.plan) / 1e6:.1f} MB, {report.built.precision}, {report.flavour.name}"
    return Made(f"{told} {report.flavour.version}", report.built.notes)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document in one step; NaN and Infinity, which JSON does not have, are a fault and raise."""
    with reserve(path) as place:
        place.commit((json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
