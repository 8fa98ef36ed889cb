"""Options on the command line that change how a file becomes a model's input; they mean the same in every command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from calibration.preprocess import PRESETS, Preprocessing
from runtimes.errors import InputError

#: Every option of a contract, by the names of :class:`calibration.preprocess.Preprocessing`.
FIELDS: Final = ("resize", "interpolation", "color", "scale", "mean", "std")


def overridden(contract: Preprocessing, channels: int, fields: Mapping[str, Any]) -> Preprocessing:
    """A contract with some fields replaced.

    Args:
        contract: Where the fields start from.
        channels: Of the model; one number for all of them is given once.
        fields: By the names of :data:`FIELDS`; ``None`` keeps one.

    Raises:
        InputError: Fields that contradict each other.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if "resize" in given and contract.crop == "none":
        contract = replace(contract, crop="center", resize=given["resize"])
    for name in {"mean", "std"} & given.keys():
        if len(given[name]) == 1:
            given[name] = given[name] * channels
    return contract.with_overrides(**given)


def preset(name: str, channels: int, height: int | None = None, width: int | None = None) -> Preprocessing:
    """A contract by name.

    Args:
        name: One of :data:`calibration.preprocess.PRESETS`.
        channels: Of the model.
        height: Of its images, where it is fixed.
        width: Of its images, where it is fixed.

    Raises:
        InputError: There is no such preset, or it does not fit.
    """
    if name not in PRESETS:
        raise InputError(f"received the preset {name!r}, expected one of {', '.join(PRESETS)}")
    if height is None or width is None:
        return PRESETS[name].for_input(channels)
    return PRESETS[name].for_input(channels, height, width)
