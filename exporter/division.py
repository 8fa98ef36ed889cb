"""Which images calibrate and which ones measure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from calibration.images import find_images, sample
from calibration.listing import ImageFile
from calibration.quantise import FEWEST_IMAGES

# Without images of their own, fidelity takes one in so many of those given, and calibration the rest.
_SET_ASIDE: Final = 5
_MOST_ASIDE: Final = 512


@dataclass(frozen=True)
class Chosen:
    """Images for two uses.

    Attributes:
        files: To calibrate with.
        aside: Others, to measure fidelity on.
        max_bad: Fraction of the first that may be bad.
        max_bad_aside: Fraction of the others.
    """

    files: list[ImageFile]
    aside: list[ImageFile]
    max_bad: float
    max_bad_aside: float


def divide(data: Path | None, evaluation_data: Path | None, count: int, seed: int, allowed: float) -> Chosen:
    """Choose images to calibrate with and images to measure on.

    Args:
        data: What to calibrate with; ``None``: nothing is.
        evaluation_data: What to measure on; ``None``: what is not sampled of ``data``, or some of the sample.
        count: How many are sampled; 0: all.
        seed: Of the sample.
        allowed: Fraction of the images that may be unusable.

    Raises:
        DataError: There is no image.
        InputError: ``count`` is negative.
    """
    evaluation = find_images(evaluation_data) if evaluation_data is not None else []
    if data is None:
        return Chosen([], evaluation, allowed, allowed)
    found = find_images(data)
    chosen = sample(found, count, seed)
    if evaluation:
        return Chosen(chosen, evaluation, allowed, allowed)
    taken = set(chosen)
    rest = [file for file in found if file not in taken]
    if len(rest) >= len(chosen) // _SET_ASIDE and rest:
        return Chosen(chosen, sample(rest, _MOST_ASIDE, seed), allowed, allowed)
    aside = chosen[::_SET_ASIDE]
    kept = [file for place, file in enumerate(chosen) if place % _SET_ASIDE]
    if len(kept) < FEWEST_IMAGES:
        return Chosen(chosen, [], allowed, allowed)
    # The fraction is one of all images: all the bad ones may happen to be on one side.
    bad = math.floor(allowed * len(chosen) + 1e-9)
    return Chosen(kept, aside, min(1.0, bad / len(kept)), min(1.0, bad / len(aside)))
