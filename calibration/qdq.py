"""Write a quantised network as an ONNX file with QuantizeLinear and DequantizeLinear.

Weights are stored as INT8 behind one ``DequantizeLinear``; each 8-bit activation is a pair behind the node that makes
it. Two things are more:

*Offsets.* Where a target has no zero points, values that cannot be negative are stored less ``c = 128 * scale``, so
that [-128, 127] holds them all. Saturation at -128 is then the ReLU, and every constant goes into a bias::

    stored = real - offset
    Conv     bias + offset_in * sum(W)        padding becomes an explicit Pad by -offset_in, which is the real zero
    Add      offset_out = offset_1 + offset_2
    pools, reshapes pass an offset on

A constant that has to be made good is added to the bias of the convolution before, or, where there is none, by an Add.

*ReLU.* A quantisation whose lowest integer stands for 0 clips what is negative anyway, so the Relu before it goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from calibration.graph import Network, attribute, reached
from calibration.grids import Affine
from calibration.lattice import PIXELS
from calibration.parameters import Parameters, along, with_room_for_biases
from calibration.placement import Placement, biased, passes_offset, takes_bias
from runtimes.errors import GraphError

# A mean this far from a whole pixel is still apart from a tie by more than float32 rounds.
_NEAREST_TIE = 0.49


def write(network: Network, placement: Placement, parameters: Parameters) -> onnx.ModelProto:
    """The quantised model.

    Args:
        network: The float network; unchanged.
        placement: What becomes 8 bits.
        parameters: Of every site and weight in it.

    Returns:
        A model that onnx's checker accepts; the same arguments give the same bytes. Metadata are the float model's.
    """
    model = _Writer(network, placement, with_room_for_biases(parameters, placement)).model()
    onnx.checker.check_model(model)
    return model


class _Writer:
    """A graph in the making.

    ``real = stored + offset`` for every float tensor (``offsets``) and for what its DequantizeLinear gives
    (``offsets_8bit``); 0 where there is no entry.
    """

    def __init__(self, network: Network, placement: Placement, parameters: Parameters) -> None:
        self._network, self._placement, self._parameters = network, placement, parameters
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, npt.NDArray[Any]] = {}
        self._offsets: dict[str, float] = {}
        self._offsets_8bit: dict[str, float] = {}
        self._stored: dict[str, str] = {}  # name under which a float tensor of the network is in the new graph
        self._added: dict[str, float] = {}  # to the bias of a node, by its output
        self._inputs: dict[str, tuple[str, float]] = {}  # what a node with weights reads, by its output

    def model(self) -> onnx.ModelProto:
        self._site(self._network.input)
        for node in self._network.nodes:
            if node.op_type == "Constant":
                self._nodes.append(node)
            elif node.op_type == "Relu" and self._is_clipped_anyway(node):
                self._stored[node.output[0]] = self._name(node.input[0])
                self._offsets[node.output[0]] = self._offsets.get(node.input[0], 0.0)
                self._site(node.output[0], before=node.input[0])
            else:
                self._emit(node)
                self._site(node.output[0])
        self._finish_biases()
        return self._assembled()

    def _is_clipped_anyway(self, relu: onnx.NodeProto) -> bool:
        name = relu.output[0]
        quantisation = self._parameters.activations.get(name)
        if quantisation is None or quantisation.zero_point != quantisation.grid.low:
            return False
        inside = name not in self._network.outputs and self._network.only_feeds_relu(relu.input[0])
        return inside and all(
            self._placement.reads_integers(node, place)
            for node in self._network.consumers.get(name, ())
            for place, each in enumerate(node.input)
            if each == name
        )

    def _emit(self, node: onnx.NodeProto) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        sources = [self._read(node, place) for place in range(len(node.input))]
        offsets = [offset for _, offset in sources]
        passes = self._passes(node)
        if node.output[0] in self._placement.weights and node.op_type != "MatMul":
            sources[0] = (self._padded(node, new, *sources[0]), 0.0)
            self._weights(node, new, offsets[0])
        elif not passes:
            sources = [(self._real(node, place, *source), 0.0) for place, source in enumerate(sources)]
            offsets = [0.0] * len(sources)
            if node.output[0] in self._placement.weights:
                self._weights(node, new, 0.0)
        for place, (name, _) in enumerate(sources):
            if place == 0 or node.output[0] not in self._placement.weights:
                new.input[place] = name
        if passes and any(offsets):
            self._offsets[node.output[0]] = offsets[0] + (offsets[1] if node.op_type == "Add" else 0.0)
            if node.op_type == "Pad":
                self._fill(new, offsets[0])
        self._nodes.append(new)
        if self._placement.target.integer_bias and self._stays_float(node):
            # ONNX Runtime would quantise the weights by itself, with one scale for all channels, where it sees
            # DequantizeLinear -> Conv -> QuantizeLinear. An activation that does nothing fuses, and hides the Conv.
            new.output[0] = f"{node.output[0]}.float"
            name = f"{node.output[0]}.unfused"
            self._nodes.append(helper.make_node("LeakyRelu", [new.output[0]], [node.output[0]], name, alpha=1.0))

    def _stays_float(self, node: onnx.NodeProto) -> bool:
        return node.output[0] in self._placement.left and node.output[0] not in self._network.outputs

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Whether offsets may go through a node; not to where the network's user sees them."""
        if node.output[0] in self._network.outputs:
            return False
        if node.op_type == "Add":
            return all(map(self._network.is_activation, node.input))
        return passes_offset(self._network, node)

    def _real(self, node: onnx.NodeProto, place: int, name: str, offset: float) -> str:
        """Name of a tensor without offset: by a bias before, or by an addition."""
        tensor = node.input[place]
        if not offset or tensor in self._placement.sites:
            return self._shifted(name, offset)
        return self._made_good(tensor, name, 0.0)

    def _read(self, node: onnx.NodeProto, place: int) -> tuple[str, float]:
        name = node.input[place]
        if name and self._placement.reads_integers(node, place):
            return f"{name}.dequantized", self._offsets_8bit.get(name, 0.0)
        return self._name(name), self._offsets.get(name, 0.0)

    def _name(self, name: str) -> str:
        return self._stored.get(name, name)

    def _fill(self, new: onnx.NodeProto, offset: float) -> None:
        """Let a ``Pad`` with zeros fill in what stands for zero; other modes ignore it."""
        value = self._constant(f"{new.output[0]}.zero", np.array(-offset, np.float32))
        if len(new.input) > 2:
            new.input[2] = value
        else:
            new.input.append(value)

    def _padded(self, node: onnx.NodeProto, new: onnx.NodeProto, name: str, offset: float) -> str:
        """Data for a convolution, padded here where a real zero is not stored as 0."""
        pads = list(attribute(node, "pads", ()))
        if not offset or node.op_type != "Conv" or not any(pads):
            return name
        half = len(pads) // 2
        zero = self._constant(f"{node.output[0]}.zero", np.array(-offset, np.float32))
        around = self._constant(f"{node.output[0]}.pads", np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64))
        padded = f"{node.output[0]}.padded"
        self._nodes.append(helper.make_node("Pad", [name, around, zero], [padded], padded))
        kept = [item for item in new.attribute if item.name != "pads"]
        del new.attribute[:]
        new.attribute.extend(kept)
        return padded

    def _weights(self, node: onnx.NodeProto, new: onnx.NodeProto, offset: float) -> None:
        each = self._placement.weights[node.output[0]]
        target, parameters = self._placement.target, self._parameters
        integers = parameters.integers(each.name, each.axis, target)
        scales = parameters.scales[each.name]
        name = f"{each.name}.dequantized"
        if f"{each.name}.quantized" not in self._made:  # two nodes can share one weight
            inputs = [
                self._constant(f"{each.name}.quantized", integers),
                self._constant(f"{each.name}.scale", scales),
                self._constant(f"{each.name}.zero_point", np.zeros(len(scales), np.int8)),
            ]
            self._nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name, axis=each.axis))
        new.input[1] = name
        if node.op_type == "MatMul":
            return
        if offset:
            real = integers * along(scales.astype(np.float64), integers.ndim, each.axis)
            sums = real.sum(axis=tuple(dim for dim in range(real.ndim) if dim != each.axis))
            # By channel, so it is kept apart from the scalars of `_added`.
            self._made[f"{node.output[0]}.bias"] = (offset * sums).astype(np.float64)
        del new.input[2:]
        new.input.append(self._bias_name(node.output[0]))
        self._inputs[node.output[0]] = (node.input[0], offset)

    def _bias_name(self, output: str) -> str:
        return f"{output}.bias.dequantized" if self._placement.target.integer_bias else f"{output}.bias.float"

    def _site(self, name: str, before: str = "") -> None:
        """Put Q and DQ behind a tensor of the network, if it is to have them; ``before``: it is a Relu's, left out."""
        if name not in self._placement.sites:
            return
        quantisation = self._parameters.activations[name]
        folded = self._placement.target.name == "tensorrt" and quantisation.zero_point != 0
        wanted = -quantisation.zero_point * quantisation.scale if folded else 0.0
        stored = self._made_good(before or name, name, wanted)
        zero = 0 if folded else quantisation.zero_point
        inputs = self._scale_and_zero(name, quantisation, zero)
        self._nodes.append(self._pixels(name, zero) or _quantiser(name, [stored, *inputs]))
        self._nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}.quantized", *inputs], [f"{name}.dequantized"], f"{name}.dequantized"
            )
        )
        self._offsets_8bit[name] = wanted

    def _pixels(self, name: str, zero: int) -> onnx.NodeProto | None:
        """The prologue of :mod:`calibration.lattice` as one QuantizeLinear, with a scale for each channel.

        ONNX Runtime takes it, and saves two passes over the input; what it gives is the same pixels, of one scale.
        Not where a mean lies half-way between two pixels: which way a tie goes would differ from pixel to pixel.
        """
        if name != PIXELS or not self._placement.target.integer_bias:
            return None
        add = self._network.producers[PIXELS]
        multiply = self._network.producers[add.input[0]]
        steps, offsets = (self._network.initializers[node.input[1]].reshape(-1) for node in (multiply, add))
        whole = np.rint(offsets)
        if (np.abs(offsets - whole) > _NEAREST_TIE).any():
            return None
        quantisation = self._parameters.activations[name]
        kind = np.int8 if quantisation.grid.signed else np.uint8
        inputs = [
            self._name(multiply.input[0]),
            self._constant("input.steps.scale", (1.0 / steps.astype(np.float64)).astype(np.float32)),
            self._constant("input.steps.zero_point", (whole + zero).astype(kind)),
        ]
        return _quantiser(name, inputs, axis=1)

    def _made_good(self, tensor: str, name: str, wanted: float) -> str:
        """Name of a tensor that holds ``real - wanted``: the same one if a bias before can see to it."""
        missing = self._offsets.get(tensor, 0.0) - wanted
        if not missing:
            return self._name(tensor)
        if biased(self._network, tensor, self._placement.sites):
            self._absorb(tensor, missing)
            self._offsets[tensor] = wanted
            return self._name(tensor)
        return self._shifted(self._name(tensor), missing, f"{name}.shifted")

    def _absorb(self, tensor: str, constant: float) -> None:
        node = self._network.producers[tensor]
        while node.op_type == "Add":
            side = next(each for each in node.input if takes_bias(self._network, each, self._placement.sites))
            node = self._network.producers[side]
        self._added[node.output[0]] = self._added.get(node.output[0], 0.0) + constant

    def _shifted(self, name: str, constant: float, result: str = "") -> str:
        if not constant:
            return name
        result = result or f"{name}.restored"
        if result not in (each.output[0] for each in self._nodes):
            value = self._constant(f"{result}.constant", np.array(constant, np.float32))
            self._nodes.append(helper.make_node("Add", [name, value], [result], result))
        return result

    def _scale_and_zero(self, name: str, quantisation: Affine, zero: int) -> Sequence[str]:
        kind = np.int8 if quantisation.grid.signed else np.uint8
        return (
            self._constant(f"{name}.scale", np.array(quantisation.scale, np.float32)),
            self._constant(f"{name}.zero_point", np.array(zero, kind)),
        )

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self._made[name] = value
        return name

    def _finish_biases(self) -> None:
        """Biases are known when everything behind them is: only now has each constant been added to one."""
        ready: list[onnx.NodeProto] = []
        for node in self._nodes:
            name = node.output[0]
            if name in self._inputs:
                by_channel = self._made.pop(f"{name}.bias", np.zeros(1))
                values = self._parameters.biases[name] + by_channel + self._added.get(name, 0.0)
                ready.extend(self._bias(name, np.asarray(values, np.float64)))
            elif name in self._added:
                self._float_bias(node)
            ready.append(node)
        self._nodes = ready

    def _bias(self, name: str, values: npt.NDArray[np.float64]) -> list[onnx.NodeProto]:
        if not self._placement.target.integer_bias:
            self._constant(f"{name}.bias.float", values.astype(np.float32))
            return []
        data, _ = self._inputs[name]
        scales = self._parameters.scales[self._placement.weights[name].name]
        # The scale of the accumulators, in float32 as the runtime computes it.
        steps = np.float32(self._parameters.activations[data].scale) * scales
        integers = np.clip(np.rint(values / steps), -(2**31), 2**31 - 1).astype(np.int32)
        inputs = [
            self._constant(f"{name}.bias.quantized", integers),
            self._constant(f"{name}.bias.scale", steps),
            self._constant(f"{name}.bias.zero_point", np.zeros(len(steps), np.int32)),
        ]
        result = f"{name}.bias.dequantized"
        return [helper.make_node("DequantizeLinear", inputs, [result], result, axis=0)]

    def _float_bias(self, node: onnx.NodeProto) -> None:
        """Add a constant to the bias of a convolution that stays in float."""
        given = node.input[2] if len(node.input) > 2 else ""
        channels = self._network.initializers[node.input[1]].shape[0]
        values = self._network.initializers[given] if given else np.zeros(channels)
        name = self._constant(f"{node.output[0]}.bias.float", (values + self._added[node.output[0]]).astype(np.float32))
        del node.input[2:]
        node.input.append(name)

    def _assembled(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._network.model)
        graph = model.graph
        nodes = reached(self._nodes, self._network.outputs)
        used = {name for node in nodes for name in node.input} | self._network.outputs
        kept = [item for item in graph.initializer if item.name in used]
        # Old files list initializers as inputs: one that is gone would have to be given by the user.
        given = [item for item in graph.input if item.name == self._network.input]
        del graph.node[:], graph.initializer[:], graph.value_info[:], graph.input[:]
        graph.input.extend(given)
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
        made = sorted(name for name in self._made if name in used)
        graph.initializer.extend(numpy_helper.from_array(self._made[name], name) for name in made)
        _require_single_names(graph)
        return model


def _require_single_names(graph: onnx.GraphProto) -> None:
    names = [name for node in graph.node for name in node.output] + [item.name for item in graph.initializer]
    twice = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if twice:
        raise GraphError(
            f"the model has a tensor {twice[0]} already, which is what one of the Q/DQ is called: rename it"
        )


def _quantiser(name: str, inputs: Sequence[str], axis: int | None = None) -> onnx.NodeProto:
    # make_node leaves out attributes that are None.
    return helper.make_node("QuantizeLinear", inputs, [f"{name}.quantized"], f"{name}.quantized", axis=axis)
