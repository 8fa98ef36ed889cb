"""Images on disk: find them, choose some of them, and read them in batches.

Nothing here knows what a model is: the contract says what a tensor is, and a file that cannot become one is
reported, up to the fraction that the caller tolerates.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration.decoding import Tensor, decode, outcome
from calibration.listing import ImageFile, find_images, sample
from calibration.streams import array_batches
from calibration.workers import outcomes, worker_count
from runtimes.errors import DataError, InputError

if TYPE_CHECKING:
    from calibration.preprocess import Preprocessing

__all__ = [
    "BadFile",
    "ImageFile",
    "array_batches",
    "batches",
    "check_shape",
    "decode",
    "find_images",
    "load_batch",
    "sample",
    "too_many_bad",
    "worker_count",
]

# So many bad files are named in an error.
_NAMED = 3


@dataclass(frozen=True)
class BadFile:
    """A file that did not become a tensor, and why, in one line."""

    path: Path
    reason: str


def load_batch(files: Sequence[ImageFile], contract: Preprocessing) -> Tensor:
    """All ``files`` as one tensor, none of them spared.

    Args:
        files: At least one file.
        contract: How the pixels become a tensor.

    Returns:
        float32 array of shape ``[N, C, H, W]``, or uint8 of ``[N, H, W, C]``.

    Raises:
        DataError: A file cannot be used, or the images differ in size and the contract does not even them out.
    """
    if not files:
        raise DataError("a batch of no images: give at least one")
    first = decode(files[0], contract)
    tensors = [first]
    for file in files[1:]:
        tensors.append(decode(file, contract))
        check_shape(file, tensors[-1].shape, files[0], first.shape)
    return np.stack(tensors)  # N x [C,H,W] -> [N,C,H,W]


def batches(
    files: Sequence[ImageFile],
    contract: Preprocessing,
    batch: int,
    *,
    max_bad: float = 0.01,
    on_bad: Callable[[BadFile], None] | None = None,
    workers: int = 0,
) -> Iterator[tuple[Tensor, list[ImageFile]]]:
    """The files in batches, in order, without those that cannot be used.

    A batch is made of ``batch`` neighbours of the list, and a bad file shortens its own batch alone: what a batch holds
    does not depend on files elsewhere, so whoever reads a part of the list makes the same batches of it. A batch
    without any image is left out.

    Args:
        files: At least one file.
        contract: How the pixels become a tensor.
        batch: Files to a batch; the last may have fewer.
        max_bad: Fraction of ``files``, from 0 to 1, that may be bad.
        on_bad: Called with each bad file as it is met.
        workers: Processes that decode, also while the caller is busy with a batch; 0 decodes in this one. The
            result is the same; about two batches are held in memory instead of one. A script that asks for workers
            has to do its work under ``if __name__ == "__main__"``. :func:`worker_count` proposes a number.

    Returns:
        An iterator over tensors, float32 ``[N, C, H, W]`` or uint8 ``[N, H, W, C]`` as the contract says, and the
        ``N`` files in them. It raises ``DataError`` when more files are bad than allowed, when all are, when images
        differ in size and the contract does not even them out (pictures of any size can be read one at a time), or
        when a worker dies; and ``UnavailableError`` when none can be started.

    Raises:
        DataError: ``files`` is empty.
        InputError: ``batch``, ``max_bad`` or ``workers`` is out of range.
    """
    if batch < 1:
        raise InputError(f"the batch is {batch} images: give 1 or more")
    if not 0 <= max_bad <= 1:
        raise InputError(f"the fraction of bad files allowed is {max_bad}: give a number from 0 to 1")
    if workers < 0:
        raise InputError(f"the number of workers is {workers}: give 0 to decode in this process, or more")
    if not files:
        raise DataError("there are no images to read: give at least one")
    return _batches(files, contract, batch, max_bad, on_bad or (lambda _: None), workers)


def _batches(
    files: Sequence[ImageFile],
    contract: Preprocessing,
    batch: int,
    max_bad: float,
    on_bad: Callable[[BadFile], None],
    workers: int,
) -> Iterator[tuple[Tensor, list[ImageFile]]]:
    bad: list[BadFile] = []
    tensors: list[Tensor] = []
    kept: list[ImageFile] = []
    first: tuple[ImageFile, tuple[int, ...]] | None = None
    seen = 0
    # Closed on every way out, an exception or the caller's loss of interest included: that ends the workers.
    with closing(_outcomes(files, contract, batch, workers)) as decoded:
        for file, tensor in zip(files, decoded, strict=True):
            seen += 1
            if isinstance(tensor, str):
                bad.append(BadFile(file.path, tensor))
                on_bad(bad[-1])
            else:
                first = first or (file, tensor.shape)
                if batch > 1 or not contract.any_size:
                    check_shape(file, tensor.shape, *first)
                tensors.append(tensor)
                kept.append(file)
            if len(bad) / len(files) > max_bad:
                # Too many already; a few more are looked for, so that one error names them together.
                tensors, kept = [], []
                if len(bad) >= _NAMED:
                    break
            elif kept and seen % batch == 0:
                yield np.stack(tensors), kept  # N x [C,H,W] -> [N,C,H,W]
                tensors, kept = [], []
    if len(bad) / len(files) > max_bad or first is None:
        raise too_many_bad(bad, seen, max_bad)
    if kept:
        yield np.stack(tensors), kept


def _outcomes(
    files: Sequence[ImageFile], contract: Preprocessing, batch: int, workers: int
) -> Generator[Tensor | str, None, None]:
    if workers:
        # One batch ahead: the workers have something to do for as long as the caller uses the last one.
        return outcomes(files, contract, workers, ahead=batch)
    return (outcome(file, contract) for file in files)


def check_shape(file: ImageFile, shape: tuple[int, ...], first: ImageFile, expected: tuple[int, ...]) -> None:
    """Refuse an image of another size than the first one.

    Args:
        file: The image.
        shape: Of its tensor.
        first: The image before all others.
        expected: Of that one's tensor.

    Raises:
        DataError: They differ; names both.
    """
    if shape != expected:
        raise DataError(
            f"images differ in size: {first.path} gives {list(expected)}, {file.path} gives {list(shape)}: "
            f"use a contract with resize and crop center"
        )


def too_many_bad(bad: Sequence[BadFile], seen: int, max_bad: float) -> DataError:
    """The error for more bad files than are allowed.

    Args:
        bad: All that were met; the first few are named.
        seen: Files looked at so far.
        max_bad: Fraction of all files that may be bad.
    """
    named = "; ".join(f"{file.path}: {file.reason}" for file in bad[:_NAMED])
    return DataError(
        f"{len(bad)} of the first {seen} images cannot be used, where {max_bad:.1%} of all may be bad: "
        f"remove or mend them ({named})"
    )
