"""Quantise the input without loss: an image has 256 levels already, and the contract says where they lie.

A preprocessed channel holds ``x = (p * scale - mean) / std`` for whole ``p`` from 0 to 255. A range chosen from the
values puts other levels over them, and each pixel is rounded a second time. Here the network gets a prologue instead,
which gives the pixels back::

    input ── Pad 0 ──> x ── Mul std/scale, Add mean/scale - shift ──> p - shift ──> convolution of w * scale/std

Zeros around the image go in before, because they are no whole pixel, and not the same one in each channel. In the
float network nothing changes. The prologue costs one pass over three channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from calibration.graph import Network, attribute, input_size
from calibration.grids import S8, Affine, affine
from calibration.observers import Observer
from calibration.placement import Target
from calibration.preprocess import Preprocessing

Array = npt.NDArray[Any]

#: Name of the tensor that holds the pixels.
PIXELS: Final = "input.pixels"
_LEVELS: Final = 256
# Observed values that leave the range of 8-bit pixels by more than rounding came from arrays of the user's own.
_SLACK: Final = 1e-3


@dataclass(frozen=True)
class Lattice:
    """A network that computes the pixels of its input, or why there is none.

    Attributes:
        network: The network with the prologue, or as it was.
        quantisation: Of the tensor :data:`PIXELS`; ``None`` where there is no prologue.
        reason: Why there is none; else empty.
    """

    network: Network
    quantisation: Affine | None
    reason: str = ""


def on_lattice(network: Network, contract: Preprocessing, goal: Target, seen: Observer) -> Lattice:
    """Give a network the prologue, where its input is pixels and goes into convolutions only.

    Args:
        network: The float network; unchanged.
        contract: How pixels became its input.
        goal: Decides by which integers the pixels are held.
        seen: What the input's values were.
    """
    reason = _obstacle(network, contract, seen)
    if reason:
        return Lattice(network, None, reason)
    shift = float(_LEVELS // 2) if goal.signed == S8 and goal.positive == S8 else 0.0
    quantisation = Affine(1.0, 0, S8) if shift else affine(0.0, _LEVELS - 1.0, goal.positive)
    # float64 here, float32 once: what the prologue gives is then within 1e-5 of a whole number.
    steps = np.array(contract.std, np.float64) / contract.scale
    zeros = np.array(contract.mean, np.float64) / contract.scale
    return Lattice(_rewritten(network, steps, zeros - shift), quantisation)


def _obstacle(network: Network, contract: Preprocessing, seen: Observer) -> str:
    if contract.color == "raw" or input_size(network)[1] != len(contract.mean):
        return "the input is arrays, not pixels, or has other channels than the contract"
    takers = network.consumers.get(network.input, ())
    if not takers or any(node.op_type != "Conv" for node in takers):
        return "the input does not go straight into convolutions"
    for node in takers:
        if attribute(node, "group", 1) != 1 or attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
            return f"{node.output[0]} has groups, or padding that depends on the image"
        if any(name and name not in network.initializers for name in node.input[1:]):
            return f"{node.output[0]} has weights or a bias that are computed"
    if len({tuple(attribute(node, "pads", ())) for node in takers}) > 1:
        return "the convolutions that take the input pad it in different ways"
    return "" if _are_pixels(contract, seen) else "the calibration images hold values that no 8-bit pixel has"


def _are_pixels(contract: Preprocessing, seen: Observer) -> bool:
    ends = np.array([[0.0], [_LEVELS - 1.0]]) * contract.scale
    low, high = (ends - np.array(contract.mean)) / np.array(contract.std)  # [2,1] - [C] -> [2,C]
    return bool((seen.channel_low >= low - _SLACK).all() and (seen.channel_high <= high + _SLACK).all())


def _rewritten(network: Network, steps: Array, offsets: Array) -> Network:
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    graph = model.graph
    taken = {node.output[0] for node in network.consumers[network.input]}
    pads = list(attribute(network.consumers[network.input][0], "pads", ()))
    constants: dict[str, Array] = {}
    prologue, name = [], network.input
    if any(pads):
        constants["input.pads"] = np.array([0, 0, *pads[: len(pads) // 2], 0, 0, *pads[len(pads) // 2 :]], np.int64)
        prologue.append(helper.make_node("Pad", [name, "input.pads"], ["input.padded"], "input.padded"))
        name = "input.padded"
    constants["input.steps"] = steps.astype(np.float32).reshape(1, -1, 1, 1)
    constants["input.offsets"] = offsets.astype(np.float32).reshape(1, -1, 1, 1)
    prologue.append(helper.make_node("Mul", [name, "input.steps"], ["input.scaled"], "input.scaled"))
    prologue.append(helper.make_node("Add", ["input.scaled", "input.offsets"], [PIXELS], PIXELS))
    for node in graph.node:
        if node.output[0] in taken:
            constants.update(_taker(network, node, steps, offsets))
    nodes = [*prologue, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    del graph.value_info[:]
    return Network(model, network.sha256)


def _taker(network: Network, node: onnx.NodeProto, steps: Array, offsets: Array) -> dict[str, Array]:
    """Change a convolution so that it takes pixels; its new constants."""
    kernel = network.initializers[node.input[1]].astype(np.float64) / steps.reshape(1, -1, 1, 1)
    has_bias = len(node.input) > 2 and node.input[2]
    bias = network.initializers[node.input[2]].astype(np.float64) if has_bias else np.zeros(len(kernel))
    bias = bias - np.einsum("oihw,i->o", kernel, offsets)
    names = [f"{node.output[0]}.pixels.weight", f"{node.output[0]}.pixels.bias"]
    del node.input[:]
    node.input.extend([PIXELS, *names])
    kept = [item for item in node.attribute if item.name != "pads"]
    del node.attribute[:]
    node.attribute.extend(kept)
    return {names[0]: kernel.astype(np.float32), names[1]: bias.astype(np.float32)}
