"""What a file says about itself: enough to feed it the right pixels and to find what it was made from."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import onnx

from exporter import __version__

PREFIX = "resnet_export."
_TOOLS = ("torch", "onnx", "onnxscript", "onnxsim")


def write_metadata(model: onnx.ModelProto, values: dict[str, Any]) -> None:
    """Replace a model's metadata, in place; no times, no paths: the same input has to give the same bytes.

    Args:
        model: Changed in place.
        values: Name without prefix -> JSON-ready value.
    """
    model.producer_name, model.producer_version = "resnet-export", __version__
    del model.metadata_props[:]
    for name in sorted(values):
        model.metadata_props.add(key=f"{PREFIX}{name}", value=json.dumps(values[name], sort_keys=True))


def read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """The values that :func:`write_metadata` wrote; empty for a file from elsewhere."""
    return {
        item.key.removeprefix(PREFIX): json.loads(item.value)
        for item in model.metadata_props
        if item.key.startswith(PREFIX)
    }


def declared_shape(model: onnx.ModelProto) -> tuple[int | None, ...]:
    """The shape of the one input that is no weight: ``None`` for a free side, empty where there are more inputs."""
    stored = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in stored]
    sides = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else ()
    return tuple(side.dim_value if side.dim_value > 0 else None for side in sides)


def tool_versions() -> dict[str, str]:
    """Versions of the packages that shape the file."""
    return {name: metadata.version(name) for name in _TOOLS}
