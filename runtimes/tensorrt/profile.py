"""The sizes that an engine is built for: smallest, best and largest batch and image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from runtimes.errors import InputError

_DEFAULT_MOST: Final = 8
_LARGEST: Final = 1 << 16  # of a side, or of a batch
_NAMES: Final = ("--min", "--opt", "--max")

Shape = tuple[int, ...]


class Size(NamedTuple):
    """A batch, and the image's height and width where they are free; ``None``: as the model says."""

    batch: int
    height: int | None = None
    width: int | None = None

    @classmethod
    def parse(cls, text: str) -> Size:
        """``8`` or ``8x224x224``.

        Raises:
            InputError: It is neither, or a number is 0.
        """
        match = re.fullmatch(r"(\d+)(?:x(\d+)x(\d+))?", text.strip().lower())
        numbers = [int(each) for each in match.groups() if each is not None] if match else [0]
        if 0 in numbers or max(numbers) > _LARGEST:
            raise InputError(f"received the size {text!r}, expected a batch, or BATCHxHEIGHTxWIDTH, as 8 or 8x224x224")
        return cls(*numbers)


@dataclass(frozen=True)
class Profile:
    """An optimisation profile of one input.

    Attributes:
        name: The input.
        minimum: Smallest shape ``[N, C, H, W]``.
        optimum: The shape that kernels are chosen for.
        maximum: Largest shape.
    """

    name: str
    minimum: Shape
    optimum: Shape
    maximum: Shape

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """Smallest, best, largest, as ``IOptimizationProfile.set_shape`` takes them."""
        return self.minimum, self.optimum, self.maximum

    @property
    def is_fixed(self) -> bool:
        """Whether there is one shape only."""
        return self.minimum == self.maximum

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"input": self.name, "min": list(self.minimum), "opt": list(self.optimum), "max": list(self.maximum)}


def profile(
    name: str,
    dims: Sequence[int | None],
    sizes: tuple[Size | None, Size | None, Size | None],
    usual: tuple[int, int] | None = None,
) -> Profile:
    """A profile for a model's input.

    What is not given: an optimum of one image, a smallest batch of 1, a largest of 8 or the optimum; the size that the
    model's preprocessing makes.

    Args:
        name: The input.
        dims: Of the input, ``[N, C, H, W]``; ``None`` is free.
        sizes: Smallest, best and largest, where they are given.
        usual: Height and width of the preprocessing, where they are known.

    Raises:
        InputError: A size contradicts the model or another one, or a free height or width is given nowhere.
    """
    smallest, best, largest = sizes
    batch, channels, *fixed = dims
    if channels is None:
        raise InputError("the model does not say how many channels it takes: export it with a fixed number")
    optimum = best.batch if best else (smallest.batch if smallest else 1)
    lowest = smallest.batch if smallest else 1
    highest = largest.batch if largest else max(_DEFAULT_MOST, optimum)
    if batch is not None:
        given = {size.batch for size in sizes if size is not None} - {batch}
        if given:
            raise InputError(
                f"the model's batch is fixed at {batch}, and a batch of {min(given)} was asked for: export it without "
                f"--batch"
            )
        lowest = optimum = highest = batch
    images = _images(sizes, fixed, usual)
    shapes = [(count, channels, *image) for count, image in zip((lowest, optimum, highest), images, strict=True)]
    _check_order(shapes)
    return Profile(name, *shapes)


def fixed_profile(
    name: str,
    dims: Sequence[int | None],
    sizes: tuple[Size | None, Size | None, Size | None],
    usual: tuple[int, int] | None = None,
) -> tuple[Profile, bool]:
    """A profile of one shape, as a deep learning accelerator takes it: the size that is given, or else the optimum.

    Args:
        name: As for :func:`profile`, as are the others.
        dims: Of the input.
        sizes: Where several are given they have to be the same.
        usual: Height and width of the preprocessing, where they are known.

    Returns:
        The profile, and whether its shape was chosen among several that the model takes.

    Raises:
        InputError: As for :func:`profile`, or two sizes differ.
    """
    given = [size for size in sizes if size is not None]
    batches = {size.batch for size in given}
    images = {(size.height, size.width) for size in given if size.height is not None}
    if len(batches) > 1 or len(images) > 1:
        asked = " and ".join(
            f"{option} {_text([each for each in size if each is not None])}"
            for option, size in zip(_NAMES, sizes, strict=True)
            if size is not None
        )
        raise InputError(f"a DLA takes one fixed shape, and {asked} were asked for: give --opt alone")
    if given:
        size = Size(batches.pop(), *(images.pop() if images else ()))
        return profile(name, dims, (size, size, size), usual), False
    found = profile(name, dims, sizes, usual)
    return replace(found, minimum=found.optimum, maximum=found.optimum), not found.is_fixed


def _images(
    sizes: tuple[Size | None, ...], fixed: Sequence[int | None], usual: tuple[int, int] | None
) -> list[tuple[int, int]]:
    given = [None if size is None or size.height is None else (size.height, size.width or 0) for size in sizes]
    if None not in fixed:
        own = (int(fixed[0] or 0), int(fixed[1] or 0))
        for image in given:
            if image not in (None, own):
                raise InputError(
                    f"the model takes images of {_text(own)}, and {_text(image)} was asked for: export it with "
                    f"--dynamic-size"
                )
        return [own] * 3
    for image in filter(None, given):
        if any(own not in (None, side) for own, side in zip(fixed, image, strict=True)):
            taken = "x".join("any" if side is None else str(side) for side in fixed)
            raise InputError(f"the model takes images of {taken}, and {_text(image)} was asked for")
    present = [image for image in given if image]
    middle = given[1] or usual or (present[0] if present else None)
    if middle is None:
        raise InputError("the model takes images of any size: say which, as --opt 1x224x224")
    if given[1] is None:  # what is usual may lie outside of what was asked for
        low, high = given[0] or (1, 1), given[2] or (_LARGEST, _LARGEST)
        middle = (min(max(middle[0], low[0]), high[0]), min(max(middle[1], low[1]), high[1]))
    return [given[0] or middle, middle, given[2] or middle]


def _check_order(shapes: Sequence[Shape]) -> None:
    for one, other in ((0, 1), (1, 2)):
        if any(a > b for a, b in zip(shapes[one], shapes[other], strict=True)):
            raise InputError(
                f"{_NAMES[one]} {_text(shapes[one])} is more than {_NAMES[other]} {_text(shapes[other])}: the profile "
                f"has to go up from --min over --opt to --max"
            )


def _text(shape: Sequence[int] | None) -> str:
    return "x".join(map(str, shape or ()))
