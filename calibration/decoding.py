"""One file becomes one tensor, or a reason why it does not.

Nothing here depends on the process it runs in, apart from Pillow's own settings.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from calibration.arrays import array_row
from runtimes.errors import DataError

if TYPE_CHECKING:
    from calibration.listing import ImageFile
    from calibration.preprocess import Preprocessing

Tensor = npt.NDArray[Any]

# Only these decoders may touch a file, whatever its name: Pillow has others that start programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What Pillow's decoders raise on broken files, besides OSError.
DECODER_ERRORS = (
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


def decode(file: ImageFile, contract: Preprocessing) -> Tensor:
    """The tensor of one file: a pure function of its arguments and the disk, so it can run in any process.

    Args:
        file: Image file, or a row of an array file.
        contract: How the pixels become a tensor.

    Returns:
        float32 array of shape ``[C, H, W]``, or uint8 of ``[H, W, C]``: what the contract says.

    Raises:
        DataError: The file is broken, unreasonably large, or does not fit the contract; names the file.
    """
    try:
        return _decode(file, contract)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from error


def outcome(file: ImageFile, contract: Preprocessing) -> Tensor | str:
    """As :func:`decode`, for callers that go on after a bad file.

    Returns:
        The same, or the reason why there is none, without the file's name.
    """
    try:
        return _decode(file, contract)
    except DataError as error:
        return str(error)


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
            with Image.open(file.path, formats=FORMATS) as image:
                image.load()
                return contract.apply(image)
    except UnidentifiedImageError as error:
        raise DataError(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"more than {Image.MAX_IMAGE_PIXELS} pixels, which may be an attack: shrink the image"
        ) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or _one_line(error)}") from error
    except DECODER_ERRORS as error:
        raise DataError(f"broken image: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
