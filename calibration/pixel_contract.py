"""Contracts of models that take pixels, and how one decoded picture feeds these and others alike.

A network with a preprocessing contract can be given a graph that does a part of it. What is left to the caller is a
contract too, of uint8 ``[N, H, W, C]``::

    contract            file -> resize, crop -> normalise     float32 [N,C,h,w]
    pixels_of           file -> resize, crop                  uint8   [N,h,w,C]
    pictures_of         file                                  uint8   [N,H,W,C]

What one of them leaves out is done by :func:`cropped` and :meth:`calibration.preprocess.Preprocessing.normalise`, bit
for bit as the whole contract does it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from calibration.preprocess import Preprocessing

Pixels = npt.NDArray[np.uint8]


def pixels_of(contract: Preprocessing) -> Preprocessing:
    """A contract without its normalisation: resized and cropped pixels, in its order of colours."""
    none, one = (0.0,) * contract.channels, (1.0,) * contract.channels
    return replace(contract, scale=1.0, mean=none, std=one, layout="NHWC", dtype="uint8")


def pictures_of(contract: Preprocessing) -> Preprocessing:
    """A contract without its normalisation, resize and crop: upright pictures of their own size."""
    return replace(pixels_of(contract), size=None, resize=None, crop="none")


def cropped(contract: Preprocessing, pictures: Pixels) -> Pixels:
    """Do the resize and the crop of a contract.

    Args:
        contract: Whose.
        pictures: ``[N, H, W, C]``, as :func:`pictures_of` makes them.

    Returns:
        ``[N, h, w, C]``, as :func:`pixels_of` makes them.

    Raises:
        DataError: The pictures do not fit.
    """
    from PIL import Image

    if contract.resize is None and contract.crop == "none":
        contract.check_size(*pictures.shape[1:3])
        return pictures
    found = []
    for picture in pictures:  # the order of the colours does not matter: each is scaled by itself
        shaped = contract.shape(Image.fromarray(picture[:, :, 0] if contract.channels == 1 else picture))
        found.append(np.asarray(shaped, np.uint8).reshape(shaped.height, shaped.width, contract.channels))
    return np.stack(found)  # N x [h,w,C] -> [N,h,w,C]
