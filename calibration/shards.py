"""A list of images in shards: pieces of fixed size that any machine can do, and that give the same on each.

A shard is a whole number of batches, and its size depends on the batch alone, never on the number of workers. So the
batches are those of one process, and what the shards give, merged in order, is what one process gives.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from calibration.arrays import stored_row
from calibration.decoding import Tensor, outcome
from calibration.images import BadFile, check_shape, too_many_bad
from calibration.listing import ImageFile
from calibration.preprocess import Preprocessing
from runtimes.errors import DataError, UnavailableError

# Images to a shard, about: seconds of work, which makes the messages cheap, and is all that a dead worker loses.
_IMAGES: Final = 64

TooMany = Callable[[Sequence[BadFile], int, float], DataError]


@dataclass(frozen=True)
class Shard:
    """A piece of the list.

    Attributes:
        start: Place of its first file in the list.
        files: Neighbours of the list.
        folder: What relative paths start from, absolute: a worker has a working directory of its own.
        contents: What each file holds, where workers have no way to it; ``None`` where they read it themselves, and
            in the place of a file that cannot be read.
    """

    start: int
    files: tuple[ImageFile, ...]
    folder: Path
    contents: tuple[bytes | None, ...] | None = None


@dataclass
class Reading:
    """What was met while a shard was read.

    Attributes:
        bad: Places in the shard, and why there is no tensor.
        first: Place of the first image, and its shape ``[C, H, W]``; ``None`` without any.
        unseen: Places of files that this machine cannot open.
    """

    bad: list[tuple[int, str]] = field(default_factory=list)
    first: tuple[int, tuple[int, ...]] | None = None
    unseen: list[int] = field(default_factory=list)


def shards(files: Sequence[ImageFile], batch: int, *, ship: bool = False) -> Iterator[Shard]:
    """The list in shards, in order, each made when it is asked for.

    Args:
        files: At least one.
        batch: Files to a batch.
        ship: Whether the contents go with it.
    """
    size = batch * max(1, _IMAGES // batch)
    folder = Path.cwd()
    for start in range(0, len(files), size):
        part = tuple(files[start : start + size])
        yield Shard(start, part, folder, tuple(map(_content, part)) if ship else None)


def read_shard(
    shard: Shard, local: Sequence[ImageFile], contract: Preprocessing, batch: int, reading: Reading
) -> Iterator[tuple[Tensor, list[int]]]:
    """The batches of a shard, as :func:`calibration.images.batches` makes them.

    Args:
        shard: Names the files in messages.
        local: The same files as this machine has them, from :func:`on_this_machine`.
        contract: How the pixels become a tensor.
        batch: Files to a batch.
        reading: Notes what is met.

    Yields:
        float32 ``[N, C, H, W]``, and the ``N`` places in the shard.

    Raises:
        DataError: Images differ in size, and the contract does not even them out.
    """
    for start in range(0, len(local), batch):
        tensors: list[Tensor] = []
        places: list[int] = []
        for place in range(start, min(start + batch, len(local))):
            tensor = outcome(local[place], contract)
            if isinstance(tensor, str):
                reading.bad.append((place, tensor))
                continue
            reading.first = reading.first or (place, tensor.shape)
            check_shape(shard.files[place], tensor.shape, shard.files[reading.first[0]], reading.first[1])
            tensors.append(tensor)
            places.append(place)
        if tensors:
            yield np.stack(tensors), places  # N x [C,H,W] -> [N,C,H,W]


@contextmanager
def on_this_machine(shard: Shard, reading: Reading) -> Iterator[list[ImageFile]]:
    """The files of a shard where this machine can read them: their own places, or copies of what came with it.

    Args:
        shard: The shard.
        reading: Notes the files that are not there.
    """
    if shard.contents is None:
        files = [replace(file, path=shard.folder / file.path) for file in shard.files]
        reading.unseen.extend(place for place, file in enumerate(files) if not _opens(file.path))
        yield files
        return
    with TemporaryDirectory(prefix="resnet-export-") as folder:
        yield [
            _copy(file, content, Path(folder), place)
            for place, (file, content) in enumerate(zip(shard.files, shard.contents, strict=True))
        ]


class Gathered:
    """What was met in all shards so far, which are noted in order.

    Args:
        files: The list.
        max_bad: Fraction of it that may be bad.
        on_bad: Hears of each bad file.
        too_many: Makes the error for more of them.

    Attributes:
        bad: Files that were skipped.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        max_bad: float,
        on_bad: Callable[[BadFile], None] | None = None,
        too_many: TooMany = too_many_bad,
    ) -> None:
        self.bad: list[BadFile] = []
        self._files = files
        self._max_bad = max_bad
        self._on_bad = on_bad or (lambda _: None)
        self._too_many = too_many
        self._first: tuple[ImageFile, tuple[int, ...]] | None = None

    def note(self, shard: Shard, reading: Reading, host: str) -> None:
        """Take in one shard.

        Raises:
            UnavailableError: The worker cannot open a file that this machine can.
            DataError: Too many files are bad, or an image has another size than those of earlier shards.
        """
        for place in reading.unseen:
            if _opens(shard.files[place].path):
                raise UnavailableError(
                    f"{shard.files[place].path} can be read here and not on {host}: share the folder under the same "
                    f"path with every machine, or send the images with --ray-ship"
                )
        for place, reason in reading.bad:
            self.bad.append(BadFile(shard.files[place].path, reason))
            self._on_bad(self.bad[-1])
        if len(self.bad) / len(self._files) > self._max_bad:
            raise self._too_many(self.bad, shard.start + len(shard.files), self._max_bad)
        if reading.first is not None:
            place, shape = reading.first
            self._first = self._first or (shard.files[place], shape)
            check_shape(shard.files[place], shape, *self._first)

    def end(self) -> None:
        """After the last shard.

        Raises:
            DataError: No file could be used.
        """
        if self._first is None:
            raise self._too_many(self.bad, len(self._files), self._max_bad)


def _content(file: ImageFile) -> bytes | None:
    """Of an image file, its bytes; of a row of an array file, an array file of that row alone."""
    try:
        if file.row is None:
            return file.path.read_bytes()
        stream = io.BytesIO()
        np.save(stream, stored_row(file.path, file.row)[None], allow_pickle=False)
        return stream.getvalue()
    except (OSError, DataError):  # the worker's own try tells why, and counts it as bad
        return None


def _copy(file: ImageFile, content: bytes | None, folder: Path, place: int) -> ImageFile:
    if content is None:
        return file
    copy = folder / f"{place}{file.path.suffix if file.row is None else '.npy'}"
    copy.write_bytes(content)
    return replace(file, path=copy, row=None if file.row is None else 0)


def _opens(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False
