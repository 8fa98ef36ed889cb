"""The 8-bit numbers that a real value can become, and the arithmetic between the two.

::

    q = clamp(round(x / scale) + zero_point, low, high)        x' = (q - zero_point) * scale

``round`` takes halves to the even neighbour, as ``QuantizeLinear`` of ONNX does. The equations: Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018), section 2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtimes.errors import DataError

Float64 = npt.NDArray[np.float64]

# Below this a scale, or its inverse, is no normal float32.
SMALLEST_SCALE = 2.0**-100


@dataclass(frozen=True)
class Grid:
    """A set of integers that a target computes with.

    Attributes:
        low: Smallest integer.
        high: Largest integer.
        symmetric: Whether the zero point has to be ``origin``.
        origin: Zero point of a symmetric grid.
    """

    low: int
    high: int
    symmetric: bool
    origin: int = 0

    @property
    def signed(self) -> bool:
        """Whether the integers are INT8 rather than UINT8."""
        return self.low < 0

    @property
    def steps(self) -> int:
        """Number of steps between the ends."""
        return self.high - self.low


#: TensorRT's activations and every target's weights.
S8 = Grid(-128, 127, symmetric=True)
#: Weights without -128: negating one stays inside, and sums of two products stay below 2**15 for one more value.
S8_NARROW = Grid(-127, 127, symmetric=True)
#: Non-negative values shifted by -128 * scale, so that a symmetric INT8 tensor has all 256 levels for them.
S8_SHIFTED = Grid(-128, 127, symmetric=True, origin=-128)
U8 = Grid(0, 255, symmetric=False)
S8_ASYMMETRIC = Grid(-128, 127, symmetric=False)
#: Seven bits, for processors whose sums of two products saturate at 16 bits (x86 without VNNI).
S7_NARROW = Grid(-63, 63, symmetric=True)


@dataclass(frozen=True)
class Affine:
    """How one tensor is quantised.

    Attributes:
        scale: Real value of one step; a float32.
        zero_point: Integer that stands for 0.
        grid: The integers there are.
    """

    scale: float
    zero_point: int
    grid: Grid

    @property
    def low(self) -> float:
        """The smallest real value that is not clipped."""
        return (self.grid.low - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest real value that is not clipped."""
        return (self.grid.high - self.zero_point) * self.scale

    def rounded(self, values: Float64) -> Float64:
        """The real values that remain of ``values`` (any shape) after quantising and dequantising."""
        steps = np.rint(values / self.scale)
        return np.clip(steps, self.grid.low - self.zero_point, self.grid.high - self.zero_point) * self.scale


def affine(low: float, high: float, grid: Grid) -> Affine:
    """The finest quantisation on ``grid`` that covers a range, and zero exactly.

    Args:
        low: Smallest value to keep; taken as 0 where it is above.
        high: Largest value to keep; taken as 0 where it is below.
        grid: The integers there are.

    Returns:
        Scale (the next float32 up, where it is not one) and zero point. An empty range gets a scale of 1.

    Raises:
        DataError: A bound is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"a range reaches from {low} to {high}: expected finite numbers")
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low == 0.0:
        return Affine(1.0, grid.origin if grid.symmetric else grid.low, grid)
    if grid.symmetric:
        above, below = grid.high - grid.origin, grid.origin - grid.low
        # -low / 127, not / 128: the one more level of a two's complement grid is left to the values that it helps.
        below = min(above, below) if below else 0
        scale = max(high / above, -low / below if below else 0.0)
        return Affine(_float32(scale), grid.origin, grid)
    scale = _float32((high - low) / grid.steps)
    zero_point = min(max(round(grid.low - low / scale), grid.low), grid.high)  # halves to the even one, as rint
    return Affine(scale, zero_point, grid)


def _float32(scale: float) -> float:
    return float(np.float32(max(scale, SMALLEST_SCALE)))
