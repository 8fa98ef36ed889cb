"""The one input and the one output of an ONNX model, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from runtimes.base import TensorSpec
from runtimes.errors import GraphError


def input_and_output(model: onnx.ModelProto, label: Path) -> tuple[TensorSpec, TensorSpec]:
    """What a network for images takes and gives.

    Args:
        model: With or without its weights.
        label: Its file, for messages.

    Returns:
        ``[N, C, H, W]`` and ``[N, classes]``; a free size is ``None``.

    Raises:
        GraphError: Other numbers of inputs, outputs or dimensions.
    """
    stored = {item.name for item in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in stored]
    return _only(inputs, label, "input", 4), _only(model.graph.output, label, "output", 2)


def to_json(spec: TensorSpec) -> dict[str, Any]:
    """Name, element type and shape as plain JSON values; a free size is null."""
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def from_json(value: Mapping[str, Any]) -> TensorSpec:
    """What :func:`to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: It is something else.
    """
    shape = tuple(None if size is None else int(size) for size in value["shape"])
    return TensorSpec(str(value["name"]), str(value["dtype"]), shape)


def _only(values: Sequence[onnx.ValueInfoProto], label: Path, role: str, rank: int) -> TensorSpec:
    if len(values) != 1:
        names = ", ".join(each.name for each in values)
        raise GraphError(f"{label} has {len(values)} {role}s ({names}), expected exactly one")
    tensor = values[0].type.tensor_type
    sizes = tuple(size.dim_value if size.dim_value > 0 else None for size in tensor.shape.dim)
    if len(sizes) != rank or not tensor.elem_type:
        raise GraphError(f"{label}: {role} '{values[0].name}' has {len(sizes)} dimensions, expected {rank}")
    return TensorSpec(values[0].name, str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), sizes)
