"""Cross-layer equalisation: give the channels of a tensor like ranges, without changing what the network computes.

ReLU, pools and additions are positively homogeneous, so a channel may be multiplied by ``e > 0`` where it is made and
divided by ``e`` wherever it is taken (M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", 2019, section 4.1)::

    W[o, i] -> W[o, i] * e[o] / e[i]          b[o] -> b[o] * e[o]

The paper pairs two convolutions. Here channels that must share a factor are found through the whole graph, one by
one: along a residual stage all blocks add into the same channels, and an option A shortcut ties channel ``c`` of one
stage to channel ``c + offset`` of the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from calibration.graph import WEIGHTED, Network, attribute, with_shapes
from calibration.observers import Observer

Float64 = npt.NDArray[np.float64]

# Operators that give e * y for e * x, channel by channel.
_HOMOGENEOUS: Final = frozenset(
    {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout"}
)
# A channel that is hardly ever there is not blown up without end: its weights would eat the others' precision.
_LARGEST_FACTOR: Final = 32.0

_Channel = tuple[str, int]
_FIXED: Final[_Channel] = ("", 0)


class _Classes:
    """Disjoint sets of channels (union-find with path halving)."""

    def __init__(self) -> None:
        self._parent: dict[_Channel, _Channel] = {}

    def find(self, item: _Channel) -> _Channel:
        parent = self._parent
        parent.setdefault(item, item)
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, one: _Channel, other: _Channel) -> None:
        self._parent[self.find(one)] = self.find(other)


def equalised(network: Network, observers: Mapping[str, Observer], strength: float) -> tuple[Network, int]:
    """The same function with the ranges of channels evened out.

    Args:
        network: The float network; unchanged.
        observers: Largest magnitude of each channel of its tensors; tensors that are not in it do not matter.
        strength: 1 gives all channels of a tensor one magnitude, 0 changes nothing.

    Returns:
        The network and the number of channels that got a factor other than 1.
    """
    channels = _channel_counts(network)
    classes = _tied(network, channels)
    factors = _factors(classes, channels, observers, strength)
    if not factors:
        return network, 0
    changed: dict[str, Float64] = {}
    for node in network.nodes:
        if _is_free(network, node, channels):
            taken = _of(classes, factors, node.input[0], channels[node.input[0]])
            made = _of(classes, factors, node.output[0], channels[node.output[0]])
            if (taken != 1.0).any() or (made != 1.0).any():
                changed.update(_scaled(network, node, taken, made))
    return _with_initializers(network, changed), len(factors)


def _channel_counts(network: Network) -> dict[str, int]:
    """Size of the second dimension of every tensor where it is known, and where the channels are there."""
    graph = with_shapes(network.model, data_prop=True)
    products = [node for node in network.nodes if node.op_type == "MatMul"]
    channels_last = {name for node in products for name in (node.input[0], node.output[0])}
    return {
        item.name: item.type.tensor_type.shape.dim[1].dim_value
        for item in (*graph.input, *graph.value_info, *graph.output)
        if (rank := len(item.type.tensor_type.shape.dim)) == 2 or (rank > 2 and item.name not in channels_last)
    }


def _tied(network: Network, channels: Mapping[str, int]) -> _Classes:
    classes = _Classes()
    for name in (network.input, *network.outputs):
        _fix(classes, name, channels)
    for node in network.nodes:
        if not network.is_activation(node.output[0]):
            continue
        if not (_is_free(network, node, channels) or _tie(classes, network, node, channels)):
            for name in filter(network.is_activation, (*node.input, *node.output)):
                _fix(classes, name, channels)
    return classes


def _is_free(network: Network, node: onnx.NodeProto, channels: Mapping[str, int]) -> bool:
    """Whether a node has weights of its own, which can take any factors of its input's and its output's channels."""
    if node.op_type not in WEIGHTED or not network.is_activation(node.input[0]) or attribute(node, "transA", 0):
        return False
    stored = [name for name in node.input[1:] if name]
    if any(name not in network.initializers or len(network.consumers[name]) > 1 for name in stored):
        return False
    weight = network.initializers[node.input[1]]
    if node.op_type == "Conv":
        sizes = weight.shape[1] * attribute(node, "group", 1), weight.shape[0]
    else:
        sizes = weight.shape[::-1] if attribute(node, "transB", 0) else weight.shape
    return (channels.get(node.input[0]), channels.get(node.output[0])) == tuple(sizes)


def _fix(classes: _Classes, name: str, channels: Mapping[str, int]) -> None:
    for channel in range(channels.get(name, 0)):
        classes.join((name, channel), _FIXED)


def _tie(classes: _Classes, network: Network, node: onnx.NodeProto, channels: Mapping[str, int]) -> bool:
    """Join the channels that an operator carries from its input to its output; False where it is not known to."""
    first, last = node.input[0], node.output[0]
    before, after = channels.get(first, 0), channels.get(last, 0)
    if not before or not after:
        return False
    if node.op_type == "Add":
        alike = all(network.is_activation(name) and channels.get(name) == after for name in node.input)
        for channel in range(after if alike else 0):
            classes.join((first, channel), (last, channel))
            classes.join((node.input[1], channel), (last, channel))
        return alike
    carried = _carried(network, node, before, after)
    if carried is None:
        return False
    offset, repeat = carried
    for channel in range(before):
        for copy in range(repeat):
            classes.join((first, channel), (last, offset + channel * repeat + copy))
    return True


def _carried(network: Network, node: onnx.NodeProto, before: int, after: int) -> tuple[int, int] | None:
    """Where channel 0 of an operator's input is in its output, and how often in a row each channel is there."""
    if node.op_type == "Pad":
        place = _padding(network, node)
        return None if place is None else (place, 1)
    if node.op_type == "Flatten":
        return (0, after // before) if attribute(node, "axis", 1) == 1 and after % before == 0 else None
    if node.op_type == "Slice":
        axes = network.initializers.get(node.input[3]) if len(node.input) > 3 else None
        return (0, 1) if before == after and axes is not None and set(axes.tolist()) <= {2, 3, -1, -2} else None
    return (0, 1) if node.op_type in _HOMOGENEOUS else None


def _padding(network: Network, node: onnx.NodeProto) -> int | None:
    """Channels of zeros that a ``Pad`` puts in front; ``None`` where it is of another kind."""
    pads = network.initializers.get(node.input[1]) if len(node.input) > 1 else None
    if pads is None or len(pads) != 8 or min(pads) < 0 or network.source(node.output[0]) == node.output[0]:
        return None
    if (len(node.input) > 3 and node.input[3]) or attribute(node, "mode", b"constant") != b"constant":
        return None  # pads of some axes, or copies of other channels
    return int(pads[1])


def _factors(
    classes: _Classes, channels: Mapping[str, int], observers: Mapping[str, Observer], strength: float
) -> dict[_Channel, float]:
    peaks: dict[_Channel, float] = {}
    fixed = classes.find(_FIXED)
    for name, observer in observers.items():
        if len(observer.channel_high) != channels.get(name):
            continue
        for channel, peak in enumerate(np.maximum(observer.channel_high, -observer.channel_low).tolist()):
            root = classes.find((name, channel))
            if root != fixed:
                peaks[root] = max(peaks.get(root, 0.0), peak)
    alive = [peak for peak in peaks.values() if peak > 0]
    if not alive:
        return {}
    middle = float(np.median(alive))
    found = {
        root: float(np.clip(middle / peak, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR) ** strength)
        for root, peak in peaks.items()
        if peak > 0
    }
    return {root: factor for root, factor in found.items() if factor != 1.0}


def _of(classes: _Classes, factors: Mapping[_Channel, float], name: str, count: int) -> Float64:
    return np.array([factors.get(classes.find((name, channel)), 1.0) for channel in range(count)])


def _scaled(network: Network, node: onnx.NodeProto, taken: Float64, made: Float64) -> dict[str, Float64]:
    """The weights and the bias of a node for factors of its input ``[I]`` and its output ``[O]``."""
    weight = network.initializers[node.input[1]].astype(np.float64)
    found = {}
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        rows = taken.reshape(groups, -1).repeat(len(weight) // groups, axis=0)  # [I] -> [g,I/g] -> [O,I/g]
        factors = made[:, None] / rows
        found[node.input[1]] = weight * factors.reshape(*factors.shape, *[1] * (weight.ndim - 2))
    else:
        rows_first = node.op_type == "Gemm" and attribute(node, "transB", 0)
        factors = made[:, None] / taken[None, :] if rows_first else made[None, :] / taken[:, None]
        found[node.input[1]] = weight * factors
    if len(node.input) > 2 and node.input[2] in network.initializers:
        found[node.input[2]] = network.initializers[node.input[2]].astype(np.float64) * made
    return found


def _with_initializers(network: Network, changed: Mapping[str, Float64]) -> Network:
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    stored = {item.name for item in model.graph.initializer}
    for item in model.graph.initializer:
        if item.name in changed:
            item.CopyFrom(numpy_helper.from_array(changed[item.name].astype(np.float32), item.name))
    for node in model.graph.node:  # constants that are nodes
        if node.op_type == "Constant" and node.output[0] in changed and node.output[0] not in stored:
            value = numpy_helper.from_array(changed[node.output[0]].astype(np.float32))
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", value))
    return Network(model, network.sha256)
