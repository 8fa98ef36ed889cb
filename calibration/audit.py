"""What a user should be warned of about a set of images: too few, one class, copies, pixels of the wrong scale.

Nothing here is an error: each of them can be meant, and each of them usually is a mistake that shows only as a poor
INT8 model much later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from calibration.arrays import row_bytes
from runtimes.errors import DataError

if TYPE_CHECKING:
    from calibration.decoding import Tensor
    from calibration.listing import ImageFile

_FEW_IMAGES = 100
# More copies than either: large public sets hold a few, CIFAR-10 among them.
_FEW_COPIES = 3
_FEW_COPIES_FRACTION = 0.01
# 8-bit pixels normalised with the statistics of ImageNet have means within ±2.7 and a std below 2.3, whatever
# they show.
_LARGE = 3.0
# A std of 3 grey levels over all pixels of all images: less than the darkest photographs have.
_FLAT = 0.05
# From black to white in units of the white: pixels that were divided by 255 and not by a std.
_UNIT_RANGE = (0.95, 1.001)
_BLOCK = 1 << 20

Float64 = npt.NDArray[np.float64]


class ImageAudit:
    """Collects facts about images batch by batch, in memory that does not grow with their number.

    Means and variances are merged in float64 (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
    for computing sample variances", 1979, equations 2.1)::

        n = a + b      d = mean_b - mean_a      mean = mean_a + d * b / n      M = M_a + M_b + d**2 * a * b / n

    Attributes:
        images: Number of images so far.
    """

    def __init__(self) -> None:
        self.images = 0
        self._pixels = 0
        self._mean: Float64 = np.zeros(0)
        self._squares: Float64 = np.zeros(0)
        self._low: Float64 = np.zeros(0)
        self._high: Float64 = np.zeros(0)
        self._labels: dict[int, str | None] = {}
        self._unlabelled = 0
        self._copies = 0

    def add(self, tensor: Tensor, files: Sequence[ImageFile] = ()) -> None:
        """Note one batch, as the model is fed.

        Args:
            tensor: float32 ``[N, C, H, W]``; height and width may differ between batches.
            files: The ``N`` files in it, where they are known.

        Raises:
            DataError: The tensor has another rank, is empty, or has another number of channels than those before.
        """
        if tensor.ndim != 4 or tensor.size == 0 or (self.images and tensor.shape[1] != len(self._mean)):
            expected = len(self._mean) if self.images else "C"
            raise DataError(f"a batch has the shape {list(tensor.shape)}: give [N,{expected},H,W], not empty")
        mean = tensor.mean(axis=(0, 2, 3), dtype=np.float64)
        # Channel by channel: the float64 copy that a variance needs is as large as what it is taken of.
        variance = np.array([tensor[:, c].var(dtype=np.float64) for c in range(tensor.shape[1])])
        count = tensor.size // tensor.shape[1]
        self._merge(count, mean, variance * count)
        low, high = tensor.min(axis=(0, 2, 3)).astype(np.float64), tensor.max(axis=(0, 2, 3)).astype(np.float64)
        self._low = np.minimum(self._low, low) if self.images else low
        self._high = np.maximum(self._high, high) if self.images else high
        self.images += len(tensor)
        self._unlabelled += len(tensor) - len(files)
        for file in files:
            if file.label is None:
                self._unlabelled += 1
            else:
                self._labels.setdefault(file.label, file.class_name)

    def merge(self, other: ImageAudit) -> None:
        """Note all that ``other`` has, which stays as it is; copies are left to :meth:`add_contents`.

        Audits of one batch each, merged in order, are to the last bit what one audit of all batches is.

        Raises:
            DataError: They are of images with different numbers of channels.
        """
        if not other.images:
            return
        if self.images and len(self._mean) != len(other._mean):
            raise DataError(
                f"images of {len(self._mean)} and of {len(other._mean)} channels are in one set: use one contract"
            )
        self._merge(other._pixels, other._mean, other._squares)
        self._low = np.minimum(self._low, other._low) if self.images else other._low
        self._high = np.maximum(self._high, other._high) if self.images else other._high
        self.images += other.images
        self._unlabelled += other._unlabelled
        self._labels = {**other._labels, **self._labels}

    def add_contents(self, files: Sequence[ImageFile], hashes: Mapping[ImageFile, str]) -> None:
        """Note which of ``files`` are copies of others.

        Args:
            files: All images of the set, each as often as it is used.
            hashes: From :func:`content_hashes`; has each of ``files``.
        """
        self._copies = len(duplicates(files, hashes))

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over all pixels so far; empty before the first batch."""
        return tuple(self._mean.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over all pixels so far; empty before the first batch."""
        return tuple(np.sqrt(self._squares / max(self._pixels, 1)).tolist())

    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one line each; empty where nothing is suspicious."""
        found = [self._of_number(), self._of_classes(), self._of_copies(), self._of_pixels()]
        return tuple(line for line in found if line)

    def _merge(self, count: int, mean: Float64, squares: Float64) -> None:
        if not self._pixels:
            self._pixels, self._mean, self._squares = count, mean, squares
            return
        total = self._pixels + count
        apart = mean - self._mean
        self._squares = self._squares + squares + apart**2 * (self._pixels * count / total)
        self._mean = self._mean + apart * (count / total)
        self._pixels = total

    def _of_number(self) -> str | None:
        if self.images >= _FEW_IMAGES:
            return None
        return (
            f"the number of images is {self.images}: ranges of so few miss what others hold; "
            f"give 500, or at least {_FEW_IMAGES}"
        )

    def _of_classes(self) -> str | None:
        if self.images < 2 or self._unlabelled or len(self._labels) != 1:
            return None
        ((label, name),) = self._labels.items()
        return (
            f"all {self.images} images are of one class ({name or label}): "
            f"ranges of one class do not hold for others; give images of all"
        )

    def _of_copies(self) -> str | None:
        if self._copies <= max(_FEW_COPIES, _FEW_COPIES_FRACTION * self.images):
            return None
        return f"{self._copies} images are copies of others, byte for byte: give different ones"

    def _of_pixels(self) -> str | None:
        if not self.images:
            return None
        mean, std, span = np.array(self.mean), np.array(self.std), self._high - self._low
        # Written so that NaN is suspicious.
        if not (np.abs(mean) <= _LARGE).all() or not (std <= _LARGE).all():
            return self._far("is a division by 255 missing, or was it normalised twice?")
        if (std < _FLAT).all():
            return self._far("was it divided by 255 or normalised twice, or are all images of one colour?")
        if ((span >= _UNIT_RANGE[0]) & (span <= _UNIT_RANGE[1])).all():
            return self._far("their range has a length of 1: was the division by std left out?")
        return None

    def _far(self, guess: str) -> str:
        mean, std = (" ".join(f"{v:.3g}" for v in values) for values in (self.mean, self.std))
        return (
            f"the values fed have mean {mean} and std {std}, where most models were trained near 0 and 1: {guess} "
            f"It is right only for a model that was trained like that"
        )


def content_hashes(files: Sequence[ImageFile]) -> dict[ImageFile, str]:
    """SHA-256 of what each file holds, as 64 hex digits; of a row of an array file, of the row's values.

    Files are read in blocks, and each once however often it is listed.

    Args:
        files: Image files, or rows of array files.

    Raises:
        DataError: A file cannot be read; names it. A file that can be read but not decoded has a hash too.
    """
    hashes: dict[ImageFile, str] = {}
    for file in files:
        if file not in hashes:
            hashes[file] = _content_hash(file)
    return hashes


def duplicates(files: Sequence[ImageFile], hashes: Mapping[ImageFile, str]) -> list[ImageFile]:
    """Those of ``files`` whose content an earlier one has, in their order.

    Args:
        files: All images of the set, each as often as it is used.
        hashes: From :func:`content_hashes`; has each of ``files``.
    """
    seen: set[str] = set()
    found = []
    for file in files:
        if hashes[file] in seen:
            found.append(file)
        seen.add(hashes[file])
    return found


def overlap(a: Mapping[ImageFile, str], b: Mapping[ImageFile, str]) -> list[ImageFile]:
    """The images of ``a`` whose content is in ``b`` too, whatever their names and places.

    Args:
        a: Images and their hashes, from :func:`content_hashes`.
        b: Other images and theirs.
    """
    others = set(b.values())
    return [file for file, digest in a.items() if digest in others]


def overlap_warning(shared: Sequence[ImageFile]) -> str | None:
    """The line for images that serve both calibration and evaluation; ``None`` where there are none.

    Args:
        shared: From :func:`overlap`.
    """
    if not shared:
        return None
    row = "" if shared[0].row is None else f" row {shared[0].row}"
    return (
        f"{len(shared)} of the images are in both the calibration and the evaluation set ({shared[0].path}{row}, ...): "
        f"the accuracy measured flatters the model; evaluate on others"
    )


def list_sha256(files: Sequence[ImageFile], hashes: Mapping[ImageFile, str]) -> str:
    """One hash of a list of images: of their contents in order, not of names, places or labels.

    Args:
        files: The images, each as often as it is used.
        hashes: From :func:`content_hashes`; has each of ``files``.

    Returns:
        SHA-256 of the files' hashes, each followed by a newline, as 64 hex digits.
    """
    return hashlib.sha256("".join(f"{hashes[file]}\n" for file in files).encode()).hexdigest()


def _content_hash(file: ImageFile) -> str:
    if file.row is not None:
        return hashlib.sha256(row_bytes(file.path, file.row)).hexdigest()
    digest = hashlib.sha256()
    try:
        with file.path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{file.path} cannot be read: {error.strerror or error}: remove it from the set") from error
    return digest.hexdigest()
