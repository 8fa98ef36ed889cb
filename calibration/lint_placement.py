"""Where Q and DQ stand in a residual network, for engines that fuse by themselves: TensorRT and OpenVINO.

The placement is NVIDIA's: the TensorRT developer guide, "Q/DQ Layer-Placement Recommendations".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx

from calibration.graph import attribute
from calibration.lint_graph import AVERAGING, HANDING_ON, MOVING, WEIGHTED, Linear, QuantisedGraph, title
from calibration.lint_rules import Hit, is_input, is_quantised, known_weights

# Operators that TensorRT moves Q and DQ across; a padding is part of the convolution, or a kernel on integers.
_TENSORRT_MOVES = MOVING | {"Pad"}
# What OpenVINO's low-precision passes run on integers (measured, and its documentation's list).
_OPENVINO_MOVES = _TENSORRT_MOVES | {"Relu", "AveragePool", "GlobalAveragePool"}
_TENSORRT_TYPES = frozenset({"", "int8", "uint8", "int4"})
# opset -> the first TensorRT that reads it, and a JetPack with one
_READERS = (
    (17, "8.4", "JetPack 5"), (19, "9.0", ""), (20, "10.0", "JetPack 6.1"), (22, "10.9", "JetPack 7.1"),
    (24, "10.15", "JetPack 7.2"), (25, "11.0", "a JetPack later than 7.2"),
)  # fmt: skip
_OLDEST_READ, _NEWEST_READ = _READERS[0][0], _READERS[-1][0]
_NARROW, _STEP = 16, 8  # channels
_IMAGE = 4  # channels of an image, at most


def asymmetric(graph: QuantisedGraph) -> Iterator[Hit]:
    """A signed type with a zero point other than 0."""
    for item in graph.distinct:
        if item.dtype not in ("uint8", "int32") and item.zeros.any():
            first = item.zeros[item.zeros != 0][0]
            yield Hit(title(item.node), item.reals, f"zero point {first} of {item.dtype}")


def unsigned(graph: QuantisedGraph) -> Iterator[Hit]:
    """uint8, said by a zero point or by the network's input."""
    for item in graph.distinct:
        made_here = item.quantises or graph.quantizes(item.integers) is not None
        if item.dtype == "uint8" and (item.has_zero or not made_here):
            yield Hit(title(item.node), item.reals, f"uint8, zero point {item.zeros[0]}")


def zero_left_out(graph: QuantisedGraph) -> Iterator[Hit]:
    """A Q without zero point, which ONNX defines as uint8."""
    for item in graph.linears.values():
        if item.quantises and item.dtype == "uint8" and not item.has_zero:
            yield Hit(title(item.node), item.reals, "no zero point and no output_dtype: uint8 by the ONNX standard")


def integer_biases(graph: QuantisedGraph) -> Iterator[Hit]:
    """A DQ of int32."""
    for item in graph.linears.values():
        if item.dtype == "int32":
            yield Hit(title(item.node), item.reals, "DequantizeLinear of int32")


def wide_integers(graph: QuantisedGraph) -> Iterator[Hit]:
    """Integers of 16 bits, or of another type that TensorRT does not know."""
    for item in graph.distinct:
        known = item.dtype in _TENSORRT_TYPES or item.dtype.startswith("float")
        if not known and item.dtype != "int32":
            yield Hit(title(item.node), item.reals, f"quantised to {item.dtype}")


def integer_operators(graph: QuantisedGraph) -> Iterator[Hit]:
    """Operators that compute on integers themselves, and Microsoft's."""
    for node in graph.nodes:
        own = node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain != "com.microsoft"
        if is_quantised(node) and not own:
            domain = f"{node.domain}." if node.domain else ""
            yield Hit(title(node), next(iter(node.output), ""), f"operator {domain}{node.op_type}")


def unreadable_opset(graph: QuantisedGraph) -> Iterator[Hit]:
    """An operator set that no TensorRT reads."""
    if graph.opset > _NEWEST_READ:
        yield Hit("", "", f"opset {graph.opset}, expected {_NEWEST_READ} at most")


def demanding_opset(graph: QuantisedGraph) -> Iterator[Hit]:
    """An operator set that not every TensorRT in use reads."""
    if _OLDEST_READ < graph.opset <= _NEWEST_READ:
        _, version, jetpack = next(row for row in _READERS if row[0] >= graph.opset)
        board = f" ({jetpack})" if jetpack else ""
        yield Hit("", "", f"opset {graph.opset} needs TensorRT {version} or later{board}")


def _half_quantised(moves: frozenset[str], graph: QuantisedGraph) -> Iterator[Hit]:
    for node in graph.weighted:
        data, weight = graph.dequantized(node.input[0], moves), graph.weight(node)
        if (data is None) != (weight is None):
            parts = ("weights", "input") if data is None else ("input", "weights")
            yield Hit(title(node), node.input[0 if data is None else 1],
                      f"its {parts[0]} {_are(parts[0])} quantised, its {parts[1]} {_are(parts[1])} not")  # fmt: skip


def _are(noun: str) -> str:
    return "are" if noun == "weights" else "is"


#: A convolution or classifier with one quantised input, as TensorRT and as OpenVINO look for it.
half_quantised_tensorrt = partial(_half_quantised, _TENSORRT_MOVES)
half_quantised_openvino = partial(_half_quantised, _OPENVINO_MOVES)


def _float(moves: frozenset[str], graph: QuantisedGraph) -> Iterator[onnx.NodeProto]:
    for node in graph.weighted:
        if graph.dequantized(node.input[0], moves) is None and graph.weight(node) is None:
            yield node


def _float_convolutions(moves: frozenset[str], graph: QuantisedGraph) -> Iterator[Hit]:
    for node in _float(moves, graph):
        if node.op_type == "Conv" and not _is_first(graph, node):
            yield Hit(title(node), node.output[0], "neither its input nor its weights are quantised")


def _float_first_convolution(moves: frozenset[str], graph: QuantisedGraph) -> Iterator[Hit]:
    for node in _float(moves, graph):
        if node.op_type == "Conv" and _is_first(graph, node):
            yield Hit(title(node), node.output[0], "the first convolution is not quantised")


def _float_classifier(moves: frozenset[str], graph: QuantisedGraph) -> Iterator[Hit]:
    for node in _float(moves, graph):
        if node.op_type != "Conv":
            yield Hit(title(node), node.output[0], "neither its input nor its weights are quantised")


#: A convolution inside the network, the one that takes the image, and a Gemm or MatMul, without Q/DQ.
float_convolutions_tensorrt = partial(_float_convolutions, _TENSORRT_MOVES)
float_convolutions_openvino = partial(_float_convolutions, _OPENVINO_MOVES)
float_first_convolution_tensorrt = partial(_float_first_convolution, _TENSORRT_MOVES)
float_first_convolution_openvino = partial(_float_first_convolution, _OPENVINO_MOVES)
float_classifier_tensorrt = partial(_float_classifier, _TENSORRT_MOVES)
float_classifier_openvino = partial(_float_classifier, _OPENVINO_MOVES)


def _is_first(graph: QuantisedGraph, node: onnx.NodeProto) -> bool:
    """Whether nothing with weights stands between the network's input and a node."""
    name = node.input[0]
    while (maker := graph.producers.get(name)) is not None:
        if maker.op_type in WEIGHTED:
            return False
        name = next((item for item in maker.input if item not in graph.constants), "")
    return name in graph.inputs


def _conv_of(graph: QuantisedGraph, name: str) -> bool:
    while (node := graph.producers.get(name)) is not None and node.op_type in HANDING_ON:
        name = node.input[0]
    return node is not None and node.op_type == "Conv"


def _quantised_conv(graph: QuantisedGraph, item: Linear | None) -> bool:
    quantize = None if item is None else graph.quantizes(item.integers)
    return quantize is not None and _conv_of(graph, quantize.reals)


def sums_quantised_twice(graph: QuantisedGraph) -> Iterator[Hit]:
    """A residual sum with Q/DQ on both inputs."""
    for node in graph.sums:
        if all(graph.dequantized(name, _TENSORRT_MOVES) is not None for name in node.input):
            yield Hit(title(node), node.output[0], "both inputs are quantised")


def sums_in_float(graph: QuantisedGraph) -> Iterator[Hit]:
    """A residual sum with Q/DQ on no input."""
    for node in graph.sums:
        if all(graph.dequantized(name, _TENSORRT_MOVES) is None for name in node.input):
            yield Hit(title(node), node.output[0], "neither input is quantised")


def sums_quantised_on_the_wrong_side(graph: QuantisedGraph) -> Iterator[Hit]:
    """A residual sum with Q/DQ behind its convolution, and none on the shortcut."""
    for node in graph.sums:
        found = [graph.dequantized(name, _TENSORRT_MOVES) for name in node.input]
        for index, other in ((0, 1), (1, 0)):
            if found[other] is None and _quantised_conv(graph, found[index]) and not _conv_of(graph, node.input[other]):
                yield Hit(title(node), node.input[index], "Q/DQ stand between the last convolution and the sum")


def quantised_before_relu(graph: QuantisedGraph) -> Iterator[Hit]:
    """A Q between a convolution or sum and its Relu."""
    for item in graph.activations:
        if item.quantises or not any(node.op_type in ("Relu", "Clip") for node in graph.takers(item.reals)):
            continue
        quantize = graph.linears.get(item.integers)
        maker = None if quantize is None else graph.producers.get(quantize.reals)
        if quantize is not None and maker is not None and maker.op_type in ("Conv", "Add", "Gemm"):
            yield Hit(title(quantize.node), quantize.reals, f"it stands between {title(maker)} and its Relu")


def float_pools(graph: QuantisedGraph) -> Iterator[Hit]:
    """An average of real numbers that others take as integers."""
    for node in graph.nodes:
        if node.op_type not in AVERAGING or graph.dequantized(node.input[0], _TENSORRT_MOVES) is not None:
            continue
        if any(item.quantises for item in graph.behind(node.input[0])):
            yield Hit(title(node), node.input[0], f"{node.op_type} takes the real numbers beside a QuantizeLinear")


def narrow_convolutions(graph: QuantisedGraph) -> Iterator[Hit]:
    """A quantised convolution with few channels, in a number that fills no vector."""
    for node, _ in known_weights(graph):
        data = graph.dequantized(node.input[0], _TENSORRT_MOVES)
        if node.op_type != "Conv" or data is None:
            continue
        quantize = graph.quantizes(data.integers)
        takes_image = data.integers in graph.inputs or (quantize is not None and is_input(graph, quantize.reals))
        counts = graph.channels(node)
        odd = [n for n in counts if n < _NARROW and n % _STEP and not (takes_image and n == counts[0] <= _IMAGE)]
        if odd:
            yield Hit(title(node), node.output[0], f"{counts[0]} to {counts[1]} channels")


def padding_off_the_grid(graph: QuantisedGraph) -> Iterator[Hit]:
    """A padding of quantised values with one that no integer stands for."""
    for node, data, value in _paddings(graph):
        scale = None if data.scale is None else float(data.scale.ravel()[0])
        if not scale or data.dtype not in ("int8", "uint8"):
            continue
        steps, info = value / scale + int(data.zeros[0]), np.iinfo(data.dtype)
        if abs(steps - round(steps)) > 1e-3 or not info.min <= round(steps) <= info.max:
            yield Hit(title(node), node.output[0], f"it fills in {value:g}, which is {steps:g} steps of {scale:g}")


def padding_with_values(graph: QuantisedGraph) -> Iterator[Hit]:
    """A padding of quantised values with another one than 0."""
    for node, _, value in _paddings(graph):
        if value:
            yield Hit(title(node), node.output[0], f"it fills in {value:g}")


def _paddings(graph: QuantisedGraph) -> Iterator[tuple[onnx.NodeProto, Linear, float]]:
    for node in graph.nodes:
        data = graph.dequantized(node.input[0]) if node.op_type == "Pad" else None
        if data is None or attribute(node, "mode", b"constant") != b"constant":
            continue
        value = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        yield node, data, 0.0 if value is None else float(value.ravel()[0])


def asymmetric_weights(graph: QuantisedGraph) -> Iterator[Hit]:
    """Weights that are not int8 with zero point 0."""
    for node, weight in known_weights(graph):
        if weight.linear.dtype == "uint8" or weight.linear.zeros.any():
            zero = max(weight.linear.zeros, key=abs)
            yield Hit(title(node), weight.linear.reals, f"{weight.linear.dtype}, zero point {zero}")


def wide_activations(graph: QuantisedGraph) -> Iterator[Hit]:
    """Activations of 16 bits."""
    for item in graph.distinct:
        if item.dtype.endswith("int16"):
            yield Hit(title(item.node), item.reals, f"quantised to {item.dtype}")
