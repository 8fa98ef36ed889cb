"""Which image is of which class, in the numbers of the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from calibration.listing import ImageFile
from runtimes.errors import DataError


class Labelled(NamedTuple):
    """Images with the models' own class numbers.

    Attributes:
        files: All of them.
        classes: How many the numbers tell apart: that of the models' names, where every folder is one of them, which
            makes a part of the folders enough; else that of the folders, whose alphabetical places are the labels;
            ``None`` for labels from a list, which say nothing about it.
        names: Of the classes in order, where they are known.
        notes: What was assumed.
    """

    files: list[ImageFile]
    classes: int | None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def with_labels(listing: Sequence[ImageFile], class_names: Sequence[str] = ()) -> Labelled:
    """The images with the models' own class numbers.

    Args:
        listing: All images of the set.
        class_names: The models' classes in order, or none.

    Raises:
        DataError: An image has no label, or some folders are named as classes and others are not.
    """
    missing = next((file for file in listing if file.label is None), None)
    if missing is not None:
        raise DataError(f"{missing.path} has no label: give a folder of class folders, or a list with a label a line")
    folders = {file.class_name for file in listing if file.class_name is not None}
    if not folders:
        return Labelled(list(listing), None, tuple(class_names))
    # A name that stands for two classes (ImageNet has some) tells nothing.
    places = {name: place for place, name in enumerate(class_names) if class_names.count(name) == 1}
    strange = sorted(folders - places.keys())
    if not strange:
        own = [replace(file, label=places[file.class_name or ""]) for file in listing]
        return Labelled(own, len(class_names), tuple(class_names))
    if len(strange) < len(folders):
        named = ", ".join(strange[:5]) + (", …" if len(strange) > 5 else "")
        raise DataError(
            f"{len(strange)} of {len(folders)} folders are no class of the models ({named}), or stand for two: name "
            "all as the classes are, or give a list with a number for each image"
        )
    why = "no folder is named as one of the models' classes" if class_names else "the models do not name their classes"
    note = f"{why}: the folders' places in the alphabet are the labels"
    return Labelled(list(listing), len(folders), tuple(sorted(folders)), (note,))


def check_labels(files: Sequence[ImageFile], classes: int | None) -> None:
    """Refuse labels that are no class before any image is run.

    Args:
        files: All that are to be run.
        classes: How many the models tell apart; ``None``: not known yet.

    Raises:
        DataError: Naming the first such image.
    """
    for file in files:
        if classes is not None and file.label is not None and file.label >= classes:
            raise DataError(f"{file} has the label {file.label}, and the models have {classes} classes, from 0 on")
