"""What keeps ONNX Runtime's CPU provider from integer arithmetic, and what it would compute wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx

from calibration.graph import attribute
from calibration.lint_fusion import bias_error, fusion
from calibration.lint_graph import AVERAGING, Linear, QuantisedGraph, Weight, title
from calibration.lint_rules import Hit, known_weights
from calibration.lint_sides import before, past_padding, stays_signed
from calibration.saturation import overflows

# What the installed optimiser (1.32) lets pass; earlier ones do not look at all.
_BIAS_TOLERANCE = 1.1e-2
_OLDEST_FULL_OPSET, _NEWEST_OLD_OPSET = 21, 22


def _convolutions(cause: str, graph: QuantisedGraph) -> Iterator[Hit]:
    for node in graph.weighted:
        if node.op_type != "Conv" or (found := fusion(graph, node)).cause != cause:
            continue
        if cause == "bias" and _is_reported(graph, node):
            continue  # as an error
        yield Hit(title(node), node.output[0], found.detail)


def because(cause: str) -> Callable[[QuantisedGraph], Iterator[Hit]]:
    """The rule that finds convolutions which stay in float for one cause."""
    return partial(_convolutions, cause)


def float_sums(graph: QuantisedGraph) -> Iterator[Hit]:
    """A residual sum that will not be a QLinearAdd."""
    for node in graph.sums:
        found = fusion(graph, node)
        if found.cause not in ("", "rank"):
            yield Hit(title(node), node.output[0], found.detail)


def sums_beside_vectors(graph: QuantisedGraph) -> Iterator[Hit]:
    """A residual sum beside a scale or zero point of rank 1."""
    for node in graph.sums:
        found = fusion(graph, node)
        if found.cause == "rank":
            yield Hit(title(node), node.output[0], found.detail)


def float_products(graph: QuantisedGraph) -> Iterator[Hit]:
    """A Gemm or MatMul with Q/DQ that will compute with real numbers all the same."""
    yield from (hit for quantised, hit in _products(graph) if quantised)


def float_classifier(graph: QuantisedGraph) -> Iterator[Hit]:
    """A Gemm or MatMul with weights and without Q/DQ."""
    yield from (hit for quantised, hit in _products(graph) if not quantised)


def _products(graph: QuantisedGraph) -> Iterator[tuple[bool, Hit]]:
    for node in graph.weighted:
        if node.op_type == "Conv" or (found := fusion(graph, node)).integer:
            continue
        if found.cause == "bias" and _is_reported(graph, node):
            continue  # as an error
        quantised = found.cause != "input" or graph.weight(node) is not None
        yield quantised, Hit(title(node), node.output[0], found.detail)


def float_maxima(graph: QuantisedGraph) -> Iterator[Hit]:
    """A MaxPool that will not run on integers."""
    yield from _pools(graph, frozenset({"MaxPool"}))


def float_averages(graph: QuantisedGraph) -> Iterator[Hit]:
    """An average that will not run on integers."""
    yield from _pools(graph, AVERAGING)


def _pools(graph: QuantisedGraph, operators: frozenset[str]) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type in operators and not (found := fusion(graph, node)).integer:
            yield Hit(title(node), node.output[0], found.detail)


def signed_activations(graph: QuantisedGraph) -> Iterator[Hit]:
    """Activations as int8, which the optimiser leaves so."""
    yield from (hit for stays, hit in _signed(graph) if stays)


def converted_activations(graph: QuantisedGraph) -> Iterator[Hit]:
    """Activations as int8, which the optimiser turns into uint8."""
    yield from (hit for stays, hit in _signed(graph) if not stays)


def _signed(graph: QuantisedGraph) -> Iterator[tuple[bool, Hit]]:
    for item in graph.activations:
        if item.quantises and item.dtype == "int8":
            # A DequantizeLinear is made one for each of its takers.
            takers = sum(graph.uses[reader.reals] for reader in graph.behind(item.integers))
            read = f", read by {takers} nodes" if takers > 1 else ""
            hit = Hit(title(item.node), item.reals, f"int8, zero point {item.zeros[0]}{read}")
            yield stays_signed(graph, item), hit


def _helped(what: str, graph: QuantisedGraph) -> Iterator[Hit]:
    for node in graph.weighted:
        if what in fusion(graph, node).helped:
            yield Hit(title(node), node.output[0], f"its {what} is float in the file" if what == "bias" else
                      "its weights are float in the file")  # fmt: skip


#: A float bias, and float weights, that the optimiser quantises while it loads the file.
float_biases = partial(_helped, "bias")
float_weights = partial(_helped, "weight")


def _biases(graph: QuantisedGraph) -> Iterator[tuple[onnx.NodeProto, Linear, Weight, Linear]]:
    """Nodes with an int32 bias: the node, what its input, its weights and its bias come through."""
    for node, weight in known_weights(graph):
        if node.op_type == "MatMul" or len(node.input) < 3 or not node.input[2]:
            continue
        data, bias = before(graph, past_padding(graph, node.input[0])), graph.dequantized(node.input[2])
        if data is not None and bias is not None and bias.dtype == "int32":
            yield node, data.linear, weight, bias


def _wrong_biases(graph: QuantisedGraph) -> Iterator[tuple[onnx.NodeProto, float]]:
    for node, data, weight, bias in _biases(graph):
        values = graph.constant(bias.integers)
        if values is not None and not values.any():
            continue  # nothing is nothing in any scale; the layer is still left in float
        alpha = float(attribute(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0
        error = bias_error(data, weight, bias, factor=alpha)
        if error > _BIAS_TOLERANCE:
            yield node, error


def wrong_bias_scales(graph: QuantisedGraph) -> Iterator[Hit]:
    """An int32 bias whose scale is not the product of the other two."""
    for node, error in _wrong_biases(graph):
        off = "not one for each channel" if np.isinf(error) else f"up to {100 * error:.3g} % away from it"
        yield Hit(title(node), node.input[2], f"its bias's scale is not (input scale) x (weight scale): {off}")


def wrong_bias_zeros(graph: QuantisedGraph) -> Iterator[Hit]:
    """An int32 with a zero point."""
    for item in graph.parameters:
        if item.dtype == "int32" and item.zeros.any():
            yield Hit(title(item.node), item.reals, f"int32 with zero point {item.zeros[item.zeros != 0][0]}")


def _is_reported(graph: QuantisedGraph, node: onnx.NodeProto) -> bool:
    return any(node is other for other, _ in _wrong_biases(graph)) or any(
        node is other and bias.zeros.any() for other, _, _, bias in _biases(graph)
    )


def uneven_weight_zeros(graph: QuantisedGraph) -> Iterator[Hit]:
    """Weights whose channels have zero points of their own."""
    for node, weight in known_weights(graph):
        if np.unique(weight.linear.zeros).size > 1:
            yield Hit(title(node), weight.linear.reals, "the zero points of its weights differ from channel to channel")


def saturating_weights(graph: QuantisedGraph) -> Iterator[Hit]:
    """int8 weights whose products with uint8 can overflow 16 bits; one hit for the whole file."""
    known = [(node, weight) for node, weight in known_weights(graph) if weight.linear.reals == node.input[1]]
    beyond = [(node, count) for node, weight in known if (count := _overflows(weight))]
    if beyond:
        first = beyond[0][0]
        total = sum(count for _, count in beyond)
        yield Hit(title(first), first.input[1], f"{total:,} weights in {len(beyond)} of {len(known)} layers")


def _overflows(weight: Weight) -> int:
    if weight.values is None or weight.values.dtype != np.int8 or weight.values.ndim < 2 or weight.linear.zeros.any():
        return 0
    return overflows(weight.values.astype(np.float32), weight.wanted)


def new_opset(graph: QuantisedGraph) -> Iterator[Hit]:
    """An operator set that ONNX Runtime has not known for long."""
    if graph.opset > _OLDEST_FULL_OPSET:
        lack = "MaxPool in float" if graph.opset <= _NEWEST_OLD_OPSET else "no QuantizeLinear"
        yield Hit("", "", f"opset {graph.opset}: ONNX Runtime 1.23 has {lack} in it")
