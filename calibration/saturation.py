"""Weights whose products cannot overflow 16 bits on x86 processors without VNNI.

There an 8-bit dot product multiplies unsigned by signed bytes and adds **two** neighbouring products in 16 bits that
saturate (``vpmaddubsw``): ``255 * a + 255 * b`` has to stay within 32767, so ``|a + b| <= 128`` for neighbours of one
sign. The usual way out gives every weight seven bits. Here only the pairs that could overflow give way, each by as
little as possible: most weights are small, so few do, and the file gives the same numbers on every processor.

Neighbours are consecutive in the order in which a kernel runs through its sum. ONNX Runtime multiplies with the
channels innermost (kernel row, kernel column, channel); oneDNN, which OpenVINO uses, takes channels by fours at each
kernel position. The two differ where the number of channels is odd.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

#: Largest sum of two neighbours of one sign: 255 * 128 = 32640.
LARGEST_SUM: Final = 128


def spared(steps: Float32, axis: int) -> Float32:
    """Whole-numbered weights without pairs that can overflow.

    Args:
        steps: Integers as float32, ``[O, I, ...]`` or ``[I, O]``.
        axis: Of the output channels, ``O``.

    Returns:
        The same shape; each pair that could overflow is moved to the nearest one that cannot.
    """
    rows = np.moveaxis(steps, axis, 0)
    order = np.moveaxis(rows, 1, -1)  # [O,I,kh,kw] -> [O,kh,kw,I]; [O,I] stays
    result = spared_rows(order.reshape(len(order), -1), order.shape[-1]).reshape(order.shape)
    back: Float32 = np.ascontiguousarray(np.moveaxis(np.moveaxis(result, -1, 1), 0, axis))
    return back


def spared_rows(rows: Float32, channels: int) -> Float32:
    """The same for ``[O, K]``, where each ``channels`` neighbours are those of one kernel position."""
    result = _paired(rows)
    if channels % 2 and channels < rows.shape[1]:
        return _paired(result.reshape(-1, channels)).reshape(rows.shape)
    return result


def overflows(steps: Float32, axis: int) -> int:
    """Number of weights that :func:`spared` would change."""
    return int(np.count_nonzero(spared(steps, axis) != steps))


def _paired(rows: Float32) -> Float32:
    """Move the pairs (0, 1), (2, 3), ... of each row ``[R, K]`` into bounds."""
    even = rows.shape[1] - rows.shape[1] % 2
    pairs = rows[:, :even].reshape(len(rows), -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    excess = np.abs(first + second) - LARGEST_SUM
    beyond = (excess > 0) & (first * second > 0)
    if not beyond.any():
        return rows
    excess = np.where(beyond, excess, 0.0)
    # Half each is the nearest point; of an odd excess the larger one gives the rest. Neither changes its sign: the
    # other is 127 at most, so the excess is less than the smaller one.
    more, less = np.ceil(excess / 2), np.floor(excess / 2)
    bigger = np.abs(first) >= np.abs(second)
    moved = np.stack(
        [
            first - np.sign(first) * np.where(bigger, more, less),
            second - np.sign(second) * np.where(bigger, less, more),
        ],
        axis=-1,
    )
    result: Float32 = rows.copy()
    result[:, :even] = moved.reshape(len(rows), even)
    return result
