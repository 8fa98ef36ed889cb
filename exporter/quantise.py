"""The quantisation job: images and a float file in, a quantised file and what it costs out.

One function, :func:`quantise_onnx`; it prints nothing and writes one file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from calibration.audit import content_hashes, overlap, overlap_warning
from calibration.calibrate import calibrate
from calibration.collect import Progress
from calibration.graph import Network
from calibration.images import BadFile, batches
from calibration.listing import ImageFile
from calibration.outcome import Listener, Options, Quantised
from calibration.placement import place
from calibration.preprocess import Preprocessing
from calibration.quantise import FEWEST_IMAGES, quantise
from calibration.ranges import Ranges, read_ranges
from exporter.division import divide
from exporter.fidelity import Fidelity, measure
from exporter.files import check_output, reserve
from exporter.graph.check import operator_counts
from exporter.graph.metadata import write_metadata
from exporter.quantisation_inputs import contract_of, open_model
from runtimes.errors import InputError
from runtimes.reading import external_files

# Bytes of images that refinement holds; ranges need none of them at the same time.
_REFINED: Final = 256 << 20


@dataclass(frozen=True)
class Inputs:
    """What the job reads.

    Attributes:
        model: Float ONNX file.
        data: Images to calibrate and refine with; ``None`` with ``ranges`` and effort ``fast``.
        ranges: A ranges file; ``None``: calibrate with ``data`` first.
        evaluation: Images to measure fidelity on; ``None``: some of ``data`` are set aside.
        images: How many of ``data`` are sampled; 0: all.
        preset: Preprocessing to start from, where not the file's own.
        fields: Fields of the preprocessing that are overridden.
        max_bad: Fraction of the images that may be unusable.
        workers: Processes that decode; ``None``: as many as are worth it.
        threads: Threads of an operator; ``None``: one per core.
    """

    model: Path
    data: Path | None = None
    ranges: Path | None = None
    evaluation: Path | None = None
    images: int = 512
    preset: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    max_bad: float = 0.01
    workers: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class QuantiseReport:
    """What was made, and what it cost.

    Attributes:
        onnx: The file.
        sha256: Of its bytes.
        size: Its bytes.
        float_size: Bytes of the float file.
        options: What was asked for.
        ranges: What the scales come from.
        result: The model, its placement, steps and sensitivity.
        fidelity: ``None`` without images.
        ops: Operator -> number of nodes.
        skipped: Files that could not be used.
        warnings: About the images.
        seconds: By stage.
    """

    onnx: Path
    sha256: str
    size: int
    float_size: int
    options: Options
    ranges: Ranges
    result: Quantised
    fidelity: Fidelity | None
    ops: dict[str, int]
    skipped: tuple[BadFile, ...]
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        placement = self.result.placement
        activations = self.result.parameters.activations
        return {
            "onnx": str(self.onnx),
            "sha256": self.sha256,
            "bytes": self.size,
            "float_bytes": self.float_size,
            "target": self.options.target.name,
            "method": self.options.method,
            "effort": self.result.effort,
            "seed": self.options.seed,
            "ops": self.ops,
            "ranges": {
                "model_sha256": self.ranges.model_sha256,
                "preprocessing_sha256": self.ranges.preprocessing_sha256,
                "images": self.ranges.images,
                "images_sha256": self.ranges.images_sha256,
                "tensors": {
                    name: {"low": each.low, "high": each.high, "scale": each.scale, "zero_point": each.zero_point}
                    for name, each in activations.items()
                },
            },
            "gains": [step.to_json() for step in self.result.steps],
            "fidelity": self.fidelity.to_json() if self.fidelity else None,
            "quantised": {"activations": len(placement.sites), "layers": len(placement.weights)},
            "float_layers": dict(placement.left),
            "sensitivity": [row.to_json() for row in self.result.sensitivity],
            "skipped": [{"path": str(file.path), "reason": file.reason} for file in self.skipped],
            "warnings": list(self.warnings),
            "notes": list(self.result.notes),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


def quantise_onnx(
    inputs: Inputs,
    output: Path,
    options: Options,
    listener: Listener | None = None,
    progress: Progress | None = None,
) -> QuantiseReport:
    """Quantise a float ONNX file for one target.

    Args:
        inputs: What is read.
        output: Where the file goes; nothing is left there, and nothing is lost, when this raises.
        options: What is asked for.
        listener: Hears of each step of refinement.
        progress: Hears of the number of images calibrated.

    Raises:
        DataError: Images or ranges that cannot be used or do not belong to the model.
        GraphError: A model that cannot be read, is quantised already, or has nothing to quantise.
        InputError: Options that contradict each other.
    """
    given = [path for path in (inputs.model, inputs.data, inputs.ranges, inputs.evaluation) if path is not None]
    check_output(output, [*given, *external_files(inputs.model)])
    begin = time.perf_counter()
    network, metadata = open_model(inputs.model)
    place(network, options.target)  # what cannot be placed is told before any image is read
    ranges = read_ranges(inputs.ranges) if inputs.ranges else None
    contract = _contract(network, metadata, inputs, ranges)
    if inputs.data is None and ranges is None:
        raise InputError("there is nothing to calibrate with: give --data DIR, or --ranges FILE")
    chosen = divide(inputs.data, inputs.evaluation, inputs.images, options.seed, inputs.max_bad)
    files = chosen.files
    with reserve(output) as target:
        skipped: list[BadFile] = []
        warnings: list[str] = []
        seconds = {"load": time.perf_counter() - begin}
        if ranges is None:
            begin = time.perf_counter()
            done = calibrate(
                network, files, contract, threads=inputs.threads, workers=inputs.workers, max_bad=chosen.max_bad,
                state=target.path.with_name(f"{target.path.name}.partial"), progress=progress,
            )  # fmt: skip
            ranges, files = done.ranges, list(done.files)
            skipped.extend(done.bad)
            warnings.extend(done.warnings)
            seconds["calibrate"] = time.perf_counter() - begin
        begin = time.perf_counter()
        images = labels = None
        if files and _needs_images(options):
            images, labels = _refinement_images(files, contract, chosen.max_bad, skipped)
        result = quantise(network, ranges, options, images, listener, labels)
        seconds["quantise"] = time.perf_counter() - begin
        begin = time.perf_counter()
        write_metadata(result.model, _metadata(metadata, replace(options, effort=result.effort), ranges))
        data = result.model.SerializeToString(deterministic=True)
        fidelity = None
        if chosen.aside:
            fidelity, used = measure(
                network, data, chosen.aside, contract, fused=options.target.name == "onnxruntime",
                threads=inputs.threads, max_bad=chosen.max_bad_aside, on_bad=skipped.append,
            )  # fmt: skip
            bad = {file.path for file in skipped}
            read = [file for file in files if file.path not in bad or file.row is not None]
            line = overlap_warning(overlap(content_hashes(used), content_hashes(read)))
            warnings.extend([line] if line else [])
            fidelity = replace(fidelity, unseen=inputs.ranges is None and line is None)
        seconds["fidelity"] = time.perf_counter() - begin
        sha256 = target.commit(data)
    return QuantiseReport(
        output, sha256, len(data), inputs.model.stat().st_size, options, ranges, result, fidelity,
        operator_counts(result.model), tuple(skipped), tuple(warnings), seconds,
    )  # fmt: skip


def _needs_images(options: Options) -> bool:
    return options.effort != "fast" or bool(options.keep_worst) or options.max_drop is not None


def _contract(network: Network, metadata: Mapping[str, Any], inputs: Inputs, ranges: Ranges | None) -> Preprocessing:
    told = inputs.preset is not None or any(value is not None for value in inputs.fields.values())
    if ranges is None:
        return contract_of(network, metadata, inputs.preset, inputs.fields)
    ranges.require(model_sha256=network.sha256)
    if told or "preprocessing" in metadata:
        ranges.require(preprocessing=contract_of(network, metadata, inputs.preset, inputs.fields))
    return ranges.preprocessing


def _refinement_images(
    files: Sequence[ImageFile], contract: Preprocessing, max_bad: float, skipped: list[BadFile]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]:
    """As many of the files as memory is set aside for, evenly over the list, and their labels where all have one."""
    first, _ = next(iter(batches(files, contract, 1, max_bad=1.0)))
    most = max(FEWEST_IMAGES, _REFINED // first.nbytes)
    chosen = files if len(files) <= most else [files[int(i)] for i in np.linspace(0, len(files) - 1, most)]
    parts = list(batches(chosen, contract, 64, max_bad=max_bad, on_bad=skipped.append))
    labels = [file.label for _, taken in parts for file in taken if file.label is not None]
    images = np.concatenate([batch for batch, _ in parts])
    return images, np.array(labels) if len(labels) == len(images) else None


def _metadata(metadata: Mapping[str, Any], options: Options, ranges: Ranges) -> dict[str, Any]:
    """What the file says of itself: enough to make it again."""
    return {
        **metadata,
        "precision": "int8",
        "quantisation": {
            "target": options.target.name,
            "method": options.method,
            "effort": options.effort,
            "seed": options.seed,
            "cpu": options.target.cpu,
            "fold_zero_point": options.target.folds,
            "keep_fp": sorted(options.keep) or options.keep_worst,
            "max_drop": options.max_drop,
            "model_sha256": ranges.model_sha256,
            "preprocessing_sha256": ranges.preprocessing_sha256,
            "images": ranges.images,
            "images_sha256": ranges.images_sha256,
        },
        "preprocessing": ranges.preprocessing.to_json(),
        "preprocessing_sha256": ranges.preprocessing_sha256,
    }


def read_quantisation(model: onnx.ModelProto) -> dict[str, Any] | None:
    """What a quantised file says of how it was made; ``None`` for a file from elsewhere."""
    for item in model.metadata_props:
        if item.key == "resnet_export.quantisation":
            found: dict[str, Any] = json.loads(item.value)
            return found
    return None
