"""Golden images: a few of the user's, as pixels and as the tensors that models take.

Pixels are stored as RGB, upright and decoded, so that a device starts from the same numbers with any
JPEG decoder.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from calibration.arrays import row_pixels
from calibration.decoding import FORMATS
from calibration.images import load_batch
from calibration.listing import ImageFile
from calibration.pixels import resize_shorter, to_rgb
from calibration.preprocess import Preprocessing
from runtimes.base import Array, Floats
from runtimes.errors import DataError

_LARGE: Final = 1 << 20  # pixels of a picture that is stored as it is
_RATHER: Final = 2  # times the length of the contract's resize, for pictures larger than that


@dataclass(frozen=True)
class Golden:
    """One image.

    Attributes:
        name: Of its file, or of its row.
        label: Number of its class, where it is known.
        png: The pixels as a PNG file; ``None`` where there are none, as of tensors that were preprocessed before.
    """

    name: str
    label: int | None
    png: bytes | None


def golden_images(files: Sequence[ImageFile], contract: Preprocessing) -> tuple[list[Golden], Floats]:
    """The images as pixels, and as the tensors that the contract makes of those very pixels.

    Args:
        files: At least one.
        contract: How pixels become tensors.

    Returns:
        One golden for each file, and ``[N, C, H, W]`` float32.

    Raises:
        DataError: A file cannot be used, or the images differ in size and the contract does not even them out.
    """
    if not files:
        raise DataError("a bundle needs one image at least: give --data with some")
    tensors = load_batch(files, contract)
    goldens = []
    for index, file in enumerate(files):
        picture = None if contract.color == "raw" else _picture(file, contract)
        name = file.path.name if file.row is None else f"{file.path.name}[{file.row}]"
        goldens.append(Golden(name, file.label, None if picture is None else _png(picture)))
        if picture is not None:
            tensors[index] = contract.apply(picture)
    return goldens, tensors


def _picture(file: ImageFile, contract: Preprocessing) -> Any:
    """The pixels as a picture in RGB; ``None`` for a row that was preprocessed before."""
    from PIL import Image, ImageOps

    if file.row is not None:
        try:
            picture = to_rgb(Image.fromarray(row_pixels(file.path, file.row)))
        except DataError:
            return None
    else:
        with Image.open(file.path, formats=FORMATS) as image:
            image.load()
            picture = to_rgb(ImageOps.exif_transpose(image) if contract.orientation == "exif" else image)
    # A picture of any shape would not keep its shape to the pixel.
    if contract.resize is not None and contract.size is not None and picture.width * picture.height > _LARGE:
        length = _RATHER * contract.resize
        if min(picture.size) > length:
            picture = resize_shorter(picture, length, "bilinear")
    return picture


def _png(picture: Any) -> bytes:
    """Without any of the metadata that a photograph may have."""
    stream = io.BytesIO()
    plain = picture.copy()
    plain.info = {}
    plain.save(stream, format="PNG", optimize=False, compress_level=9)
    return stream.getvalue()


def npy_bytes(array: Array) -> bytes:
    """The bytes of a ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def pixels_path(index: int) -> str:
    """Where the pixels of an image lie."""
    return f"goldens/pixels/{index:04d}.png"
