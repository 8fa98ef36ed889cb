"""Accuracy of models on labelled images, and what a model changes against the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.audit import content_hashes, list_sha256
from calibration.images import BadFile, batches
from calibration.listing import ImageFile, sample
from calibration.prefetch import prefetched
from calibration.preprocess import Preprocessing
from exporter.subjects import Subject
from runtimes.errors import DataError, InputError
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
        passed: Whether no subject failed and no top-1 dropped further than allowed.
    """

    results: tuple[dict[str, Any], ...]
    failures: tuple[dict[str, Any], ...]
    data: dict[str, Any]
    environment: dict[str, Any]
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            "schema": 1,
            "data": self.data,
            "results": list(self.results),
            "failures": list(self.failures),
            "passed": self.passed,
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
    labelled, classes = with_labels(listing, class_names)
    files = sample(labelled, options.images or None, options.seed)
    used: list[int] = []
    batch = 1 if contract.any_size else options.batch
    read = batches(files, contract, batch, max_bad=options.max_bad, on_bad=on_bad, workers=options.workers)
    with ExitStack() as stack:
        runtimes = [subject.fed() for subject in subjects]
        for runtime in runtimes:
            if not runtime.is_open:
                stack.enter_context(runtime)
        ahead = stack.enter_context(closing(prefetched(_numbered(read, files))))
        found = evaluate(
            runtimes,
            _noted(ahead, used),
            classes=classes,
            keep=options.keep,
            on_progress=on_progress,
        )
    chosen = [files[index] for index in used]
    data = data_facts(path, chosen, content_hashes(chosen), contract)
    return report_of(subjects, found, files, data, options.max_drop)


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


def with_labels(listing: Sequence[ImageFile], class_names: Sequence[str] = ()) -> tuple[list[ImageFile], int | None]:
    """The images with the models' own class numbers, and how many classes the numbers tell apart.

    Args:
        listing: All images of the set.
        class_names: The models' classes in order, or none.

    Returns:
        The images. The number of classes is that of ``class_names`` where every folder is one of them, which makes
        a part of the folders enough; else the number of folders, whose alphabetical places are the labels; and None
        for labels from a list, which say nothing about it.

    Raises:
        DataError: An image has no label.
    """
    missing = next((file for file in listing if file.label is None), None)
    if missing is not None:
        raise DataError(f"{missing.path} has no label: give a folder of class folders, or a list with a label a line")
    folders = {file.class_name for file in listing if file.class_name is not None}
    if not folders:
        return list(listing), None
    # A name that stands for two classes (ImageNet has some) tells nothing.
    places = {name: place for place, name in enumerate(class_names) if class_names.count(name) == 1}
    if not folders <= set(places):
        return list(listing), len(folders)
    return [replace(file, label=places[file.class_name or ""]) for file in listing], len(class_names)


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
) -> EvaluateReport:
    """The report of what came of all subjects.

    Args:
        subjects: All of them.
        found: One for each.
        files: The list that the places of changes are of.
        data: From :func:`data_facts`.
        max_drop: Largest drop of top-1 against the first subject; ``None``: any.
    """
    rows, failures = [], []
    for subject, each in zip(subjects, found, strict=True):
        if each.accuracy is None:
            failures.append({**subject.to_json(), "error": each.error, "used": each.used})
        else:
            finding = _finding(each, found[0], max_drop)
            row = _row(each, files, each is found[0])
            rows.append({**subject.to_json(), **row, "passed": finding is None, "finding": finding})
    passed = not failures and all(row["passed"] for row in rows)
    return EvaluateReport(tuple(rows), tuple(failures), data, description(), passed)


def _row(found: Evaluated, files: Sequence[ImageFile], first: bool) -> dict[str, Any]:
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
    return {**found.accuracy.to_json(), **changes, "seconds": found.seconds, "used": found.used}


def _finding(found: Evaluated, first: Evaluated, max_drop: float | None) -> str | None:
    """Why a subject has not passed."""
    if max_drop is None or found is first or found.accuracy is None:
        return None
    if first.accuracy is None:
        return "the first model failed: the drop of top-1 is not known"
    drop = first.accuracy.top1 - found.accuracy.top1
    if drop <= max_drop + 1e-9:  # more than the rounding of two fractions, less than any image
        return None
    return f"top-1 drops by {drop:.2%}, allowed are {max_drop:.2%}"
