"""What running a network costs: shapes of its activations, memory of a batch, multiply-accumulates of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx

from calibration.graph import Network, with_shapes

#: Images that go through a network together, where memory allows it.
LARGEST_BATCH: Final = 50


def batch_within(network: Network, shape: Sequence[int], memory: int, most: int = LARGEST_BATCH) -> int:
    """Images whose activations, in a pass that keeps them all, fit into ``memory`` bytes."""
    values = sum(math.prod(dims) for dims in shapes(network, shape).values())
    # Float and 8-bit form, and what the backward pass needs of both.
    return int(np.clip(memory // max(1, 4 * 3 * values), 1, most))


def multiplications(network: Network, shape: Sequence[int]) -> float:
    """Multiply-accumulates of one image."""
    known = shapes(network, shape)
    total = 0.0
    for node in network.nodes:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in network.initializers:
            weight = network.initializers[node.input[1]]
            spatial = math.prod(known.get(node.output[0], ())[2:])
            total += weight.size * spatial
    return max(total, 1.0)


def shapes(network: Network, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shape of every activation for one image."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    for item in model.graph.input:
        if item.name == network.input:
            for dim, value in zip(item.type.tensor_type.shape.dim, (1, *shape[1:]), strict=True):
                dim.dim_value = int(value)
    del model.graph.value_info[:]
    graph = with_shapes(model, data_prop=True)
    return {
        item.name: tuple(max(dim.dim_value, 1) for dim in item.type.tensor_type.shape.dim)
        for item in (*graph.input, *graph.value_info)
        if network.is_activation(item.name)
    }
