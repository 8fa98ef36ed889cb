"""From ranges to the scales of implicit INT8: one for each tensor, symmetric, with no place for a zero point."""

from __future__ import annotations

from typing import Final

from calibration.placement import target
from calibration.ranges import Ranges
from calibration.thresholds import Method, choose

#: What ``quantize`` takes where nothing else is asked for.
METHOD: Final[Method] = "mse"


def scales(ranges: Ranges, method: Method = METHOD) -> dict[str, float]:
    """Real value of one step, amax / 127, by tensor in the ranges' order.

    Args:
        ranges: Of the float model.
        method: How amax is chosen from what was seen; see :mod:`calibration.thresholds`.

    Raises:
        DataError: A tensor was never observed.
    """
    grid = target("tensorrt").signed
    return {name: choose(observer, method, grid).scale for name, observer in ranges.tensors.items()}
