"""Pixels straight into a quantised file: its input is on their lattice already.

The prologue of :mod:`calibration.lattice` computes the pixels back from what the preprocessing made of them, and
quantises them without loss. Given the pixels, nothing of it has to be computed. What remains is the border: the zeros
around the preprocessed image became the mean colour, rounded to whole pixels, and one in each channel. ``Pad`` has one
value for all channels, so that each is padded by itself where they differ::

    unsigned   uint8 ─ Transpose ─ Slice, Pad, Concat by channel ──────────────▶ the integers          no float at all
    signed     uint8 ─ Cast ─ Transpose ─ Sub colour ─ Pad 0 ─ Add ─ Quantize ─▶ the integers

The second is for targets whose integers are signed; all of its numbers are whole, so that FP16 would hold them too.
TensorRT wants it for another reason: it takes uint8 from an input and gives it to a Cast only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from calibration.graph import Network
from calibration.lattice import PIXELS
from calibration.preprocess import Preprocessing
from exporter.graph.rewrite import Front, planes

Array = npt.NDArray[Any]
_QUANTISED: Final = f"{PIXELS}.quantized"
_LEVELS: Final = 256
# A float32 near 128 is within 1e-5 of what it stands for; another contract is off by more than this.
_SLACK: Final = 1e-3


@dataclass(frozen=True)
class Lattice:
    """How the integers of a quantised file's input come from pixels: ``pixel + shift``, within ``colours`` as a frame.

    Attributes:
        shift: Integer less pixel.
        kind: int8 or uint8.
        scale: Name of the constant 1.0 that the integers are dequantised with.
        zero: Name of their zero point.
        zero_point: Its value.
        pads: Pixels around the image: top, left, bottom, right; all 0 where the network's convolutions pad nothing.
        colours: The integer of the frame, by channel.
    """

    shift: int
    kind: np.dtype[Any]
    scale: str
    zero: str
    zero_point: int
    pads: tuple[int, ...]
    colours: tuple[int, ...]


def find_lattice(network: Network, contract: Preprocessing) -> Lattice | None:
    """The prologue of a quantised file, if it is there and is for this contract.

    Args:
        network: Any.
        contract: How pixels became its input.
    """
    quantise, readers = network.producers.get(_QUANTISED), network.consumers.get(_QUANTISED, ())
    if quantise is None or quantise.op_type != "QuantizeLinear" or not readers:
        return None
    parameters = _parameters(network, readers)
    if parameters is None or len(quantise.input) != 3 or not set(quantise.input[1:]) <= set(network.initializers):
        return None
    read = _separate(network, quantise, contract) or _fused(network, quantise, contract)
    pads = _pads(network, read[2]) if read is not None else None
    if read is None or pads is None:
        return None
    shift, colours, _ = read
    scale, zero = parameters
    zero_point = network.initializers[zero]
    bounds = np.iinfo(zero_point.dtype)
    if not bounds.min <= shift <= bounds.max - (_LEVELS - 1):
        return None
    held = tuple(int(each) for each in np.clip(colours, bounds.min, bounds.max))
    return Lattice(shift, zero_point.dtype, scale, zero, int(zero_point.reshape(())), pads, held)


def _parameters(network: Network, readers: Sequence[onnx.NodeProto]) -> tuple[str, str] | None:
    """Scale and zero point of the pixels, if all that read them agree on steps of 1."""
    first = readers[0]
    if any(node.op_type != "DequantizeLinear" or node.input[1:] != first.input[1:] for node in readers):
        return None
    if len(first.input) != 3 or not set(first.input[1:]) <= set(network.initializers):
        return None
    unit, zero = (network.initializers[name] for name in first.input[1:])
    if unit.size != 1 or float(unit.reshape(())) != 1.0 or zero.size != 1 or zero.dtype not in (np.int8, np.uint8):
        return None
    return first.input[1], first.input[2]


def lattice_front(network: Network, lattice: Lattice) -> Front:
    """The nodes that make the integers of pixels."""
    front = Front(network.input, target=_QUANTISED)
    if lattice.kind == np.uint8 and lattice.shift == 0:
        front.add("Transpose", "planes", perm=[0, 3, 1, 2])
        _frame(front, lattice)
        return front
    front.add("Cast", "float", to=TensorProto.FLOAT)
    front.add("Transpose", "planes", perm=[0, 3, 1, 2])
    colours = np.array(lattice.colours) - lattice.shift  # as pixels
    offset = np.full(len(colours), lattice.shift - lattice.zero_point)
    if any(lattice.pads):
        front.add("Sub", "shifted", planes(colours))
        front.add("Pad", "framed", _all_pads(lattice.pads))
        offset = offset + colours
    if offset.any():
        front.add("Add", "whole", planes(offset))
    front.add("QuantizeLinear", "quantised", lattice.scale, lattice.zero)
    return front


def _frame(front: Front, lattice: Lattice) -> None:
    """Pad each channel with its own colour."""
    if not any(lattice.pads):
        return
    pads = front.constant(f"{front.input}.pads", _all_pads(lattice.pads))
    colours = [np.array(each, np.uint8) for each in lattice.colours]
    if len(set(lattice.colours)) == 1:
        front.add("Pad", "framed", pads, colours[0])
        return
    axis = front.constant(f"{front.input}.channels", np.array([1], np.int64))
    framed = []
    for place, colour in enumerate(colours):
        bounds = [np.array([each], np.int64) for each in (place, place + 1)]
        channel = front.make("Slice", f"channel{place}", front.last, *bounds, axis)
        framed.append(front.make("Pad", f"framed{place}", channel, pads, colour))
    front.last = front.make("Concat", "framed", *framed, axis=1)


def _separate(network: Network, quantise: onnx.NodeProto, contract: Preprocessing) -> tuple[int, Array, str] | None:
    """``Mul``, ``Add``, ``QuantizeLinear`` of one scale: shift, colours of the frame, and what goes in."""
    add = network.producers.get(quantise.input[0])
    multiply = network.producers.get(add.input[0]) if add is not None and add.op_type == "Add" else None
    if add is None or multiply is None or multiply.op_type != "Mul":
        return None
    steps, offsets = network.initializers.get(multiply.input[1]), network.initializers.get(add.input[1])
    unit, zero = (network.initializers[name] for name in quantise.input[1:])
    if steps is None or offsets is None or unit.size != 1 or float(unit.reshape(())) != 1.0 or zero.size != 1:
        return None
    if not _are_steps(steps, contract):
        return None
    # offsets = mean/scale - moved, and a pixel becomes pixel - moved + zero point
    moved = np.array(contract.mean) / contract.scale - offsets.astype(np.float64).reshape(-1)
    whole = np.rint(moved)
    if np.abs(moved - whole).max() > _SLACK or len(set(whole.tolist())) != 1:
        return None
    zero_point = int(zero.reshape(()))
    return zero_point - int(whole[0]), np.rint(offsets.reshape(-1)) + zero_point, multiply.input[0]


def _fused(network: Network, quantise: onnx.NodeProto, contract: Preprocessing) -> tuple[int, Array, str] | None:
    """``QuantizeLinear`` with a scale and a zero point for each channel: the same."""
    scales, zeros = (network.initializers[name] for name in quantise.input[1:])
    if scales.shape != (contract.channels,) or zeros.shape != scales.shape:
        return None
    if not _are_steps(1.0 / scales.astype(np.float64), contract):
        return None
    means = np.array(contract.mean) / contract.scale
    whole = np.rint(means)
    shifts = zeros.astype(np.int64) - whole.astype(np.int64)
    if len(set(shifts.tolist())) != 1 or (np.abs(means - whole) > 0.5 - _SLACK).any():
        return None
    return int(shifts[0]), zeros.astype(np.float64), quantise.input[0]


def _are_steps(steps: Array, contract: Preprocessing) -> bool:
    wanted = np.array(contract.std) / contract.scale
    return steps.size == wanted.size and np.allclose(steps.astype(np.float64).reshape(-1), wanted, rtol=1e-5, atol=0)


def _pads(network: Network, start: str) -> tuple[int, ...] | None:
    """Of the ``Pad`` between the input and ``start``; ``None`` where something else is between them."""
    if start == network.input:
        return (0, 0, 0, 0)
    pad = network.producers.get(start)
    if pad is None or pad.op_type != "Pad" or pad.input[0] != network.input or len(pad.input) != 2:
        return None
    values = network.initializers.get(pad.input[1])
    if values is None or values.shape != (8,) or values[[0, 1, 4, 5]].any():
        return None
    return tuple(int(each) for each in values[[2, 3, 6, 7]])


def _all_pads(pads: tuple[int, ...]) -> npt.NDArray[np.int64]:
    return np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
