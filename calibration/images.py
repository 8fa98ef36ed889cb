"""Images on disk: find them, choose some of them, and read them in batches.

Nothing here knows what a model is: the contract says what a tensor is, and a file that cannot become one is
reported, up to the fraction that the caller tolerates.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calibration.arrays import array_row
from calibration.listing import ImageFile, find_images, sample
from runtimes.errors import DataError, InputError

if TYPE_CHECKING:
    from calibration.preprocess import Preprocessing

__all__ = ["BadFile", "ImageFile", "batches", "decode", "find_images", "load_batch", "sample"]

Tensor = npt.NDArray[np.float32]

# Only these decoders may touch a file, whatever its name: Pillow has others that start programs (EPS).
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What Pillow's decoders raise on broken files, besides OSError.
_DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
# So many bad files are named in an error.
_NAMED = 3


@dataclass(frozen=True)
class BadFile:
    """A file that did not become a tensor, and why, in one line."""

    path: Path
    reason: str


def decode(file: ImageFile, contract: Preprocessing) -> Tensor:
    """The tensor of one file: a pure function of its arguments and the disk, so it can run in any process.

    Args:
        file: Image file, or a row of an array file.
        contract: How the pixels become a tensor.

    Returns:
        float32 array of shape ``[C, H, W]``.

    Raises:
        DataError: The file is broken, unreasonably large, or does not fit the contract; names the file.
    """
    try:
        return _decode(file, contract)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from error


def load_batch(files: Sequence[ImageFile], contract: Preprocessing) -> Tensor:
    """All ``files`` as one tensor, none of them spared.

    Args:
        files: At least one file.
        contract: How the pixels become a tensor.

    Returns:
        float32 array of shape ``[N, C, H, W]``.

    Raises:
        DataError: A file cannot be used, or the images differ in size and the contract does not even them out.
    """
    if not files:
        raise DataError("a batch of no images: give at least one")
    first = decode(files[0], contract)
    tensors = [first]
    for file in files[1:]:
        tensors.append(decode(file, contract))
        _check_shape(file, tensors[-1], files[0], first.shape)
    return np.stack(tensors)  # N x [C,H,W] -> [N,C,H,W]


def batches(
    files: Sequence[ImageFile],
    contract: Preprocessing,
    batch: int,
    *,
    max_bad: float = 0.01,
    on_bad: Callable[[BadFile], None] | None = None,
) -> Iterator[tuple[Tensor, list[ImageFile]]]:
    """The files in batches, in order, without those that cannot be used.

    Args:
        files: At least one file.
        contract: How the pixels become a tensor.
        batch: Images in a batch; the last may have fewer.
        max_bad: Fraction of ``files``, from 0 to 1, that may be bad.
        on_bad: Called with each bad file as it is met.

    Returns:
        An iterator over tensors, float32 ``[N, C, H, W]``, and the ``N`` files in them. It raises ``DataError``
        when more files are bad than allowed, when all are, or when images differ in size and the contract does
        not even them out.

    Raises:
        DataError: ``files`` is empty.
        InputError: ``batch`` or ``max_bad`` is out of range.
    """
    if batch < 1:
        raise InputError(f"the batch is {batch} images: give 1 or more")
    if not 0 <= max_bad <= 1:
        raise InputError(f"the fraction of bad files allowed is {max_bad}: give a number from 0 to 1")
    if not files:
        raise DataError("there are no images to read: give at least one")
    return _batches(files, contract, batch, max_bad, on_bad or (lambda _: None))


def _batches(
    files: Sequence[ImageFile],
    contract: Preprocessing,
    batch: int,
    max_bad: float,
    on_bad: Callable[[BadFile], None],
) -> Iterator[tuple[Tensor, list[ImageFile]]]:
    bad: list[BadFile] = []
    tensors: list[Tensor] = []
    kept: list[ImageFile] = []
    first: tuple[ImageFile, tuple[int, ...]] | None = None
    seen = 0
    for file in files:
        seen += 1
        try:
            tensor = _decode(file, contract)
        except DataError as error:
            bad.append(BadFile(file.path, str(error)))
            on_bad(bad[-1])
        else:
            first = first or (file, tensor.shape)
            _check_shape(file, tensor, *first)
            tensors.append(tensor)
            kept.append(file)
        if len(bad) / len(files) > max_bad:
            # Too many already; a few more are looked for, so that one error names them together.
            tensors, kept = [], []
            if len(bad) >= _NAMED:
                break
        elif len(kept) == batch:
            yield np.stack(tensors), kept  # N x [C,H,W] -> [N,C,H,W]
            tensors, kept = [], []
    if len(bad) / len(files) > max_bad or first is None:
        raise _too_many(bad, seen, max_bad)
    if kept:
        yield np.stack(tensors), kept


def _decode(file: ImageFile, contract: Preprocessing) -> Tensor:
    """As :func:`decode`, but the error is the reason alone."""
    if file.row is not None:
        return array_row(file.path, file.row, contract)
    from PIL import Image, UnidentifiedImageError

    try:
        # Filters belong to the process: more readers have to be processes, not threads.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # untidy metadata, by the thousand
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file.path, formats=_FORMATS) as image:
                image.load()
                return contract.apply(image)
    except UnidentifiedImageError as error:
        raise DataError(f"not an image of a known format ({', '.join(_FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"more than {Image.MAX_IMAGE_PIXELS} pixels, which may be an attack: shrink the image"
        ) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or _one_line(error)}") from error
    except _DECODER_ERRORS as error:
        raise DataError(f"broken image: {_one_line(error)}") from error


def _check_shape(file: ImageFile, tensor: Tensor, first: ImageFile, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise DataError(
            f"images differ in size: {first.path} gives {list(expected)}, {file.path} gives {list(tensor.shape)}: "
            f"use a contract with resize and crop center"
        )


def _too_many(bad: Sequence[BadFile], seen: int, max_bad: float) -> DataError:
    named = "; ".join(f"{file.path}: {file.reason}" for file in bad[:_NAMED])
    return DataError(
        f"{len(bad)} of the first {seen} images cannot be used, where {max_bad:.1%} of all may be bad: "
        f"remove or mend them ({named})"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
