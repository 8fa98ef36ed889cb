"""Small networks with the metadata of this project, and an engine's files that no TensorRT made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.preprocess import PRESETS, Preprocessing
from exporter.graph.metadata import write_metadata

CLASSES = 4
CONTRACT = PRESETS["cifar"].for_input(3, 8, 6)
LABELS = ["cat", 'the "dog"', "Ωmega\tline", "back\\slash"]


def network(
    path: Path,
    *,
    batch: int | None = None,
    size: tuple[int | None, int | None] = (8, 6),
    elements: int = TensorProto.FLOAT,
    contract: Preprocessing | None = CONTRACT,
    labels: list[str] | None = None,
    channels: int = 3,
) -> Path:
    """A convolution, a pooling and a classifier."""
    rng = np.random.default_rng(7)
    dtype = helper.tensor_dtype_to_np_dtype(elements)
    weight = rng.standard_normal((5, channels, 3, 3)).astype(dtype)
    matrix = rng.standard_normal((5, CLASSES)).astype(dtype)
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    height, width = (side or name for side, name in zip(size, "HW", strict=True))
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("input", elements, [batch or "N", channels, height, width])],
        [helper.make_tensor_value_info("logits", elements, [batch or "N", CLASSES])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(matrix, "matrix")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values: dict[str, Any] = {"classes": {"count": CLASSES, "labels": labels or []}}
    if contract is not None:
        values |= {"preprocessing": contract.to_json(), "preprocessing_sha256": contract.sha256()}
    write_metadata(model, values)
    onnx.save(model, path)
    return path


def engine(path: Path, *, batches: tuple[int, int, int] = (1, 4, 16), **changes: Any) -> Path:
    """A file that begins as a plan does, and the document that ``resnet-export engine`` writes beside it."""
    path.write_bytes(b"ftrt" + bytes(60))
    document: dict[str, Any] = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "version": "10.3.0", "precision": "int8", "source_sha256": "a" * 64, "options": {"version_compatible": False},
        "profile": {
            "input": "input",
            **{key: [n, 3, 8, 6] for key, n in zip(("min", "opt", "max"), batches, strict=True)},
        },
        "tensors": {
            "input": {"name": "input", "dtype": "float32", "shape": [None, 3, 8, 6]},
            "output": {"name": "logits", "dtype": "float32", "shape": [None, CLASSES]},
        },
        "preprocessing": CONTRACT.to_json(), "preprocessing_sha256": CONTRACT.sha256(),
        "classes": {"count": CLASSES, "labels": LABELS},
    }  # fmt: skip
    path.with_name(f"{path.name}.json").write_text(json.dumps(document | changes))
    return path
