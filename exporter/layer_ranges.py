"""What each layer of a quantised file may hold, beside how well it holds it: for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from exporter.opening import Opening
from runtimes.errors import ResnetExportError
from runtimes.reading import read_model


def quantised_ranges(model: onnx.ModelProto) -> dict[str, tuple[float, float, float]]:
    """Lowest and highest value, and the step, of every activation that has one scale.

    Args:
        model: With Q/DQ; weights have a scale for each channel and are left out.

    Returns:
        By the tensor that is quantised. One whose zero point was folded into biases is that tensor less a constant.
    """
    stored = {item.name: item for item in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in stored or node.input[1] not in stored:
            continue
        scale = numpy_helper.to_array(stored[node.input[1]])
        zero = _zero_point(node, stored)
        if scale.size == 1 and zero is not None and zero.size == 1:
            step, place, limits = float(scale.reshape(())), int(zero.reshape(())), np.iinfo(zero.dtype)
            found[node.input[0]] = ((limits.min - place) * step, (limits.max - place) * step, step)
    return found


def _zero_point(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> np.ndarray[Any, Any] | None:
    if len(node.input) < 3 or not node.input[2]:
        return np.zeros((), np.uint8)  # as the standard has it
    zero = stored.get(node.input[2])
    array = None if zero is None else numpy_helper.to_array(zero)
    return array if array is not None and array.dtype in (np.int8, np.uint8) else None  # FP8 has no whole steps


def layer_rows(models: Sequence[Opening], drift: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The layers of the first INT8 model whose drift is known, in order of depth.

    Args:
        models: That were compared.
        drift: Documents of :func:`exporter.drift_rows.drift_rows`.
    """
    documents = {row["label"]: row for row in drift if row["layers"]}
    for model in models:
        if model.precision == "int8" and model.onnx is not None and model.label in documents:
            try:
                ranges = quantised_ranges(read_model(model.onnx, "give an ONNX file")[0])
            except ResnetExportError:  # it has changed since it was run: the report goes without
                return ()
            return tuple(_rows(documents[model.label], ranges))
    return ()


def _rows(document: Mapping[str, Any], ranges: Mapping[str, tuple[float, float, float]]) -> Iterator[Mapping[str, Any]]:
    for row in document["layers"]:
        low, high, scale = ranges.get(row["layer"], (None, None, None))
        yield {"layer": row["layer"], "low": low, "high": high, "scale": scale, "sqnr_db": row["sqnr_db"]}
