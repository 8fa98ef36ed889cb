"""What the stages are compared on, and the user's own files around a model: images, labels, preprocessing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter import contracts
from exporter.graph.capture import InputShape
from exporter.models.source import LoadedModel
from exporter.picture_inputs import read_as
from runtimes.errors import DataError
from runtimes.parity import InputBatch

Images = npt.NDArray[np.float32]
#: One image, and an odd number that no exporter can have frozen into the graph by accident.
CHECKED_BATCHES = (1, 7)
_IMAGE_BATCH = 16


def with_preprocessing(loaded: LoadedModel, preset: str | None, fields: dict[str, Any]) -> LoadedModel:
    """A model with another preprocessing contract.

    Args:
        loaded: Its own contract is where the fields start from.
        preset: Name of a preset to start from instead.
        fields: Fields of the contract; ``None`` keeps one.

    Raises:
        InputError: Fields that contradict each other or the model.
    """
    contract = loaded.preprocessing
    if preset is not None:
        contract = contracts.preset(preset, loaded.in_channels, *loaded.size)
    return replace(loaded, preprocessing=contracts.overridden(contract, loaded.in_channels, fields))


def read_images(root: Path, loaded: LoadedModel, count: int, seed: int) -> tuple[Images, tuple[str, ...]]:
    """Images as the model takes them, and remarks about those that could not be read.

    Args:
        root: Folder, file list or array file.
        loaded: Its preprocessing contract is applied.
        count: How many, sampled evenly over classes; 0: all.
        seed: Of the sample.

    Returns:
        ``[N, C, H, W]`` float32, and one sentence per unreadable file.

    Raises:
        DataError: No images, or too many that cannot be read.
    """
    return read_as(root, loaded.preprocessing, count, seed)


def comparison_batches(loaded: LoadedModel, shape: InputShape, images: Images | None) -> list[InputBatch]:
    """Seeded synthetic images in the batch sizes that a device may use, and the user's own where given.

    Args:
        loaded: For messages.
        shape: What the graph will take.
        images: ``[N, C, H, W]`` float32, preprocessed, or ``None``.

    Raises:
        DataError: The images do not fit the model, or do not fill one fixed batch.
    """
    sizes = CHECKED_BATCHES if shape.batch is None else (shape.batch,)
    found = [InputBatch("synthetic", _synthetic(size, shape), size) for size in sizes]
    if shape.dynamic_size:
        grown = shape.another_size()
        count = shape.batch or 2
        found.append(InputBatch(f"synthetic {grown.height}x{grown.width}", _synthetic(count, grown), count))
    if images is not None:
        found.append(_image_batch(loaded, shape, images))
    return found


def _image_batch(loaded: LoadedModel, shape: InputShape, images: Images) -> InputBatch:
    wanted = (shape.channels, shape.height, shape.width)
    fits = images.shape[1:] == wanted or (shape.dynamic_size and images.shape[1] == shape.channels)
    if not fits:
        raise DataError(f"the images are {list(images.shape[1:])}, and {loaded.name} takes {list(wanted)}")
    whole = len(images) - len(images) % (shape.batch or 1)  # a fixed batch takes no shorter last run
    if not whole:
        raise DataError(f"{len(images)} images do not fill one batch of {shape.batch}: give more, or a smaller --batch")
    return InputBatch("images", images[:whole], shape.batch or min(_IMAGE_BATCH, whole))


def _synthetic(count: int, shape: InputShape) -> Images:
    """Normalised images with a photograph's spectrum (amplitude ~ 1/f): white noise would average out in the stem."""
    rng = np.random.default_rng(20151210)
    size = (count, shape.channels, shape.height, shape.width)
    rows, columns = np.fft.fftfreq(size[2])[:, None], np.fft.rfftfreq(size[3])[None, :]
    frequency = np.maximum(np.hypot(rows, columns), 1.0 / max(size[2:]))
    images = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(size)) / frequency, s=size[2:])
    images -= images.mean(axis=(2, 3), keepdims=True)
    images /= np.maximum(images.std(axis=(2, 3), keepdims=True), 1e-6)
    # Photographs differ in brightness; a fixed mean would hide a fault in the first bias.
    images += 0.5 * rng.standard_normal((count, shape.channels, 1, 1))
    return images.astype(np.float32)
