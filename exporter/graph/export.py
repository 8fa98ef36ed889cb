"""A captured graph -> ONNX, by the exporter on ``torch.export`` or, where that fails, by the TorchScript one."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import onnx
import torch

from exporter.graph.capture import Captured, trace
from exporter.graph.names import rename_nodes
from exporter.graph.opset import EXPORTER_OLDEST, canonicalise, convert
from runtimes.errors import GraphError, first_line

Exporter = Literal["torch.export", "torchscript"]
INPUT_NAME, OUTPUT_NAME = "input", "logits"


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
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
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
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        dynamic_axes={INPUT_NAME: names, OUTPUT_NAME: {0: "batch"} if captured.shape.batch is None else {}},
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's and onnxscript's notices off the terminal; failures still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
