"""Does the file say what was asked for? Structure only; whether it *computes* the same is parity's to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx

from exporter.graph.capture import InputShape
from exporter.graph.export import INPUT_NAME, OUTPUT_NAME
from exporter.graph.opset import opset_of
from runtimes.errors import first_line


def structural_faults(
    model: onnx.ModelProto,
    shape: InputShape,
    opset: int,
    norms_left: int,
    *,
    classes: int | None = None,
    io_type: int = onnx.TensorProto.FLOAT,
) -> list[str]:
    """Everything about a graph that contradicts the request, one sentence each; empty when it is sound.

    Args:
        model: As it will be written.
        shape: The input that was asked for.
        opset: The opset that was asked for.
        norms_left: BatchNorms that the fold refused; more than these in the graph is a fault.
        classes: Number of logits, where it is known.
        io_type: Element type of input and output.
    """
    faults = []
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # noqa: BLE001  (the checker raises ValidationError, InferenceError and RuntimeError)
        faults.append(f"the ONNX checker refuses it: {first_line(error)}")
    if opset_of(model) != opset:
        faults.append(f"it is in opset {opset_of(model)}, not {opset}")
    faults.extend(_interface_faults(model.graph, shape, classes))
    faults.extend(_type_faults(model.graph, io_type))
    counts = operator_counts(model)
    if counts.get("BatchNormalization", 0) > norms_left:
        faults.append(f"it has {counts['BatchNormalization']} BatchNormalization nodes, expected {norms_left}")
    names = Counter(node.name for node in model.graph.node)
    if names.get("") or max(names.values(), default=0) > 1:
        faults.append("its node names are missing or not unique")
    return faults


def operator_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Operator -> number of nodes, the most frequent first."""
    counts = Counter(node.op_type for node in model.graph.node)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _interface_faults(graph: onnx.GraphProto, shape: InputShape, classes: int | None) -> Iterator[str]:
    if len(graph.input) != 1 or len(graph.output) != 1:
        yield f"it has {len(graph.input)} inputs and {len(graph.output)} outputs, expected one of each"
        return
    dims = graph.input[0].type.tensor_type.shape.dim
    wanted = [
        shape.batch,
        shape.channels,
        None if shape.dynamic_size else shape.height,
        None if shape.dynamic_size else shape.width,
    ]
    found = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    if found != wanted:
        yield f"its input is {_shown(found)}, expected {_shown(wanted)}"
    result = graph.output[0].type.tensor_type.shape.dim
    batch = result[0].dim_value if result and result[0].HasField("dim_value") else None
    if len(result) != 2 or batch != shape.batch:
        expected = shape.batch or "free"
        yield f"its output has {len(result)} dimensions and batch {batch or 'free'}, expected 2 and {expected}"
    elif classes is not None and result[1].dim_value not in (0, classes):  # 0: left to shape inference
        yield f"its output has {result[1].dim_value} logits, expected {classes}"


def _type_faults(graph: onnx.GraphProto, io_type: int) -> Iterator[str]:
    for value, name in (*zip(graph.input, [INPUT_NAME], strict=False), *zip(graph.output, [OUTPUT_NAME], strict=False)):
        found = value.type.tensor_type.elem_type
        if value.name != name:
            yield f"its '{name}' is called '{value.name}'"
        if found != io_type:
            types = [onnx.TensorProto.DataType.Name(each) for each in (found, io_type)]
            yield f"its {name} is {types[0]}, expected {types[1]}"


def _shown(dims: list[int | None]) -> str:
    return "[" + ", ".join("free" if dim is None else str(dim) for dim in dims) + "]"
