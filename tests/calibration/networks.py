"""Small residual networks with weights of their own, and parameters with which float32 arithmetic is exact.

Where scales are powers of two and biases whole steps of the accumulators, every sum of these networks fits into the 24
bits of a float32: the file, its simulation and a plain oracle then have to agree in every bit, ties included.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from calibration.graph import Network
from calibration.grids import Affine, Grid
from calibration.observers import Observer
from calibration.parameters import Parameters, biases
from calibration.placement import Placement, Target, place
from runtimes.operators import compiled
from runtimes.values import constants, inputs_of
from tests.exporter.graphs import onnx_model

Array = npt.NDArray[Any]

CHANNELS, SIZE, CLASSES = 4, 8, 5


class Net:
    """A graph in the making: each method adds a node and gives the name of what it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._random = np.random.default_rng(seed)

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, sources: str, name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, sources.split(), [name], **attributes))
        return name

    def conv(
        self, source: str, name: str, made: int, taken: int, kernel: int = 3, *, bias: bool = True, **attributes: Any
    ) -> str:
        """Padded so that the size stays; ``taken`` are the channels of one group."""
        shape = (made, taken, kernel, kernel)
        weight = self.constant(f"{name}.weight", self._random.standard_normal(shape) / math.sqrt(taken * kernel**2))
        biased = [self.constant(f"{name}.bias", self._random.standard_normal(made) / 4)] if bias else []
        attributes = {"pads": [kernel // 2] * 4, **attributes} if kernel > 1 else attributes
        return self.op("Conv", " ".join([source, weight, *biased]), name, **attributes)

    def relu(self, source: str, name: str) -> str:
        return self.op("Relu", source, name)

    def stem(self, made: int = CHANNELS) -> str:
        return self.relu(self.conv("input", "stem", made, 3), "relu")

    def gemm(self, source: str, taken: int, **attributes: Any) -> str:
        rows = attributes.get("transB", 0)
        values = self._random.standard_normal((CLASSES, taken) if rows else (taken, CLASSES)) / 2
        names = [self.constant("fc.weight", values), self.constant("fc.bias", self._random.standard_normal(CLASSES))]
        return self.op("Gemm", " ".join([source, *names]), "logits", **attributes)

    def head(self, source: str, taken: int = CHANNELS) -> Net:
        self.op("GlobalAveragePool", source, "pool")
        self.gemm(self.op("Flatten", "pool", "flat"), taken, transB=1)
        return self

    def network(self, *, opset: int = 17, rank: int = 2) -> Network:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        return Network(onnx_model(copies, self.constants, opset, ("batch", 3, SIZE, SIZE), rank), "0" * 64)


def basic() -> Net:
    """An identity block of two 3x3 convolutions."""
    net = Net()
    inner = net.relu(net.conv(net.stem(), "conv1", 4, 4), "relu1")
    net.conv(inner, "conv2", 4, 4)
    net.op("Add", "conv2 relu", "add")
    return net.head(net.relu("add", "relu2"))


def bottleneck() -> Net:
    """An identity block of 1x1, strideless 3x3, 1x1, behind a pooled stem."""
    net = Net()
    start = net.op("MaxPool", net.stem(), "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = net.relu(net.conv(start, "conv1", 4, 4, 1), "relu1")
    inner = net.relu(net.conv(inner, "conv2", 4, 4), "relu2")
    net.conv(inner, "conv3", 4, 4, 1, bias=False)
    net.op("Add", "conv3 maxpool", "add")
    return net.head(net.relu("add", "relu3"))


def downsample(*, projection_first: bool = False) -> Net:
    """Half the size and twice the channels, with a projection."""
    net = Net()
    start = net.stem()
    inner = net.relu(net.conv(start, "conv1", 8, 4, strides=[2, 2]), "relu1")
    net.conv(inner, "conv2", 8, 8)
    net.conv(start, "downsample", 8, 4, 1, strides=[2, 2])
    net.op("Add", "downsample conv2" if projection_first else "conv2 downsample", "add")
    return net.head(net.relu("add", "relu2"), 8)


def option_a() -> Net:
    """Half the size and twice the channels: every second pixel, between channels of zeros."""
    net = Net()
    start = net.stem()
    inner = net.relu(net.conv(start, "conv1", 8, 4, strides=[2, 2]), "relu1")
    net.conv(inner, "conv2", 8, 8)
    for name, values in {"starts": [0, 0], "ends": [SIZE] * 2, "axes": [2, 3], "steps": [2, 2]}.items():
        net.constant(name, values, np.int64)
    net.constant("pads", [0, 2, 0, 0, 0, 2, 0, 0], np.int64)
    net.op("Slice", "relu starts ends axes steps", "slice")
    net.op("Pad", "slice pads", "pad")
    net.op("Add", "conv2 pad", "add")
    return net.head(net.relu("add", "relu2"), 8)


def squeeze_excite() -> Net:
    """A block whose channels are weighed by a sigmoid before the addition."""
    net = Net(seed=1)
    net.conv(net.stem(), "conv1", 4, 4)
    net.op("GlobalAveragePool", "conv1", "squeezed")
    inner = net.relu(net.conv("squeezed", "fc1", 3, 4, 1), "relu1")
    net.op("Sigmoid", net.conv(inner, "fc2", 4, 3, 1), "gate")
    net.op("Mul", "conv1 gate", "mul")
    net.op("Add", "mul relu", "add")
    return net.head(net.relu("add", "relu2"))


def pre_activation() -> Net:
    """Two blocks that add before the activation."""
    net = Net()
    before = net.conv("input", "stem", 4, 3)
    for index in (1, 2):
        inner = net.relu(before, f"relu{index}")
        net.conv(inner, f"conv{index}", 4, 4)
        before = net.op("Add", f"{before} conv{index}", f"add{index}")
    return net.head(net.relu(before, "relu3"))


def grouped() -> Net:
    """A 3x3 convolution in two groups between two others, strided and padded on two sides only."""
    net = Net()
    inner = net.relu(net.conv(net.stem(), "conv1", 6, 4, 1), "relu1")
    inner = net.relu(net.conv(inner, "conv2", 8, 3, group=2, strides=[2, 2], pads=[0, 0, 1, 1]), "relu2")
    return net.head(net.relu(net.conv(inner, "conv3", 4, 8, 1), "relu3"))


def flattened(*, matmul: bool = False) -> Net:
    """A classifier on every pixel of a pooled tensor."""
    net = Net()
    net.op("AveragePool", net.stem(), "small", kernel_shape=[4, 4], strides=[4, 4])
    flat = net.op("Flatten", "small", "flat")
    if not matmul:
        net.gemm(flat, 16)
        return net
    net.constant("fc.weight", np.random.default_rng(3).standard_normal((16, CLASSES)))
    net.constant("fc.bias", np.random.default_rng(4).standard_normal(CLASSES))
    net.op("MatMul", "flat fc.weight", "product")
    net.op("Add", "product fc.bias", "logits")
    return net


NETWORKS = {
    "basic": basic,
    "bottleneck": bottleneck,
    "downsample": downsample,
    "projection first": lambda: downsample(projection_first=True),
    "option A": option_a,
    "SE": squeeze_excite,
    "pre-activation": pre_activation,
    "grouped": grouped,
    "flattened": flattened,
    "matmul": lambda: flattened(matmul=True),
}


def images(count: int = 4, seed: int = 1) -> npt.NDArray[np.float32]:
    """``[count, 3, SIZE, SIZE]``: multiples of 1/64 between −2 and 2."""
    values = np.random.default_rng(seed).integers(-128, 128, (count, 3, SIZE, SIZE))
    return (values / 64).astype(np.float32)


def session(model: onnx.ModelProto, *, optimize: bool = False, save: str = "") -> onnxruntime.InferenceSession:
    """ONNX Runtime; node by node as the file is written, unless it may optimise."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.optimized_model_filepath = save
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, batch: Array, *, optimize: bool = False) -> Array:
    """The first output."""
    output: Array = session(model, optimize=optimize).run(None, {"input": batch})[0]
    return output


def values_of(network: Network, batch: Array, names: Any) -> dict[str, Array]:
    """Tensors of the float network."""
    model = onnx.ModelProto.FromString(network.model.SerializeToString())
    inside = [name for name in names if name != network.input]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inside)
    found = session(model).run(None, {network.input: batch}) if inside else []
    return {network.input: batch, **dict(zip(inside, found, strict=True))}


def reference(network: Network, batch: Array, name: str = "logits") -> npt.NDArray[np.float64]:
    """A tensor of the float network, computed in float64."""
    wide = {
        each: value.double() if value.is_floating_point() else value for each, value in constants(network.model).items()
    }
    values: dict[str, torch.Tensor] = {**wide, network.input: torch.from_numpy(batch).double()}
    for node in network.nodes:
        if node.op_type != "Constant":
            values[node.output[0]] = compiled(node)(inputs_of(node, values))
    result: npt.NDArray[np.float64] = values[name].numpy()
    return result


def observers_of(network: Network, batch: Array) -> dict[str, Observer]:
    found = {}
    for name, values in values_of(network, batch, network.observed).items():
        found[name] = Observer()
        found[name].update(np.asarray(values, np.float32))
    return found


def _power(value: float) -> float:
    return 2.0 ** math.ceil(math.log2(value))


def _dyadic(values: Array, grid: Grid) -> Affine:
    """A scale that is a power of two, and clips the largest values."""
    low, high = min(0.0, float(values.min()) * 0.75), float(values.max()) * 0.75
    if grid.symmetric:
        return Affine(_power(max(high / (grid.high - grid.origin), -low / 128)), grid.origin, grid)
    scale = _power((high - low) / 255)
    return Affine(scale, grid.low + round(-low / scale), grid)


def exact_parameters(network: Network, placement: Placement, batch: Array) -> Parameters:
    """Parameters for ``placement`` with which nothing is rounded but by QuantizeLinear."""
    values = values_of(network, batch, {site.source for site in placement.sites.values()})
    activations = {name: _dyadic(values[site.source], site.grid) for name, site in placement.sites.items()}
    weights, scales, found = {}, {}, biases(network, placement)
    for each in placement.weights.values():
        weights[each.name] = np.array(network.initializers[each.name], np.float32)
        others = tuple(dim for dim in range(weights[each.name].ndim) if dim != each.axis)
        peaks = np.abs(weights[each.name]).max(axis=others)
        # Some are clipped: the largest weight is 127 steps, or less than 190.
        scales[each.name] = np.array([_power(peak / 190) for peak in peaks], np.float32)
        data = activations.get(each.data) or activations[network.source(each.data)]
        steps = np.float32(data.scale) * scales[each.name]
        found[each.node] = (np.rint(found[each.node] / steps) * steps).astype(np.float32)
    return Parameters(activations, weights, scales, found)


def exact(
    net: Net, goal: Target, keep: frozenset[str] = frozenset(), **options: Any
) -> tuple[Network, Placement, Parameters]:
    """A network, its placement and exact parameters."""
    network = net.network(**options)
    placement = place(network, goal, keep)
    return network, placement, exact_parameters(network, placement, images())


def plain(network: Network, placement: Placement, parameters: Parameters) -> onnx.ModelProto:
    """The oracle: float weights that were rounded here, Q/DQ behind every site, and nothing clever.

    A shifted site becomes UINT8 with the zero point 0, which is what it stands for.
    """
    taking = {"Conv", "Gemm", "MatMul", "Add", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool"}
    taking |= {"Flatten", "Slice", "Pad", "Identity"}
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = dict(network.initializers)
    for each in placement.weights.values():
        shape = [-1 if dim == each.axis else 1 for dim in range(parameters.weights[each.name].ndim)]
        scale = parameters.scales[each.name].reshape(shape)
        constants[each.name] = parameters.integers(each.name, each.axis, placement.target) * scale
        constants[f"{each.node}|bias"] = parameters.biases[each.node]

    def quantised(name: str) -> None:
        if name in placement.sites:
            found = parameters.activations[name]
            shifted = found.grid.symmetric and found.zero_point
            kind = np.uint8 if shifted or not found.grid.signed else np.int8
            constants[f"{name}|scale"] = np.array(found.scale, np.float32)
            constants[f"{name}|zero"] = np.array(0 if shifted else found.zero_point, kind)
            for operator, source, made in (("Quantize", name, f"{name}|q"), ("Dequantize", f"{name}|q", f"{name}|dq")):
                nodes.append(helper.make_node(f"{operator}Linear", [source, f"{name}|scale", f"{name}|zero"], [made]))

    quantised(network.input)
    for node in network.nodes:
        new = onnx.NodeProto.FromString(node.SerializeToString())
        for position, name in enumerate(node.input):
            if name in placement.sites and node.op_type in taking:
                new.input[position] = f"{name}|dq"
        if node.output[0] in placement.weights and node.op_type != "MatMul":
            del new.input[2:]
            new.input.append(f"{node.output[0]}|bias")
        nodes.append(new)
        quantised(node.output[0])
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return model
