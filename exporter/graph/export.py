"""A captured graph -> ONNX, by the exporter on ``torch.export`` or, where that fails, by the TorchScript one."""

from __future__ import annotations

import io
from typing import Any, Literal

import onnx
import torch

from exporter.graph.capture import Captured, trace
from exporter.graph.names import rename_nodes
from exporter.graph.opset import EXPORTER_OLDEST, canonicalise, convert
from exporter.graph.quiet import quiet
from runtimes.errors import GraphError, first_line

Exporter = Literal["torch.export", "torchscript"]
INPUT_NAME, OUTPUT_NAME = "input", "logits"
# While the exporter is at work: no parameter has these names, and one may well be called "logits".
_DRAFT_INPUT, _DRAFT_OUTPUT = "__input__", "__logits__"


def export(captured: Captured, opset: int, exporter: Exporter) -> onnx.ModelProto:
    """Write a captured graph as ONNX, named by module path, in the wanted opset.

    Args:
        captured: Flat graph; untouched.
        opset: Wanted operator set.
        exporter: Which of torch's two.

    Returns:
        A model with one input ``input`` and one output ``logits``.

    Raises:
        GraphError: The exporter or the conversion failed; the first line of its reason.
    """
    write = _by_torch_export if exporter == "torch.export" else _by_torchscript
    try:
        with quiet():
            model = write(captured, opset)
    except GraphError:
        raise
    except Exception as error:  # an exporter passes on whatever its translation of an operator raised
        raise GraphError(f"the {exporter} exporter cannot write this network: {first_line(error)}") from error
    rename_nodes(model, INPUT_NAME, OUTPUT_NAME)
    canonicalise(model)
    convert(model, opset)
    return model


def _by_torch_export(captured: Captured, opset: int) -> onnx.ModelProto:
    program = torch.onnx.export(
        trace(captured.module, captured.shape),
        (),
        dynamo=True,
        opset_version=max(opset, EXPORTER_OLDEST),
        input_names=[_DRAFT_INPUT],
        output_names=[_DRAFT_OUTPUT],
        verbose=False,
    )
    if program is None:
        raise GraphError("the torch.export exporter gave no program")
    model: onnx.ModelProto = program.model_proto
    return model


def _by_torchscript(captured: Captured, opset: int) -> onnx.ModelProto:
    buffer: Any = io.BytesIO()  # torch's annotation knows only paths; its documentation allows file objects
    names = {0: "batch"} if captured.shape.batch is None else {}
    if captured.shape.dynamic_size:
        names |= {2: "height", 3: "width"}
    torch.onnx.export(
        captured.module,
        (captured.shape.example(),),
        buffer,
        dynamo=False,
        opset_version=min(opset, EXPORTER_OLDEST),
        input_names=[_DRAFT_INPUT],
        output_names=[_DRAFT_OUTPUT],
        dynamic_axes={_DRAFT_INPUT: names, _DRAFT_OUTPUT: {0: "batch"} if captured.shape.batch is None else {}},
    )
    model: onnx.ModelProto = onnx.ModelProto.FromString(buffer.getvalue())
    _inline_identities(model.graph)
    return model


def _inline_identities(graph: onnx.GraphProto) -> None:
    """The TorchScript exporter stores equal constants once, and reads them through ``Identity`` nodes."""
    constants = {tensor.name for tensor in graph.initializer}
    source = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Identity" and node.input[0] in constants
    }
    kept = [node for node in graph.node if not (node.output and node.output[0] in source)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    for node in copies:
        for index, name in enumerate(node.input):
            node.input[index] = source.get(name, name)
    del graph.node[:]
    graph.node.extend(copies)
