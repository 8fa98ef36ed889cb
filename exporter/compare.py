"""Models on runtimes held against the first of them: does it still compute the same?

One pass over the images serves every runtime. Each candidate gets a row against the reference, and an INT8 one a second
row against the simulation of its own file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from calibration.audit import content_hashes, list_sha256
from calibration.images import BadFile, batches
from calibration.listing import ImageFile, sample
from calibration.prefetch import prefetched
from calibration.preprocess import Preprocessing
from exporter.bounds import as_reference, as_simulated
from exporter.feeding import Feed, fed, reading
from exporter.opening import Opening
from exporter.proof_inputs import agreed_labels, fits
from exporter.subjects import declared_classes
from runtimes.base import Array, Runtime
from runtimes.comparison import Pair, Ran, compare_over
from runtimes.errors import GraphError, InputError
from runtimes.int8_sim import Int8SimRuntime
from runtimes.intervals import agreement_interval
from runtimes.machine import description
from runtimes.statistics import DifferenceStatistics
from runtimes.tolerance import Tolerance

SCHEMA = 1


@dataclass(frozen=True)
class CompareOptions:
    """How to compare.

    Attributes:
        images: How many, sampled evenly over the classes; 0: all.
        seed: Of the sample.
        batch: Images that are read and run at once.
        max_bad: Fraction of the images that may be unusable.
        simulated: Images on which INT8 is also held against its simulation, at most; 0: none.
        min_sqnr_db: Replaces the table's bound for rows against the reference; ``None`` keeps it.
        min_agreement: The same for the fraction of images with the same class.

    Raises:
        InputError: A number is out of range.
    """

    images: int = 0
    seed: int = 0
    batch: int = 32
    max_bad: float = 0.01
    simulated: int = 256
    min_sqnr_db: float | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if self.min_sqnr_db is not None and not math.isfinite(self.min_sqnr_db):
            raise InputError(f"received an SQNR of {self.min_sqnr_db} dB, expected a finite number")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise InputError(f"received an agreement of {self.min_agreement}, expected a fraction from 0 to 1")


@dataclass(frozen=True)
class CompareReport:
    """What came of all candidates; see docs/commands.md for the rows.

    Attributes:
        reference: The first.
        results: A row per pair.
        data: Which images, and how they became tensors.
        notes: What the user should know.
    """

    reference: dict[str, Any]
    results: tuple[dict[str, Any], ...]
    data: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every row did; a comparison without any row would prove nothing."""
        return bool(self.results) and all(row["passed"] for row in self.results)

    def to_json(self) -> dict[str, Any]:
        """The document of ``parity --json``."""
        return {
            "schema": SCHEMA,
            "command": "parity",
            "reference": self.reference,
            "results": list(self.results),
            "passed": self.passed,
            "data": self.data,
            "notes": list(self.notes),
            "environment": description(),
        }


def compare_models(
    models: Sequence[Opening],
    listing: Sequence[ImageFile],
    contract: Preprocessing,
    options: CompareOptions | None = None,
    *,
    path: str,
    on_bad: Callable[[BadFile], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CompareReport:
    """Hold every model against the first, over images that are read once.

    Args:
        models: At least two, not opened yet.
        listing: Images, from :func:`calibration.listing.find_images`.
        contract: How they become what the networks take; a model with a part of it in its graph gets the rest.
        options: How; ``None``: the defaults.
        path: Where the images come from, for the report.
        on_bad: Hears of unusable images.
        on_progress: Hears of the number of images done, and of all.

    Raises:
        InputError: Fewer than two models, or one that cannot be opened.
        TensorError: Models of different numbers of classes.
        DataError: Too many images that cannot be used.
        UnavailableError: A runtime, a device or memory is missing.
    """
    options = options or CompareOptions()
    if len(models) < 2:
        raise InputError(f"received {len(models)} model, expected two at least: the first is what the others should be")
    _check_outputs(models)
    agreed_labels(models)
    files = sample(listing, options.images or None, options.seed)
    used: list[ImageFile] = []
    with ExitStack() as stack:
        images = reading(contract, [model.takes for model in models])
        runs = [Ran(stack.enter_context(fed(m.runtime, feed))) for m, feed in zip(models, images.feeds, strict=True)]
        for model in models:
            fits(model, contract)
        declared_classes((model.label, model.runtime) for model in models)
        bounds, refused = _bounds(models, options)
        pairs = [Pair(index, 0) for index in bounds]
        notes = _notes(models)
        for index, opened in _opened_simulations(stack, models, images.feeds, options.simulated, notes).items():
            runs.append(Ran(opened, options.simulated))
            pairs.append(Pair(index, len(runs) - 1, options.simulated))
        batch = 1 if images.contract.any_size else options.batch
        read = batches(files, images.contract, batch, max_bad=options.max_bad, on_bad=on_bad)
        ahead = stack.enter_context(closing(prefetched(read)))
        total = len(files)
        found = compare_over(
            runs, pairs, _noted(ahead, used),
            on_progress=None if on_progress is None else lambda done: on_progress(done, total),
        )  # fmt: skip
        facts = [_facts(model, run) for model, run in zip(models, runs, strict=False)]
    rows = [
        _row(models, runs, facts, pair, each, used, bounds[pair.candidate] if not pair.signal else None)
        for pair, each in zip(pairs, found, strict=True)
    ]
    rows += [
        {**facts[index], "against": models[0].label, "simulated": False, "tolerance": None, "order": (index, 0),
         **_unproven(reason)}
        for index, reason in refused.items()
    ]  # fmt: skip
    rows.sort(key=lambda row: row.pop("order"))  # the two rows of a model beside each other
    data = {
        "path": path,
        "images": len(used),
        "sha256": list_sha256(used, content_hashes(used)),
        "preprocessing": contract.to_json(),
        "preprocessing_sha256": contract.sha256(),
    }
    return CompareReport(facts[0], tuple(rows), data, tuple(notes))


def _check_outputs(models: Sequence[Opening]) -> None:
    for model in models[1:]:
        if model.output != models[0].output:
            raise InputError(
                f"{models[0].label} gives {models[0].output} and {model.label} {model.output}: give files of one kind"
            )


def _simulations(models: Sequence[Opening], most: int) -> dict[int, Int8SimRuntime]:
    """The simulation of every INT8 candidate whose file is known; one that is a simulation itself needs none."""
    if not most:
        return {}
    found = {}
    for index, model in enumerate(models):
        if index and model.precision == "int8" and model.onnx is not None and model.spec.name != "int8-sim":
            found[index] = Int8SimRuntime(model.onnx, f"int8-sim:{model.onnx}")
    return found


def _opened_simulations(
    stack: ExitStack, models: Sequence[Opening], feeds: Sequence[Feed | None], most: int, notes: list[str]
) -> dict[int, Runtime]:
    """Those that can be opened; of the others a note is made, and their files are still held against the reference."""
    found: dict[int, Runtime] = {}
    for index, simulation in _simulations(models, most).items():
        try:
            found[index] = stack.enter_context(fed(simulation, feeds[index]))
        except GraphError as error:
            notes.append(f"{models[index].label} was not held against its simulation: {_reason(error)}")
    return found


def _noted(read: Iterator[tuple[Array, list[ImageFile]]], used: list[ImageFile]) -> Iterator[Array]:
    """The tensors; what has been read ahead and is not used is not noted."""
    for tensor, taken in read:
        used.extend(taken)
        yield tensor


def _facts(model: Opening, run: Ran) -> dict[str, Any]:
    return {
        "runtime": model.spec.name,
        "file": model.spec.file,
        "label": model.label,
        "precision": model.precision,
        "sha256": model.sha256,
        "bytes": model.size,
        "seconds": round(run.seconds, 6),
        "used": run.runtime.used,
    }


def _row(
    models: Sequence[Opening],
    runs: Sequence[Ran],
    facts: Sequence[dict[str, Any]],
    pair: Pair,
    found: DifferenceStatistics | None,
    used: Sequence[ImageFile],
    bounds: Tolerance | None,
) -> dict[str, Any]:
    """A row of the document; ``bounds`` are those beside the reference, ``None`` for a simulation."""
    simulated, against = bounds is None, runs[pair.signal].runtime.name
    tolerance = bounds or as_simulated(models[pair.candidate])
    signal = "its simulation" if simulated else f"the reference {models[0].label}"
    head = {
        **facts[pair.candidate],
        "against": against if simulated else models[pair.signal].label,
        "simulated": simulated,
        "tolerance": tolerance.to_json(),
        "order": (pair.candidate, pair.signal),
    }
    if found is None:
        if own := runs[pair.candidate].error:
            return {**head, **_unproven(f"could not be run: {own}", str(own))}
        return {**head, **_unproven(f"not judged: {signal} could not be run: {runs[pair.signal].error}")}
    if lost := runs[pair.signal].not_finite:
        return {**head, **_unproven(f"not judged: {signal} gives NaN or Inf on {lost} of {found.n} images")}
    passed, finding = tolerance.judge(found)
    numbers = {name: value for name, value in found.to_json().items() if name not in ("worst_row", "finite")}
    return {
        **head,
        **numbers,
        "finite": found.finite,
        "top1_ci95": list(agreement_interval(found.top1_agreement, found.n)),
        "passed": passed,
        "finding": finding or None,
        "worst_sample": found.worst_row,
        "worst_file": str(used[found.worst_row]) if found.worst_row < len(used) else None,
        "error": None,
    }


def _unproven(finding: str, error: str | None = None) -> dict[str, Any]:
    """What a row says of a pair that could not be compared."""
    return {"n": 0, "passed": False, "finding": finding, "error": error or finding}


def _bounds(models: Sequence[Opening], options: CompareOptions) -> tuple[dict[int, Tolerance], dict[int, str]]:
    """By candidate, before any image is read: its bounds beside the reference, or why there are none."""
    found, refused = {}, {}
    for index, model in enumerate(models[1:], start=1):
        try:
            found[index] = as_reference(model, models[0], options.min_sqnr_db, options.min_agreement)
        except InputError as error:
            refused[index] = str(error)
    return found, refused


def _reason(error: GraphError) -> str:
    """Without the names of the file and of the runtime, which stand before it already."""
    return str(error.__cause__ if isinstance(error.__cause__, GraphError) else error)


def _notes(models: Sequence[Opening]) -> list[str]:
    notes = [f"{model.label}: {note}" for model in models for note in model.notes]
    for index, model in enumerate(models):
        if index and model.precision == "int8" and model.onnx is None:
            notes.append(
                f"{model.label} was not held against its simulation: its ONNX file is not known (option model=FILE)"
            )
        if model.precision is None:
            notes.append(f"{model.label} does not say its precision: it is judged as FP32")
    return notes
