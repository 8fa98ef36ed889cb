"""What a calibration asks of its images, wherever they are read: checks, their size and their hashes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from calibration.audit import content_hashes
from calibration.decoding import outcome
from calibration.graph import Network, input_size
from calibration.images import BadFile
from calibration.listing import ImageFile
from calibration.preprocess import Preprocessing
from runtimes.errors import DataError, InputError

#: The range of one image says nothing about the next one, and its audit nothing about a set.
FEWEST_IMAGES: Final = 2
# So many bad files are named in one line.
_NAMED: Final = 10


def check_inputs(network: Network, files: Sequence[ImageFile], contract: Preprocessing) -> None:
    """Refuse what cannot become ranges, before anything is read.

    Raises:
        DataError: Fewer than two images.
        InputError: The contract makes other channels than the network takes.
    """
    if len(files) < FEWEST_IMAGES:
        raise too_few(len(files))
    channels = input_size(network)[1]
    if contract.channels != channels:
        raise InputError(
            f"the preprocessing makes {contract.channels} channels ({contract.color}), the model takes {channels}: "
            f"give the preprocessing that the model was trained with"
        )


def image_size(network: Network, files: Sequence[ImageFile], contract: Preprocessing) -> tuple[int, int]:
    """Height and width in pixels: the contract's, the model's, or those of the first image that can be used.

    Raises:
        DataError: Neither says it, and no image can be used.
    """
    if contract.size is not None:
        return contract.size
    _, _, height, width = input_size(network)
    if height is not None and width is not None:
        return height, width
    for file in files:
        tensor = outcome(file, contract)
        if not isinstance(tensor, str):
            return tensor.shape[1], tensor.shape[2]
    raise too_many([BadFile(file.path, str(outcome(file, contract))) for file in files[:_NAMED]], len(files), 0.0)


def lenient_hashes(files: Sequence[ImageFile]) -> dict[ImageFile, str]:
    """As :func:`content_hashes`, without a stop at what cannot be read: the decoder says why, and it counts as bad."""
    hashes: dict[ImageFile, str] = {}
    for file in dict.fromkeys(files):
        try:
            hashes |= content_hashes([file])
        except DataError:
            hashes[file] = "unreadable"
    return hashes


def too_few(count: int) -> DataError:
    """The error for a set of ``count`` images."""
    return DataError(
        f"{count} image{'s' * (count != 1)} to calibrate with: the range of one says nothing about others: "
        f"give 500, and at least {FEWEST_IMAGES}"
    )


def too_many(bad: Sequence[BadFile], total: int, max_bad: float) -> DataError:
    """The error for more bad files than are allowed.

    Args:
        bad: All that were met.
        total: Files of the set.
        max_bad: Fraction of them that may be bad.
    """
    named = "; ".join(f"{file.path}: {file.reason}" for file in bad[:_NAMED])
    more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return DataError(
        f"{len(bad)} or more of {total} images cannot be used, where {max_bad:.1%} may be bad: "
        f"remove or mend them, or allow more with --max-bad ({named}{more})"
    )
