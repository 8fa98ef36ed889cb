"""Which images there are: folders, class folders, list files; and a fair sample of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from calibration.arrays import array_labels
from runtimes.errors import DataError, InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_DIGITS = 9  # of a label: more classes than that fit into no memory
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})


@dataclass(frozen=True)
class ImageFile:
    """One image and what it shows.

    Attributes:
        path: Image file, or the array file that holds it.
        label: Index of its class, or ``None`` when it is not known.
        class_name: Name of its class, or ``None``.
        row: Row of the array file; ``None`` for an image file.
    """

    path: Path
    label: int | None = None
    class_name: str | None = None
    row: int | None = None

    def __str__(self) -> str:
        """The path, and the row of an array file: ``images.npy[7]``."""
        return str(self.path) if self.row is None else f"{self.path}[{self.row}]"


def find_images(root: Path) -> list[ImageFile]:
    """The images that ``root`` names, in an order that depends on names alone.

    Args:
        root: One of: a folder of images; a folder of class folders, where the label is the alphabetical place of
            the folder's name; one image; an array file (:mod:`calibration.arrays`); or a text file with
            one path a line, relative to it, each optionally followed by a tab or a space and a label.

    Returns:
        At least one image. A list keeps its own order, everything else is sorted. Hidden files are left out.

    Raises:
        DataError: There is no image, or what is there can be read in two ways.
    """
    if not root.exists():
        raise DataError(f"{root} does not exist: give a folder of images, a list of them or an array file")
    if root.is_dir():
        return _from_folder(root)
    suffix = root.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return [ImageFile(root, label, row=row) for row, label in enumerate(array_labels(root))]
    return [ImageFile(root)] if suffix in IMAGE_SUFFIXES else _from_list(root)


def sample(files: Sequence[ImageFile], limit: int | None, seed: int = 0) -> list[ImageFile]:
    """``limit`` of the files, as evenly over the classes as their sizes allow, in the order they came in.

    The choice depends on the seed and the order of ``files`` alone, and a larger limit adds to what a smaller
    one chose.

    Args:
        files: What to choose from; files without a label count as one class.
        limit: Number of files; ``None`` or 0 for all.
        seed: Another seed makes another choice.

    Raises:
        InputError: ``limit`` is negative.
    """
    if limit is not None and limit < 0:
        raise InputError(f"the number of images is {limit}: give 0 for all of them, or more")
    if not limit or limit >= len(files):
        return list(files)
    # random() is the one method whose numbers Python promises to keep for a seed.
    draw = Random(seed)
    keys = [draw.random() for _ in files]
    classes: dict[int | None, list[int]] = defaultdict(list)
    for index in sorted(range(len(files)), key=keys.__getitem__):
        classes[files[index].label].append(index)
    # First of each class, then second of each, ...: small classes run out and the others fill up.
    rounds = [(place, keys[i], i) for members in classes.values() for place, i in enumerate(members)]
    return [files[i] for i in sorted(i for _, _, i in sorted(rounds)[:limit])]


def _from_folder(root: Path) -> list[ImageFile]:
    try:
        children = sorted(child for child in root.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror or error}") from error
    loose = [child for child in children if _is_image(child)]
    folders = [child for child in children if child.is_dir()]
    inside = [_images_below(folder) for folder in folders]
    found = sum(map(len, inside))
    if not loose and not found:
        raise DataError(f"{root} and its {len(folders)} sub-folders hold no image ({_suffixes()}): give another folder")
    if loose and found:
        raise DataError(
            f"{root} holds images ({loose[0].name}, ...) beside folders of images: "
            f"move the {len(loose)} loose ones away, or give one of the folders"
        )
    if loose:
        return [ImageFile(path) for path in loose]
    # Splits (train/cat/1.jpg) would pass for classes, and every label would be wrong.
    if not any(path.parent == folder for folder, paths in zip(folders, inside, strict=True) for path in paths):
        names = ", ".join(folder.name for folder in folders[:5])
        raise DataError(f"{root} holds folders of folders ({names}), not of images: give one of them")
    return [
        ImageFile(path, label, folder.name)
        for label, (folder, paths) in enumerate(zip(folders, inside, strict=True))
        for path in paths
    ]


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if _is_image(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _from_list(path: Path) -> list[ImageFile]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path} is not an image ({_suffixes()}), an array file or a list of paths: "
            f"give a text file with one path a line"
        ) from error
    files = [_entry(path, number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not files:
        raise DataError(f"{path} lists no image: give one path a line, relative to {path.name}")
    missing = [file.path for file in files if not _is_file(file.path)]
    if missing:
        # The end of a path says more than its start, and a text that is no list has very long "paths".
        named = ", ".join(f"...{name[-60:]}" if len(name) > 60 else name for name in map(str, missing[:3]))
        raise DataError(
            f"{path} lists {len(missing)} files that do not exist ({named}): give one path a line, relative to it"
        )
    return files


def _entry(listing: Path, number: int, line: str) -> ImageFile:
    """One line; a space before a number is a separator only behind the end of an image's name."""
    name, tab, label = line.rpartition("\t")
    if not tab:
        head, _, last = line.rpartition(" ")
        if not _is_label(last) or Path(head.strip()).suffix.lower() not in IMAGE_SUFFIXES:
            return ImageFile(listing.parent / line)
        name, label = head, last
    if not _is_label(label.strip()):
        raise DataError(f"{listing} line {number}: the label is {label!r}: give an integer, 0 or more, or no label")
    digits = label.strip().lstrip("0") or "0"
    if len(digits) > _DIGITS:
        raise DataError(
            f"{listing} line {number}: the label {digits[:24]} is no class: give a number below 10^{_DIGITS}"
        )
    return ImageFile(listing.parent / name.strip(), int(digits))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system allows
        return False


def _is_label(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _suffixes() -> str:
    return " ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
