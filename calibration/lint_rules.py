"""What can be wrong with a quantised file whatever it is for; each function finds one thing, and says it of each place.

How bad it is, for whom and why, stands in the table of :mod:`calibration.lint_table`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx

from calibration.graph import QUANTISED, attribute
from calibration.lint_graph import HANDING_ON, MOVING, Linear, QuantisedGraph, Weight, title


class Hit(NamedTuple):
    """One place: the node's name, the tensor that is meant, and what is the matter there."""

    node: str
    tensor: str
    message: str


def bad_scales(graph: QuantisedGraph) -> Iterator[Hit]:
    """A scale that is zero, negative, infinite or no number."""
    for item in graph.distinct:
        if item.scale is None:
            continue
        values = item.scale.astype(np.float64).ravel()
        wrong = values[~(np.isfinite(values) & (values > 0))]
        if wrong.size:
            count = "" if values.size == 1 else f" ({wrong.size} of {values.size})"
            yield Hit(title(item.node), item.node.input[1], f"scale {wrong[0]:g}{count} is not a positive number")


def computed_scales(graph: QuantisedGraph) -> Iterator[Hit]:
    """A scale or zero point that is computed from the input."""
    for item in graph.linears.values():
        for name, what in zip(item.node.input[1:], ("scale", "zero point"), strict=False):
            if name not in graph.constants:
                yield Hit(title(item.node), name, f"its {what} is computed while the network runs")


def lonely(graph: QuantisedGraph) -> Iterator[Hit]:
    """Integers that are made and not read as integers, or read without having been made."""
    for item in graph.activations:
        if item.quantises:
            takers = graph.takers(item.integers)
            strange = [n.op_type for n in takers if not (n.op_type in MOVING or is_quantised(n))]
            if not takers and item.integers not in graph.outputs:
                yield Hit(title(item.node), item.integers, "nothing takes its integers")
            elif strange:
                yield Hit(title(item.node), item.integers, f"its integers go to {strange[0]}, not to DequantizeLinear")
        elif (source := _maker(graph, item.integers)) is not None and not is_quantised(source):
            yield Hit(
                title(item.node), item.integers, f"its integers come from {source.op_type}, not from QuantizeLinear"
            )


def is_quantised(node: onnx.NodeProto) -> bool:
    """Whether only quantised files have such a node, or it is one of Microsoft's, which take integers as they are."""
    return node.op_type in QUANTISED or node.domain == "com.microsoft"


def _maker(graph: QuantisedGraph, name: str) -> onnx.NodeProto | None:
    # A Concat joins channels that were padded apart, each with its own colour: where one comes from, all do.
    while (node := graph.producers.get(name)) is not None and node.op_type in (*MOVING, "Pad", "Concat"):
        name = node.input[0]
    return node


def rescaled_chains(graph: QuantisedGraph) -> Iterator[Hit]:
    """Q → DQ → Q → DQ whose second half has other numbers."""
    for item in graph.activations:
        earlier = graph.dequantized(item.reals) if item.quantises else None
        if earlier is None or earlier.integers in graph.constants or not earlier.differences(item):
            continue
        numbers = f"{_told(earlier)} and then {_told(item)}: another {_parts(earlier, item)}"
        yield Hit(title(item.node), item.reals, f"the same values are rounded twice, with {numbers}")


def _told(item: Linear) -> str:
    if item.scale is None:
        return "a scale that is not known"
    return f"{item.scale.size} scales" if item.per_channel else f"scale {item.scale.ravel()[0]:g}"


def _parts(first: Linear, second: Linear) -> str:
    return " and ".join(first.differences(second))


def mismatched_pairs(graph: QuantisedGraph) -> Iterator[Hit]:
    """A DQ with other numbers than the Q that it belongs to, inside the network."""
    yield from (hit for at_input, hit in _mismatched(graph) if not at_input)


def reinterpreted_inputs(graph: QuantisedGraph) -> Iterator[Hit]:
    """The same at the network's own input, where it is how 8-bit pixels are taken in as they are."""
    yield from (hit for at_input, hit in _mismatched(graph) if at_input)


def _mismatched(graph: QuantisedGraph) -> Iterator[tuple[bool, Hit]]:
    for item in graph.activations:
        quantize = None if item.quantises else graph.quantizes(item.integers)
        if quantize is None or not quantize.differences(item):
            continue
        made, read = f"{_told(quantize)} ({quantize.dtype})", f"{_told(item)} ({item.dtype})"
        message = f"quantised with {made}, read with {read}: another {_parts(quantize, item)}"
        yield is_input(graph, quantize.reals), Hit(title(item.node), item.integers, message)


def is_input(graph: QuantisedGraph, name: str) -> bool:
    """Whether a tensor is the network's input, as it is."""
    while (node := graph.producers.get(name)) is not None and node.op_type in HANDING_ON:
        name = node.input[0]
    return name in graph.inputs


def known_weights(graph: QuantisedGraph) -> Iterator[tuple[onnx.NodeProto, Weight]]:
    """The nodes with quantised weights, and these; weights with scales for blocks left out."""
    for node in graph.weighted:
        weight = graph.weight(node)
        if weight is not None and not attribute(weight.linear.node, "block_size", 0):
            yield node, weight


def weights_per_tensor(graph: QuantisedGraph) -> Iterator[Hit]:
    """One scale for the weights of all output channels."""
    for node, weight in known_weights(graph):
        scale = weight.linear.scale
        if scale is not None and scale.size == 1 and weight.channels > 1:
            yield Hit(title(node), weight.linear.reals, f"one scale for {weight.channels} output channels")


def weight_axes(graph: QuantisedGraph) -> Iterator[Hit]:
    """Scales of weights that do not lie along the output channels, or are not one for each."""
    for node, weight in known_weights(graph):
        if not weight.linear.per_channel or weight.linear.scale is None:
            continue
        count = weight.linear.scale.size
        if weight.axis != weight.wanted:
            message = f"{count} scales along axis {weight.axis}, expected axis {weight.wanted}"
        elif weight.channels and count != weight.channels:
            message = f"{count} scales for {weight.channels} output channels"
        else:
            continue
        yield Hit(title(node), weight.linear.reals, message)


def weights_behind_quantize(graph: QuantisedGraph) -> Iterator[Hit]:
    """Weights that the file stores as real numbers."""
    for node, weight in known_weights(graph):
        if weight.behind_quantize:
            size = "" if weight.values is None else f" ({weight.values.nbytes:,} bytes)"
            yield Hit(title(node), node.input[1], f"its weights are stored as real numbers{size}")


def per_channel_activations(graph: QuantisedGraph) -> Iterator[Hit]:
    """More than one scale for an activation, in a Q or a DQ."""
    for item in graph.distinct:
        if item.node.input[0] not in graph.constants and item.per_channel:
            yield _per_channel(item)


def per_channel_kernels(graph: QuantisedGraph) -> Iterator[Hit]:
    """The same, but for a Q at the network's input whose integers are read with one scale."""
    for item in graph.distinct:
        if item.node.input[0] in graph.constants or not item.per_channel:
            continue
        at_input = item.quantises and is_input(graph, item.reals)
        if not at_input or any(reader.per_channel for reader in graph.behind(item.integers)):
            yield _per_channel(item)


def per_channel_reads(graph: QuantisedGraph) -> Iterator[Hit]:
    """The same where activations are read: only the DQ decides how a kernel sees them."""
    yield from (_per_channel(item) for item in graph.activations if item.per_channel and not item.quantises)


def _per_channel(item: Linear) -> Hit:
    return Hit(title(item.node), item.reals, f"{_told(item)} for an activation, expected one")
