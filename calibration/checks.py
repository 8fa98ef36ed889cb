"""What the fields of a preprocessing contract can hold, and which of them contradict each other.

Values come from JSON as often as from Python, so types are checked too.
"""

from __future__ import annotations

from typing import Any

from runtimes.errors import InputError

# What is smaller is 0, or a subnormal, once it is a float32.
_SMALLEST = 1e-37


def refusal(name: str, given: object, expected: str) -> InputError:
    """The error for field ``name``, which is ``given`` and has to be ``expected``."""
    return InputError(f"preprocessing: {name} is {given!r}: give {expected}")


def is_count(value: object) -> bool:
    """Whether ``value`` is a whole number of at least 1 (and not a bool, which Python counts as one)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def size_field(value: Any) -> tuple[int, int]:
    """``value`` as height and width.

    Raises:
        InputError: It is not two whole numbers of at least 1.
    """
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_count, value)):
        raise refusal("size", value, "height and width in pixels, two whole numbers of at least 1, or null")
    return (value[0], value[1])


def numbers_field(name: str, value: Any) -> tuple[float, ...]:
    """``value`` as finite floats; adding 0.0 turns -0.0, which compares equal but prints apart, into 0.0.

    Raises:
        InputError: It is not a non-empty list of finite numbers.
    """
    items = value if isinstance(value, list | tuple) else ()
    # Within float32: the bounds keep out NaN too, which compares false with everything.
    usable = [isinstance(v, int | float) and not isinstance(v, bool) and -1e38 < v < 1e38 for v in items]
    if not items or not all(usable):
        raise refusal(name, value, "finite numbers")
    return tuple(float(v) + 0.0 for v in items)


def check_scaling(scale: float, mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    """Refuse a scaling that divides by nothing, or does not have one mean and one std for each channel.

    Raises:
        InputError: Naming the field, what it has and what it needs.
    """
    if scale < _SMALLEST:
        raise refusal("scale", scale, "a number greater than 0, such as 1/255")
    if min(std) < _SMALLEST:
        raise refusal("std", std, "values that are all greater than 0")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise refusal(name, values, f"one value for each of the {channels} channels")


def check_geometry(size: tuple[int, int] | None, resize: int | None, crop: str, color: str) -> None:
    """Refuse a resize and a crop that cannot both be had.

    Raises:
        InputError: Naming the two fields that contradict each other.
    """
    if resize is not None and not is_count(resize):
        raise refusal("resize", resize, "a whole number of pixels, at least 1, or null")
    if color == "raw" and (resize is not None or crop != "none"):
        raise InputError("preprocessing: color raw takes arrays as they are: set resize to null, crop to none")
    if crop == "center" and size is None:
        raise InputError("preprocessing: crop is center but size is null: give the size to cut out")
    if size is None or resize is None:
        return
    shape = f"{size[1]}x{size[0]}"
    if crop == "none":
        raise InputError(
            f"preprocessing: resize {resize} keeps the proportions of an image, so it cannot promise "
            f"the size {shape}: set crop to center"
        )
    if max(size) > resize:
        raise InputError(
            f"preprocessing: the crop {shape} does not fit in a shorter side of {resize}: "
            f"set resize to {max(size)} or more"
        )


def check_element(dtype: str, layout: str, scaling: tuple[float, ...], channels: int) -> None:
    """Refuse pixels in another layout than a decoder's, or with an arithmetic that they do not go through.

    Args:
        dtype: Element type of the tensor.
        layout: Order of its axes.
        scaling: Scale, means, stds.
        channels: Of the tensor.

    Raises:
        InputError: Naming the fields that contradict each other.
    """
    wanted = "NHWC" if dtype == "uint8" else "NCHW"
    if layout != wanted:
        raise refusal("layout", layout, f"{wanted}, which {dtype} is held in")
    if dtype == "uint8" and scaling != (1.0, *(0.0,) * channels, *(1.0,) * channels):
        raise InputError("preprocessing: uint8 is the pixels as they are: set scale to 1, mean to 0 and std to 1")
