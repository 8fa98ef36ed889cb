"""Latency of models on runtimes, beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calibration.images import BadFile, batches
from calibration.listing import ImageFile
from calibration.preprocess import Preprocessing
from exporter.subjects import Subject
from runtimes.base import Array, Runtime
from runtimes.errors import InputError
from runtimes.latency import Candidate, measure
from runtimes.machine import environment
from runtimes.turns import Plan


@dataclass(frozen=True)
class BenchReport:
    """What came of all subjects.

    Attributes:
        results: A row for each batch size and subject, JSON-ready; see :class:`runtimes.latency.Latency`.
        failures: A row with ``batch`` and ``error`` for each that could not be measured.
        environment: The machine, and its state before and after.
    """

    results: tuple[dict[str, Any], ...]
    failures: tuple[dict[str, Any], ...]
    environment: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            "schema": 1,
            "command": "bench",
            "results": list(self.results),
            "failures": list(self.failures),
            "environment": self.environment,
        }


def bench_models(
    subjects: Sequence[Subject],
    sizes: Sequence[int],
    images: Array,
    plan: Plan | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> BenchReport:
    """Measure all subjects at all batch sizes.

    Args:
        subjects: At least one; times are also given as ratios to the first's.
        sizes: Images in a run.
        images: From :func:`bench_images`.
        plan: How long; ``None``: the defaults.
        on_progress: Hears of the rounds done and the rounds in all.

    Raises:
        InputError: There is nothing to measure, or something comes twice.
        ResnetExportError: A model cannot be opened.
    """
    candidates = [Candidate(each.label, partial(_itself, each.runtime), each.feed) for each in subjects]
    found = measure(candidates, sizes, images, plan, on_progress=on_progress)
    known = {each.label: {**each.to_json(), "bytes": _bytes(each.file)} for each in subjects}
    return BenchReport(
        results=tuple({**known[row.label], **row.to_json()} for row in found.results),
        failures=tuple({**known[row.label], "batch": row.batch, "error": row.error} for row in found.failures),
        environment=environment(found.before, found.after),
    )


def bench_images(
    contract: Preprocessing,
    count: int,
    listing: Sequence[ImageFile] = (),
    *,
    max_bad: float = 0.01,
    on_bad: Callable[[BadFile], None] | None = None,
) -> Array:
    """What the models are fed.

    Args:
        contract: How a file becomes a tensor.
        count: Images, at least 1: the largest batch size.
        listing: Where they come from; none: seeded noise, which costs a network as much time as photographs do.
        max_bad: Fraction of the listing that may be unusable; others take their places.
        on_bad: Hears of unusable images.

    Returns:
        ``[N, C, H, W]`` float32, or uint8 ``[N, H, W, C]`` where the contract says so; N can be less than ``count``
        where there are fewer images.

    Raises:
        DataError: The images cannot be used.
        InputError: ``count`` is below 1, or there are no images and the contract has no size.
    """
    if count < 1:
        raise InputError(f"received a batch of {count} images, expected at least 1")
    if listing:
        found: list[Array] = []
        for tensor, _ in batches(listing, contract, count, max_bad=max_bad, on_bad=on_bad):
            found.append(tensor)
            if sum(map(len, found)) >= count:
                break
        return np.concatenate(found)[:count]
    if contract.size is None:
        raise InputError("the preprocessing leaves the size of the images free: give images with --data")
    if contract.dtype == "uint8":
        return np.random.default_rng(0).integers(0, 256, (count, *contract.size, contract.channels), np.uint8)
    shape = (count, contract.channels, *contract.size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _itself(runtime: Runtime) -> Runtime:
    return runtime


def _bytes(file: str | None) -> int | None:
    path = None if file is None else Path(file)
    return path.stat().st_size if path is not None and path.is_file() else None
