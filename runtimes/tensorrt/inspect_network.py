"""What the summary of an engine wants to know of the network that it was built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import onnx

# Shapes are computed from the image too, and are no operands.
_OF_SHAPES: Final = frozenset({"Shape", "Size"})
# They pass 8-bit tensors on as they are, so that what follows them is quantised if what precedes them is.
_PASSING: Final = frozenset({"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
# A weight is a constant behind them: INT8 behind DequantizeLinear, float behind both.
_STORING: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "Identity", "Cast"})


@dataclass(frozen=True)
class NetworkNode:
    """What is known of a node of the network that an engine was built from.

    Attributes:
        name: Its name, which is the path of its module.
        op_type: Its ONNX operator.
        channels: Input channels of a convolution, or input features of a Gemm; ``None``: not known.
        groups: Groups of a convolution.
        quantised: Whether a ``DequantizeLinear`` feeds its data input; ``None``: not known.
        operands: Number of its inputs that depend on the image: 2 for the Add of a residual block, 1 for a bias.
    """

    name: str
    op_type: str
    channels: int | None = None
    groups: int = 1
    quantised: bool | None = None
    operands: int = 2


def network_nodes(model: onnx.ModelProto) -> tuple[NetworkNode, ...]:
    """The nodes of an ONNX model, float or with Q/DQ, in its order.

    Args:
        model: What the engine was built from; its weights are initializers or ``DequantizeLinear`` of some.
    """
    graph = model.graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output if name}
    # A network without Q/DQ can still be quantised, by a calibration cache: then nothing is known of its nodes.
    explicit = any(node.op_type == "QuantizeLinear" for node in graph.node)
    active = {item.name for item in graph.input if item.name not in shapes}
    found = []
    for node in graph.node:
        operands = sum(name in active for name in node.input)
        if operands and node.op_type not in _OF_SHAPES:
            active.update(name for name in node.output if name)
        weights = shapes.get(_stored(node.input[1], producers), ()) if len(node.input) > 1 else ()
        groups = int(_attribute(node, "group", 1))
        found.append(
            NetworkNode(
                name=node.name,
                op_type=node.op_type,
                channels=_channels(node, weights, groups),
                groups=groups,
                quantised=_is_quantised(node, producers) if explicit and node.input else None,
                operands=operands,
            )
        )
    return tuple(found)


def _stored(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """The constant that a weight is kept in."""
    node = producers.get(name)
    return _stored(node.input[0], producers) if node is not None and node.op_type in _STORING else name


def _is_quantised(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    before = producers.get(node.input[0])
    while before is not None and before.op_type in _PASSING:
        before = producers.get(before.input[0])
    return before is not None and before.op_type == "DequantizeLinear"


def _channels(node: onnx.NodeProto, weights: tuple[int, ...], groups: int) -> int | None:
    if len(weights) < 2:
        return None
    if node.op_type == "Conv":  # [out, in / groups, ...]
        return weights[1] * groups
    if node.op_type == "ConvTranspose":  # [in, out / groups, ...]
        return weights[0]
    if node.op_type == "Gemm":
        return weights[1] if _attribute(node, "transB", 0) else weights[0]
    return weights[-2] if node.op_type == "MatMul" else None


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((item.i for item in node.attribute if item.name == name), default)
