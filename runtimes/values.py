"""The values that flow through an ONNX graph while it is run node by node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from runtimes.errors import GraphError, first_line


def constants(model: onnx.ModelProto) -> dict[str, Tensor]:
    """Initializers and the values of ``Constant`` nodes, by name; each a copy of its own.

    Raises:
        GraphError: One of them cannot be read, or PyTorch has no such type.
    """
    found = {item.name: _tensor(item.name, item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = _constant(node)
    return found


def _constant(node: onnx.NodeProto) -> Tensor:
    name = node.output[0]
    for item in node.attribute:
        value = onnx.helper.get_attribute_value(item)
        if item.name == "value":
            return _tensor(name, value)
        if item.name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
        if item.name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
    given = ", ".join(item.name for item in node.attribute) or "nothing"
    raise GraphError(f"constant '{name}' is given as {given}, expected a dense tensor or numbers")


def _tensor(name: str, item: onnx.TensorProto) -> Tensor:
    try:
        return torch.from_numpy(np.array(numpy_helper.to_array(item)))
    except Exception as error:  # onnx raises whatever its C++ checker does, where data outside the file is missing
        raise GraphError(f"constant '{name}' cannot be read: {first_line(error)}") from error


def inputs_of(node: onnx.NodeProto, values: Mapping[str, Tensor]) -> list[Tensor | None]:
    """The inputs of a node out of the tensors there are; ``None`` where an optional one is left out."""
    return [values[name] if name else None for name in node.input]


def last_uses(nodes: Iterable[onnx.NodeProto], keep: Iterable[str]) -> list[tuple[str, ...]]:
    """For each node the tensors that nothing takes after it, so that they can be let go.

    What a node makes and nothing takes at all is let go at once.

    Args:
        nodes: In the order of computation.
        keep: Tensors never to let go.
    """
    ordered = list(nodes)
    last: dict[str, int] = {}
    for index, node in enumerate(ordered):
        last.update((name, index) for name in (*node.output, *node.input) if name)
    kept = set(keep)
    gone: list[list[str]] = [[] for _ in ordered]
    for name, index in last.items():
        if name not in kept:
            gone[index].append(name)
    return [tuple(names) for names in gone]
