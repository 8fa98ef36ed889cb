"""The quantisation job: images and a float file in, a quantised file and what it costs out.

One function, :func:`quantise_onnx`; it prints nothing and writes one file.
"""

from __future__ import annotations

import json
import math
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
from calibration.collect import Progress, batch_size
from calibration.graph import Network, input_size
from calibration.images import BadFile, batches, find_images, sample
from calibration.listing import ImageFile
from calibration.outcome import Listener, Options, Quantised
from calibration.placement import place
from calibration.preprocess import Preprocessing
from calibration.quantise import FEWEST_IMAGES, quantise
from calibration.ranges import Ranges, read_ranges
from exporter.files import check_output, reserve
from exporter.graph.check import operator_counts
from exporter.graph.metadata import write_metadata
from exporter.quantisation_inputs import contract_of, open_model
from runtimes.errors import InputError
from runtimes.ort import OrtRuntime
from runtimes.statistics import Accumulator

# Bytes of images that refinement holds; ranges need none of them at the same time.
_REFINED: Final = 256 << 20
# Without images of their own, fidelity takes one in so many of those given, and calibration the rest.
_SET_ASIDE: Final = 5
_MOST_ASIDE: Final = 512


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
class Fidelity:
    """What the quantised file does to the logits, on images that nothing was learned from.

    Attributes:
        images: Number of images.
        sqnr_db: Of its logits against the float file's, in decibels.
        agreement: Fraction of the images with the same largest logit.
        top1_float: Accuracy of the float file, where labels are known.
        top1_int8: Accuracy of the quantised file.
        runtime: What ran the quantised file.
        unseen: Whether it is known that the images took no part in calibration; ranges from a file do not tell.
    """

    images: int
    sqnr_db: float
    agreement: float
    top1_float: float | None
    top1_int8: float | None
    runtime: str
    unseen: bool

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dict(vars(self))


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
    check_output(output, given)
    begin = time.perf_counter()
    network, metadata = open_model(inputs.model)
    place(network, options.target)  # what cannot be placed is told before any image is read
    ranges = read_ranges(inputs.ranges) if inputs.ranges else None
    contract = _contract(network, metadata, inputs, ranges)
    chosen = _images(inputs, options.seed)
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
            fidelity, used = _fidelity(inputs, contract, network, data, options, chosen, skipped)
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


@dataclass(frozen=True)
class _Chosen:
    """Images to calibrate with and others to measure fidelity on, and the fraction of each that may be bad."""

    files: list[ImageFile]
    aside: list[ImageFile]
    max_bad: float
    max_bad_aside: float


def _images(inputs: Inputs, seed: int) -> _Chosen:
    allowed = inputs.max_bad
    evaluation = find_images(inputs.evaluation) if inputs.evaluation is not None else []
    if inputs.data is None:
        if inputs.ranges is None:
            raise InputError("there is nothing to calibrate with: give --data DIR, or --ranges FILE")
        return _Chosen([], evaluation, allowed, allowed)
    found = find_images(inputs.data)
    chosen = sample(found, inputs.images, seed)
    if evaluation:
        return _Chosen(chosen, evaluation, allowed, allowed)
    taken = set(chosen)
    rest = [file for file in found if file not in taken]
    if len(rest) >= len(chosen) // _SET_ASIDE and rest:
        return _Chosen(chosen, sample(rest, _MOST_ASIDE, seed), allowed, allowed)
    aside = chosen[::_SET_ASIDE]
    kept = [file for place, file in enumerate(chosen) if place % _SET_ASIDE]
    if len(kept) < FEWEST_IMAGES:
        return _Chosen(chosen, [], allowed, allowed)
    # The fraction is one of all images: all the bad ones may happen to be on one side.
    bad = math.floor(allowed * len(chosen) + 1e-9)
    return _Chosen(kept, aside, min(1.0, bad / len(kept)), min(1.0, bad / len(aside)))


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


def _fidelity(
    inputs: Inputs,
    contract: Preprocessing,
    network: Network,
    data: bytes,
    options: Options,
    chosen: _Chosen,
    skipped: list[BadFile],
) -> tuple[Fidelity, list[ImageFile]]:
    """Run both files over images, batch by batch; the images that could be used, too."""
    # What other runtimes compute is what the Q/DQ says; ONNX Runtime's own fusions are what its users get.
    own = options.target.name == "onnxruntime"
    statistics = Accumulator()
    right = np.zeros(2, np.int64)
    labelled = 0
    used: list[ImageFile] = []
    with (
        OrtRuntime(network.model.SerializeToString(), "float", threads=inputs.threads) as exact,
        OrtRuntime(data, "int8", threads=inputs.threads, optimize=own) as rough,
    ):
        found = batches(
            chosen.aside, contract, _batch(network, chosen.aside, contract), max_bad=chosen.max_bad_aside,
            on_bad=skipped.append,
        )  # fmt: skip
        for tensor, taken in found:
            used.extend(taken)
            padded = _filled(network, tensor)
            logits = [runtime.run(padded)[: len(tensor)] for runtime in (exact, rough)]
            statistics.update(*logits)
            labels = np.array([-1 if file.label is None else file.label for file in taken])
            labelled += int((labels >= 0).sum())
            right += [int((each.argmax(axis=1) == labels).sum()) for each in logits]
            classes = logits[0].shape[1]
    result = statistics.result()
    known = labelled == result.n and _are_classes(used, classes)
    fidelity = Fidelity(
        images=result.n,
        sqnr_db=result.sqnr_db,
        agreement=result.top1_agreement,
        top1_float=int(right[0]) / result.n if known else None,
        top1_int8=int(right[1]) / result.n if known else None,
        runtime="onnxruntime" if own else "onnxruntime, Q/DQ taken literally",
        unseen=True,
    )
    return fidelity, used


def _batch(network: Network, files: Sequence[ImageFile], contract: Preprocessing) -> int:
    _, _, height, width = input_size(network)
    if height is None or width is None:
        first, _ = next(iter(batches(files, contract, 1, max_bad=1.0)))
        height, width = first.shape[2:]
    return batch_size(network, height, width)


def _filled(network: Network, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A last batch of a model with a fixed batch, filled up with its own first image."""
    fixed = input_size(network)[0]
    if fixed is None or len(tensor) == fixed:
        return tensor
    return np.concatenate([tensor, np.repeat(tensor[:1], fixed - len(tensor), axis=0)])


def _are_classes(files: Sequence[ImageFile], classes: int) -> bool:
    """Whether labels can be the model's classes: as many folders as it has, or numbers from a list."""
    names = {file.class_name for file in files if file.class_name is not None}
    return len(names) == classes if names else max(file.label or 0 for file in files) < classes


def read_quantisation(model: onnx.ModelProto) -> dict[str, Any] | None:
    """What a quantised file says of how it was made; ``None`` for a file from elsewhere."""
    for item in model.metadata_props:
        if item.key == "resnet_export.quantisation":
            found: dict[str, Any] = json.loads(item.value)
            return found
    return None
