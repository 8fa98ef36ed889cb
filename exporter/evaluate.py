"""Accuracy of models on labelled images, and what a model changes against the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.audit import content_hashes, list_sha256
from calibration.images import BadFile, batches
from calibration.listing import ImageFile, sample
from calibration.prefetch import prefetched
from calibration.preprocess import Preprocessing
from exporter.labelled import Labelled, check_labels, with_labels
from exporter.subjects import Subject, declared_classes
from runtimes.errors import InputError
from runtimes.evaluation import Batch, Evaluated, evaluate
from runtimes.machine import description


@dataclass(frozen=True)
class EvaluateOptions:
    """How to evaluate.

    Attributes:
        images: How many, sampled evenly over the classes; 0: all.
        seed: Of the sample.
        batch: Images that are read at once; a model with a fixed batch gets them in pieces of its own size.
        workers: Processes that decode; 0: a thread beside the models.
        max_bad: Fraction of the images that may be unusable.
        keep: Changed images that are listed, at most, for each model.
        max_drop: Largest drop of top-1 against the first model, as a fraction of the images; ``None``: any.

    Raises:
        InputError: A number is out of range.
    """

    images: int = 0
    seed: int = 0
    batch: int = 32
    workers: int = 0
    max_bad: float = 0.01
    keep: int = 1000
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise InputError(f"received {self.keep} changed images to list, expected 0 or more")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise InputError(f"received a largest drop of {self.max_drop}, expected a fraction from 0 to 1")


@dataclass(frozen=True)
class EvaluateReport:
    """What came of all subjects.

    Attributes:
        results: A row for each subject that saw all images, JSON-ready; ``finding`` says why one has not passed.
        failures: A row with ``error`` for each subject that failed on the way.
        data: Which images, and how they became tensors.
        environment: What it ran on.
        notes: What the user should know, one sentence each.
        passed: False where a subject failed, gave NaN or Inf, or dropped further than allowed; else True where a
            largest drop was asked for, and ``None`` where nothing was.
    """

    results: tuple[dict[str, Any], ...]
    failures: tuple[dict[str, Any], ...]
    data: dict[str, Any]
    environment: dict[str, Any]
    passed: bool | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            "schema": 1,
            "command": "evaluate",
            "data": self.data,
            "results": list(self.results),
            "failures": list(self.failures),
            "passed": self.passed,
            "notes": list(self.notes),
            "environment": self.environment,
        }


def evaluate_models(
    subjects: Sequence[Subject],
    listing: Sequence[ImageFile],
    contract: Preprocessing,
    options: EvaluateOptions | None = None,
    *,
    path: str,
    class_names: Sequence[str] = (),
    on_bad: Callable[[BadFile], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> EvaluateReport:
    """Run all subjects over labelled images, which are read once.

    Args:
        subjects: At least one; the first is what the others are compared with.
        listing: All images of the set, from :func:`calibration.listing.find_images`.
        contract: How they become the models' input.
        options: How; ``None``: the defaults.
        path: Where the images come from, for the report.
        class_names: The models' classes in order, where they are known: they tell which folder is which class.
        on_bad: Hears of unusable images, in the thread that reads.
        on_progress: Hears of the number of images done.

    Raises:
        DataError: Images without labels, with labels that are no class, or too many that cannot be used.
        TensorError: The models, or a model and the class folders, differ in the number of classes.
        InputError: There is no subject, or an option is out of range.
        ResnetExportError: A model cannot be opened.
    """
    options = options or EvaluateOptions()
    labelled = with_labels(listing, class_names)
    files = sample(labelled.files, options.images or None, options.seed)
    used: list[int] = []
    batch = 1 if contract.any_size else options.batch
    read = batches(files, contract, batch, max_bad=options.max_bad, on_bad=on_bad, workers=options.workers)
    with ExitStack() as stack:
        runtimes = [subject.fed() for subject in subjects]
        for runtime in runtimes:
            if not runtime.is_open:
                stack.enter_context(runtime)
        known = declared_classes((each.label, runtime) for each, runtime in zip(subjects, runtimes, strict=True))
        check_labels(files, known)
        ahead = stack.enter_context(closing(prefetched(_numbered(read, files))))
        found = evaluate(
            runtimes,
            _noted(ahead, used),
            classes=labelled.classes,
            keep=options.keep,
            on_progress=on_progress,
        )
    chosen = [files[index] for index in used]
    data = data_facts(path, chosen, content_hashes(chosen), contract)
    return report_of(subjects, found, files, data, options.max_drop, labelled)


def data_facts(
    path: str, used: Sequence[ImageFile], hashes: Mapping[ImageFile, str], contract: Preprocessing
) -> dict[str, Any]:
    """Which images, and how they became tensors, as plain JSON values.

    Args:
        path: Where they come from.
        used: All that were run, in order.
        hashes: Of their contents.
        contract: How they became tensors.
    """
    return {
        "path": path,
        "images": len(used),
        "sha256": list_sha256(used, hashes),
        "preprocessing": contract.to_json(),
    }


def _numbered(read: Iterator[tuple[Any, list[ImageFile]]], files: Sequence[ImageFile]) -> Iterator[Batch]:
    """Batches with labels and places in ``files``, from which unusable images have been left out."""
    place = 0
    for tensor, taken in read:
        places = []
        for file in taken:
            while files[place] is not file:  # the same path can be listed twice
                place += 1
            places.append(place)
            place += 1
        labels = np.array([file.label for file in taken], np.int64)
        yield tensor, labels, np.array(places, np.int64)


def _noted(read: Iterator[Batch], used: list[int]) -> Iterator[Batch]:
    """The same; what has been read ahead and is not used is not noted."""
    for batch in read:
        used.extend(batch[2].tolist())
        yield batch


def report_of(
    subjects: Sequence[Subject],
    found: Sequence[Evaluated],
    files: Sequence[ImageFile],
    data: dict[str, Any],
    max_drop: float | None,
    labelled: Labelled,
) -> EvaluateReport:
    """The report of what came of all subjects.

    Args:
        subjects: All of them.
        found: One for each.
        files: The list that the places of changes are of.
        data: From :func:`data_facts`.
        max_drop: Largest drop of top-1 against the first subject; ``None``: any.
        labelled: From :func:`with_labels`: the names of the classes, and what was assumed.
    """
    rows, failures = [], []
    for subject, each in zip(subjects, found, strict=True):
        if each.accuracy is None:
            failures.append({**subject.to_json(), "error": each.error, "used": each.used})
        else:
            finding = _finding(each, found[0], max_drop)
            passed = _verdict(finding is None, max_drop)
            row = _row(each, files, labelled.names, each is found[0])
            rows.append({**subject.to_json(), **row, "passed": passed, "finding": finding})
    passed = _verdict(not failures and all(row["finding"] is None for row in rows), max_drop)
    return EvaluateReport(tuple(rows), tuple(failures), data, description(), passed, labelled.notes)


def _row(found: Evaluated, files: Sequence[ImageFile], names: Sequence[str], first: bool) -> dict[str, Any]:
    assert found.accuracy is not None  # of a runtime that did not fail
    none = 0 if first else None  # beside a first one that failed, nothing is known
    changes: dict[str, Any] = {
        "mcnemar_p": None,
        "only_reference_right": none,
        "only_this_right": none,
        "changed": none,
        "changes": [],
        "confusion": [],
    }
    if found.changes is not None:
        changes = found.changes.to_json()
        changes["changes"] = [{"file": str(files[each.pop("index")]), **each} for each in changes["changes"]]
    accuracy = found.accuracy.to_json()
    for row in accuracy["per_class"]:
        row["name"] = names[row["class"]] if row["class"] < len(names) else None
    return {**accuracy, **changes, "seconds": found.seconds, "used": found.used}


def _verdict(holds: bool, max_drop: float | None) -> bool | None:
    """``None`` where nothing was asked for: an accuracy that was only measured is no accuracy that holds."""
    return None if holds and max_drop is None else holds


def _finding(found: Evaluated, first: Evaluated, max_drop: float | None) -> str | None:
    """Why a subject has not passed."""
    assert found.accuracy is not None  # of a runtime that did not fail
    broken = found.accuracy.not_finite
    if broken:
        return f"{broken} {'image has' if broken == 1 else 'images have'} NaN or Inf among the logits"
    if max_drop is None or found is first:
        return None
    if first.accuracy is None:
        return "the first model failed: the drop of top-1 is not known"
    drop = first.accuracy.top1 - found.accuracy.top1
    if drop <= max_drop + 1e-9:  # more than the rounding of two fractions, less than any image
        return None
    return f"top-1 drops by {drop:.2%}, allowed are {max_drop:.2%}"
