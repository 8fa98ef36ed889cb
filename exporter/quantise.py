"""The quantisation job: images and a float file in, a quantised file and what it costs out.

One function, :func:`quantise_onnx`; it prints nothing and writes one file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from calibration.placement import place
from calibration.preprocess import Preprocessing
from calibration.quantise import Listener, Options, Quantised, quantise
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
_FEWEST_ASIDE, _MOST_ASIDE = 2, 512


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
        unseen: Whether the images took no part in calibration.
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
            "effort": self.options.effort,
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
    read = [path for path in (inputs.model, inputs.data, inputs.ranges, inputs.evaluation) if path is not None]
    check_output(output, read)
    begin = time.perf_counter()
    network, metadata = open_model(inputs.model)
    place(network, options.target)  # what cannot be placed is told before any image is read
    ranges = read_ranges(inputs.ranges) if inputs.ranges else None
    contract = _contract(network, metadata, inputs, ranges)
    files, aside = _images(inputs, options.seed)
    with reserve(output) as target:
        skipped: list[BadFile] = []
        warnings: list[str] = []
        seconds = {"load": time.perf_counter() - begin}
        if ranges is None:
            begin = time.perf_counter()
            done = calibrate(
                network, files, contract, threads=inputs.threads, workers=inputs.workers, max_bad=inputs.max_bad,
                state=target.path.with_name(f"{target.path.name}.partial"), progress=progress,
            )  # fmt: skip
            ranges, files = done.ranges, list(done.files)
            skipped.extend(done.bad)
            warnings.extend(done.warnings)
            seconds["calibrate"] = time.perf_counter() - begin
        begin = time.perf_counter()
        images = _refinement_images(files, contract, inputs) if files and _needs_images(options) else None
        result = quantise(network, ranges, options, images, listener)
        seconds["quantise"] = time.perf_counter() - begin
        begin = time.perf_counter()
        write_metadata(result.model, _metadata(metadata, options, ranges))
        data = result.model.SerializeToString(deterministic=True)
        fidelity = _fidelity(inputs, contract, network, data, options, aside, skipped) if aside else None
        if aside:
            line = overlap_warning(overlap(content_hashes(aside), content_hashes(files)))
            warnings.extend([line] if line else [])
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


def _images(inputs: Inputs, seed: int) -> tuple[list[ImageFile], list[ImageFile]]:
    """Images to calibrate with and others to measure fidelity on."""
    if inputs.data is None:
        if inputs.ranges is None:
            raise InputError("there is nothing to calibrate with: give --data DIR, or --ranges FILE")
        return [], find_images(inputs.evaluation) if inputs.evaluation else []
    found = find_images(inputs.data)
    chosen = sample(found, inputs.images or None, seed)
    if inputs.evaluation is not None:
        return chosen, find_images(inputs.evaluation)
    taken = set(chosen)
    rest = [file for file in found if file not in taken]
    if len(rest) >= len(chosen) // _SET_ASIDE and rest:
        return chosen, sample(rest, _MOST_ASIDE, seed)
    if len(chosen) < 2 * _SET_ASIDE:
        return chosen, []
    aside = chosen[::_SET_ASIDE]
    return [file for place, file in enumerate(chosen) if place % _SET_ASIDE], aside


def _refinement_images(files: Sequence[ImageFile], contract: Preprocessing, inputs: Inputs) -> npt.NDArray[np.float32]:
    """As many of the files as memory is set aside for, evenly over the list."""
    first, _ = next(iter(batches(files, contract, 1, max_bad=1.0)))
    most = max(1, _REFINED // first.nbytes)
    chosen = files if len(files) <= most else [files[int(i)] for i in np.linspace(0, len(files) - 1, most)]
    read = [batch for batch, _ in batches(chosen, contract, 64, max_bad=inputs.max_bad)]
    return np.concatenate(read)


def _metadata(metadata: Mapping[str, Any], options: Options, ranges: Ranges) -> dict[str, Any]:
    return {
        **metadata,
        "precision": "int8",
        "quantisation": {
            "target": options.target.name,
            "method": options.method,
            "effort": options.effort,
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
    files: Sequence[ImageFile],
    skipped: list[BadFile],
) -> Fidelity:
    """Run both files over images, batch by batch."""
    # What other runtimes compute is what the Q/DQ says; ONNX Runtime's own fusions are what its users get.
    own = options.target.name == "onnxruntime"
    statistics = Accumulator()
    right = np.zeros(2, np.int64)
    labelled = 0
    size = None
    with (
        OrtRuntime(network.model.SerializeToString(), "float", threads=inputs.threads) as exact,
        OrtRuntime(data, "int8", threads=inputs.threads, optimize=own) as rough,
    ):
        found = batches(
            files, contract, _batch(network, files, contract), max_bad=inputs.max_bad, on_bad=skipped.append
        )
        for tensor, taken in found:
            size = size or len(tensor)
            padded = _filled(network, tensor)
            logits = [runtime.run(padded)[: len(tensor)] for runtime in (exact, rough)]
            statistics.update(*logits)
            labels = np.array([-1 if file.label is None else file.label for file in taken])
            labelled += int((labels >= 0).sum())
            right += [int((each.argmax(axis=1) == labels).sum()) for each in logits]
            classes = logits[0].shape[1]
    result = statistics.result()
    known = labelled == result.n and _are_classes(files, classes)
    return Fidelity(
        images=result.n,
        sqnr_db=result.sqnr_db,
        agreement=result.top1_agreement,
        top1_float=int(right[0]) / result.n if known else None,
        top1_int8=int(right[1]) / result.n if known else None,
        runtime="onnxruntime" if own else "onnxruntime, Q/DQ taken literally",
        unseen=True,
    )


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
