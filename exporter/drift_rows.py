"""Drift of every model that was compared, where its ONNX file is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from calibration.images import batches
from calibration.listing import ImageFile, sample
from calibration.preprocess import Preprocessing
from exporter.drift.job import drift_of
from exporter.opening import Opening, load_module
from runtimes.base import Array
from runtimes.errors import InputError, ResnetExportError

if TYPE_CHECKING:
    from torch import nn

#: A layer's own share settles within a few images: every pixel of every channel counts.
IMAGES: Final = 32


def drift_rows(
    models: Sequence[Opening],
    listing: Sequence[ImageFile],
    contract: Preprocessing,
    *,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Follow every model's difference from the first through the layers.

    Args:
        models: The first is the reference.
        listing: Images, of which :data:`IMAGES` are sampled.
        contract: How they become the models' input.
        seed: Of the sample.
        on_progress: Hears of the number of models done, and of all.

    Returns:
        A drift document with ``label`` for each; one that cannot be looked at has no layers, and says why.

    Raises:
        InputError: The reference is neither a module nor a float ONNX file.
        GraphError: The reference cannot be read.
    """
    check_reference(models[0])
    reference = _reference(models[0])
    files = sample(listing, IMAGES, seed)
    found = []
    for number, model in enumerate(models[1:], start=1):
        if model.takes is not None:
            found.append(_unknown(model, "not looked at: its preprocessing is in the graph; give the file before that"))
        elif model.onnx is None:
            found.append(
                _unknown(model, "not looked at: its ONNX file is not known; give it with the option model=FILE")
            )
        else:
            fixed = _fixed_batch(model) or _fixed_batch(models[0])
            found.append(_row(model, model.onnx, reference, _whole(files, contract, fixed)))
        if on_progress:
            on_progress(number, len(models) - 1)
    return found


def check_reference(model: Opening) -> None:
    """Refuse a reference whose layers cannot be looked at; quick, for use before anything is run.

    Raises:
        InputError: It is neither a module nor a float ONNX file.
    """
    float_file = model.onnx is not None and model.precision != "int8" and model.takes is None
    if model.spec.kind not in ("checkpoint", "source") and not float_file:
        raise InputError(
            f"{model.label} cannot be the reference of a drift: expected a module or a float ONNX file first, whose "
            "layers can be looked at"
        )


def _reference(model: Opening) -> nn.Module | Path:
    return model.onnx or load_module(model.spec).module


def _row(model: Opening, file: Path, reference: nn.Module | Path, images: Iterator[Array]) -> dict[str, Any]:
    try:
        drift = drift_of(file, reference, images)
    except ResnetExportError as error:  # the comparison is done, and the others can still be looked at
        return _unknown(model, f"could not be looked at: {error}")
    document = drift.to_json() | {"runtime": model.spec.name, "file": model.spec.file}
    return {"label": model.label, **document, "passed": drift.passed}


def _fixed_batch(model: Opening) -> int | None:
    """Images that the model takes at a time; known once it has been open."""
    shape = model.runtime.inputs[0].shape
    return shape[0] if shape else None


def _whole(files: Sequence[ImageFile], contract: Preprocessing, fixed: int | None) -> Iterator[Array]:
    """Batches of which none is shorter than a fixed one: the last is filled up with its own first image."""
    size = fixed or min(16, len(files))
    for tensor, _ in batches(files, contract, size, max_bad=1.0):
        short = size - len(tensor) if fixed else 0
        yield np.concatenate([tensor, np.repeat(tensor[:1], short, axis=0)]) if short else tensor


def _unknown(model: Opening, told: str) -> dict[str, Any]:
    return {
        "label": model.label, "runtime": model.spec.name, "file": model.spec.file, "layers": [], "first": None,
        "probed": told, "passed": True,
    }  # fmt: skip
