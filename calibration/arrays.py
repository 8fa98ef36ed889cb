"""A ``.npy`` or ``.npz`` file as a data set: one row is one image.

============================  =========================================================
rows                          meaning
============================  =========================================================
floating ``[N, C, H, W]``     tensors that are preprocessed already; only cast to float32
uint8 ``[N, H, W, C]``        pictures (RGB or grey), which go through the contract
uint8 ``[N, H, W]``           grey pictures, likewise
============================  =========================================================

An ``.npz`` holds one array, or ``images`` and ``labels`` (integers ``[N]``). Pickled objects are never loaded.
"""

from __future__ import annotations

import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runtimes.errors import DataError

if TYPE_CHECKING:
    from calibration.preprocess import Preprocessing

_MOST_CLASSES = 10**9
Array = npt.NDArray[Any]


def array_labels(path: Path) -> list[int | None]:
    """The label of each row of the array file ``path``; ``None`` where the file has none.

    Raises:
        DataError: The file cannot be read, or its arrays are not of the forms above.
    """
    images, labels = _open(path)
    if labels is None:
        return [None] * len(images)
    if len(labels) and int(labels.max()) >= _MOST_CLASSES:
        raise DataError(f"{path} has the label {labels.max()}, which is no class: give numbers below {_MOST_CLASSES:,}")
    return [int(label) for label in labels]


def array_row(path: Path, row: int, contract: Preprocessing) -> Array:
    """The tensor of one row.

    Args:
        path: Array file.
        row: Index of the row.
        contract: Names the channels and size that floating rows must have, and what happens to uint8 rows.

    Returns:
        float32 array of shape ``[C, H, W]``, or uint8 of ``[H, W, C]`` where the contract says so.

    Raises:
        DataError: The row does not fit the contract, or holds NaN or infinity.
    """
    values = stored_row(path, row)
    if values.dtype == np.uint8:
        return contract.apply_pixels(values)
    if contract.dtype == "uint8":
        raise DataError("floating rows are preprocessed already, and the model takes uint8 pixels: give pictures")
    channels, height, width = values.shape
    if channels != contract.channels:
        raise DataError(
            f"floating rows are preprocessed already, as [C,H,W]: row {row} has the shape {list(values.shape)}, "
            f"the model takes {contract.channels} channels"
        )
    contract.check_size(height, width)
    with np.errstate(over="ignore"):
        tensor: npt.NDArray[np.float32] = values.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise DataError(f"row {row} holds NaN, infinity or more than float32 can: preprocess it again")
    return tensor


def row_bytes(path: Path, row: int) -> bytes:
    """The values of one row as they are stored, in C order.

    Raises:
        DataError: The file cannot be read, or has no such row.
    """
    return stored_row(path, row).tobytes()


def row_pixels(path: Path, row: int) -> npt.NDArray[np.uint8]:
    """One row as pixels, ``[H, W, 3]`` or ``[H, W]``.

    Raises:
        DataError: The file cannot be read, has no such row, or holds what was preprocessed already.
    """
    values = stored_row(path, row)
    if values.dtype != np.uint8:
        raise DataError(f"{path} holds preprocessed rows, not pixels")
    return values.squeeze(-1) if values.shape[-1] == 1 else values


def stored_row(path: Path, row: int) -> Array:
    """A copy of one row as it is stored.

    Raises:
        DataError: The file cannot be read, or has no such row.
    """
    images, _ = _open(path)
    if not 0 <= row < len(images):
        raise DataError(f"the array has {len(images)} rows, row {row} was asked for")
    return np.array(images[row])  # a copy: the file may be mapped into memory


def _open(path: Path) -> tuple[Array, Array | None]:
    try:
        stat = path.stat()
        # The stamp makes a rewritten file a new entry.
        return _read(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=1)
def _read(path: Path, _mtime_ns: int, _bytes: int) -> tuple[Array, Array | None]:
    try:
        # Mapped, an .npy costs no memory until a row is touched; numpy ignores the mode for .npz.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            images, labels = loaded, None
        else:
            with loaded:
                images, labels = _members(path, loaded)
    except (ValueError, EOFError, MemoryError, OverflowError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} is not a plain array file ({reason}): save it with numpy.save or numpy.savez, without objects"
        ) from error
    _check(path, images, labels)
    return images, labels


def _members(path: Path, archive: Any) -> tuple[Array, Array | None]:
    names = list(archive.files)
    if len(names) == 1 and names != ["labels"]:
        return archive[names[0]], None
    if set(names) == {"images", "labels"}:
        return archive["images"], archive["labels"]
    raise DataError(f"{path} holds {', '.join(names) or 'nothing'}: give one array, or images and labels")


def _check(path: Path, images: Array, labels: Array | None) -> None:
    pictures = images.dtype == np.uint8 and images.ndim in (3, 4)
    if not pictures and not (np.issubdtype(images.dtype, np.floating) and images.ndim == 4):
        raise DataError(
            f"{path} is {images.dtype} of shape {list(images.shape)}: "
            f"give floating [N,C,H,W], or uint8 [N,H,W,C] or [N,H,W]"
        )
    if images.size == 0:
        raise DataError(f"{path} is empty, its shape is {list(images.shape)}: give at least one image")
    if labels is None:
        return
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),) or labels.min() < 0:
        raise DataError(
            f"{path}: labels is {labels.dtype} of shape {list(labels.shape)}: "
            f"give {len(images)} integers, 0 or more, one for each image"
        )
