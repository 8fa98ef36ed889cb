"""What comes out of a network: logits, or what users make of them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from calibration.graph import Network
from exporter.graph.rewrite import assemble
from runtimes.errors import GraphError, InputError

PROBABILITIES: Final = "probabilities"
SCORES: Final = "scores"
CLASSES: Final = "classes"
_ENDS: Final = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})


def check_head(model: onnx.ModelProto, softmax: bool, top_k: int | None) -> None:
    """Refuse a head that the network cannot have.

    Args:
        model: Gives ``[N, classes]``.
        softmax: Whether probabilities are wanted.
        top_k: How many of the best classes are wanted; ``None``: all, in their own order.

    Raises:
        InputError: More classes than there are, or fewer than one.
        GraphError: The network ends in probabilities already.
    """
    network = Network(model, "")
    output = model.graph.output[0]
    last = network.producers.get(output.name)
    if softmax and last is not None and last.op_type in _ENDS:
        raise GraphError(f"--softmax, but the network ends in {last.op_type} already: leave it out")
    dims = output.type.tensor_type.shape.dim
    classes = dims[-1].dim_value if len(dims) == 2 else 0
    if top_k is not None and (top_k < 1 or (classes and top_k > classes)):
        raise InputError(f"--top-k {top_k}, and the model has {classes} classes: expected from 1 to that")
    if (softmax or top_k is not None) and dims and len(dims) != 2:
        raise GraphError(f"the model gives {len(dims)} dimensions, expected [N,classes]")


def with_head(model: onnx.ModelProto, softmax: bool, top_k: int | None) -> onnx.ModelProto:
    """A model with other outputs.

    Args:
        model: Gives ``[N, classes]``; unchanged.
        softmax: ``probabilities`` float32 ``[N, classes]`` in the place of the logits.
        top_k: Instead ``scores`` float32 ``[N, K]``, the best first, probabilities with ``softmax`` and logits without,
            and ``classes`` int64 ``[N, K]``.

    Raises:
        InputError, GraphError: As :func:`check_head`.
    """
    check_head(model, softmax, top_k)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    if not softmax and top_k is None:
        return changed
    graph = changed.graph
    output = graph.output[0]
    batch = output.type.tensor_type.shape.dim[0] if output.type.tensor_type.shape.dim else None
    total = output.type.tensor_type.shape.dim[1].dim_value if batch is not None else 0
    name, nodes, constants = output.name, list(graph.node), {}
    if output.type.tensor_type.elem_type != TensorProto.FLOAT:
        nodes.append(_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT))
        name = f"{name}.float"
    if softmax:
        nodes.append(_node("Softmax", [name], [PROBABILITIES], axis=-1))
        name = PROBABILITIES
    results = [(PROBABILITIES, TensorProto.FLOAT, total or None)]
    if top_k is not None:
        constants[f"{SCORES}.k"] = np.array([top_k], np.int64)
        nodes.append(_node("TopK", [name, f"{SCORES}.k"], [SCORES, CLASSES], axis=-1, largest=1, sorted=1))
        results = [(SCORES, TensorProto.FLOAT, top_k), (CLASSES, TensorProto.INT64, top_k)]
    del graph.output[:]
    for each, kind, count in results:
        value = helper.make_tensor_value_info(each, kind, ["N", count])
        if batch is not None:
            value.type.tensor_type.shape.dim[0].CopyFrom(batch)
        graph.output.append(value)
    assemble(graph, nodes, constants)
    return changed


def _node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, outputs[0], **attributes)
