"""Picture to picture: any mode to RGB, resize of the shorter side, centre crop.

Each follows the function of the same purpose in torchvision.transforms.v2 on PIL images, pixel for pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runtimes.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def to_rgb(image: Picture) -> Picture:
    """``image`` in mode RGB.

    Alpha is dropped, not composited, for palettes too; CMYK goes through Pillow's uncalibrated conversion;
    16-bit grey keeps its high byte, which is what Pillow does to 16-bit colour.

    Raises:
        DataError: The pixels are floating point, or integers of more than 16 bits: their range is unknown.
    """
    from PIL import Image

    if image.mode == "F":
        raise DataError("image has floating-point pixels of unknown range: save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 0xFFFF:
            raise DataError(f"image has pixels from {low} to {high}: save it with 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns about palettes whose entries each have an alpha.
        image = image.convert("RGBA")
    return image.convert("RGB")


def resize_shorter(image: Picture, length: int, interpolation: str) -> Picture:
    """``image`` scaled so that its shorter side has ``length`` pixels.

    Args:
        image: Image in mode RGB or L.
        length: Pixels of the shorter side.
        interpolation: ``"bilinear"`` or ``"bicubic"`` (antialiased), or ``"nearest"``.

    Raises:
        DataError: The image is so narrow that the result would be larger than Pillow's safety limit.
    """
    from PIL import Image

    short, long = sorted(image.size)
    # Truncated, not rounded: torchvision's rule, and one pixel shifts the crop.
    new_long = int(length * long / short)
    # A sliver of 1 x 100000 is a small file, and an enormous picture once its short side is 256.
    if Image.MAX_IMAGE_PIXELS and length * new_long > Image.MAX_IMAGE_PIXELS:
        raise DataError(f"image of {image.width}x{image.height} is too narrow to resize to {length}: crop it")
    size = (length, new_long) if image.width <= image.height else (new_long, length)
    return image.resize(size, Image.Resampling[interpolation.upper()])


def crop_center(image: Picture, height: int, width: int) -> Picture:
    """The middle ``height`` x ``width`` pixels of ``image``.

    Raises:
        DataError: The image is smaller. (torchvision would pad it with black.)
    """
    if height > image.height or width > image.width:
        raise DataError(
            f"image is {image.width}x{image.height}, smaller than the crop {width}x{height}: "
            f"give larger images, or a contract with resize"
        )
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
