"""The user's images, all of them in memory: as a model takes them, or as the pixels that they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from calibration.images import BadFile, batches, find_images, sample
from calibration.pixel_contract import pixels_of
from calibration.preprocess import Preprocessing
from runtimes.errors import DataError

_BATCH: Final = 64


def read_as(root: Path, contract: Preprocessing, count: int, seed: int) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Images as a contract makes them, and remarks about those that could not be read.

    Args:
        root: Folder, file list or array file.
        contract: What the files become.
        count: How many, sampled evenly over classes; 0: all.
        seed: Of the sample.

    Returns:
        float32 ``[N, C, H, W]`` or uint8 ``[N, H, W, C]``, and one sentence per unreadable file.

    Raises:
        DataError: No images, or too many that cannot be read.
    """
    bad: list[BadFile] = []
    chosen = sample(find_images(root), count or None, seed)
    try:
        read = [batch for batch, _ in batches(chosen, contract, _BATCH, on_bad=bad.append)]
    except MemoryError as error:
        raise DataError(f"{len(chosen)} images of {root} do not fit into memory: give a smaller --images") from error
    if not read:
        raise DataError(f"{root} holds no image that can be read")
    return np.concatenate(read), tuple(f"{file.path} was skipped: {file.reason}" for file in bad)


def read_pixels(
    root: Path, contract: Preprocessing, count: int, seed: int
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """As :func:`read_as`, without the normalisation of the contract: uint8 ``[N, h, w, C]``."""
    return read_as(root, pixels_of(contract), count, seed)
