"""Standard operators for a residual network's end, and the opset that a device takes.

The exporters write a global average pool as ``ReduceMean`` with axes as an input (opset 18 and later) and a flatten
as ``Reshape`` with ``allowzero`` (opset 14 and later). ``GlobalAveragePool`` and ``Flatten`` say the same, exist since
opset 1, and are what INT8 placement and older TensorRT parsers know.
"""

from __future__ import annotations

from importlib import metadata
from typing import NamedTuple

import onnx
import onnx.defs
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.downgrade import downgrade
from runtimes.errors import GraphError

OLDEST_OPSET = 13  # per-channel QuantizeLinear; JetPack 4.6's TensorRT 8.2 parses no newer one
#: TensorRT 8.4 and later, ONNX Runtime and OpenVINO of the last years all read it, and no operator of a residual
#: network gained anything since.
DEFAULT_OPSET = 17
#: The exporter's own; anything older is converted from it.
EXPORTER_OLDEST = 18
#: The newest that the exporter writes and the installed packages read: onnxruntime 1.23 ends at IR version 11.
_RUNNABLE = 23 if metadata.version("onnxruntime").startswith("1.23.") else 28
NEWEST_OPSET = min(_RUNNABLE, onnx.defs.onnx_opset_version())
_STUB_BYTES = 1024


def require_opset(opset: int) -> None:
    """Refuse an opset that cannot be had.

    Raises:
        GraphError: Names the range and the usual choices.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise GraphError(
            f"--opset {opset}: expected {OLDEST_OPSET} to {NEWEST_OPSET} "
            f"(13 for TensorRT 8.0 to 8.2, 17 for 8.4 and later)"
        )


def canonicalise(model: onnx.ModelProto) -> None:
    """Rewrite global pools and flattens to their standard operators, in place.

    Requires: named nodes. Ensures: same outputs for every input; constants that lost their reader are gone.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    facts = _Facts(inferred_shapes(model), constants, producers)
    pooled: set[str] = set()
    for node in list(model.graph.node):
        if _is_global_mean(node, facts):
            if not _keeps_dimensions(node):
                _split_flattening_mean(model.graph, node)
                continue
            _replace(node, "GlobalAveragePool", node.input[:1])
        if node.op_type == "GlobalAveragePool":
            pooled.add(node.output[0])
        if _is_flatten(node, pooled, facts):
            _replace(node, "Flatten", node.input[:1], axis=1)
    _drop_dead_nodes(model.graph)
    drop_unread(model.graph)


def inferred_shapes(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Shape of every tensor that can be inferred; ``None`` for a free dimension. Weights are not copied for it."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    return {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }


class _Facts(NamedTuple):
    """What is known about a graph's tensors, by name."""

    shapes: dict[str, list[int | None]]
    constants: dict[str, TensorProto]
    producers: dict[str, onnx.NodeProto]


def _is_global_mean(node: onnx.NodeProto, facts: _Facts) -> bool:
    if node.op_type != "ReduceMean" or len(facts.shapes.get(node.input[0], ())) != 4:
        return False
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    axes = attributes.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in facts.constants:
        axes = numpy_helper.to_array(facts.constants[node.input[1]]).tolist()
    return axes is not None and {axis % 4 for axis in axes} == {2, 3}


def _keeps_dimensions(node: onnx.NodeProto) -> bool:
    return all(item.i == 1 for item in node.attribute if item.name == "keepdims")


def _split_flattening_mean(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """``x.mean((2, 3))`` -> GlobalAveragePool, Flatten; the second keeps the node's name and output."""
    pool = helper.make_node("GlobalAveragePool", node.input[:1], [f"{node.name}.pool"], name=f"{node.name}.pool")
    position = next(index for index, each in enumerate(graph.node) if each.name == node.name)
    graph.node.insert(position, pool)
    _replace(graph.node[position + 1], "Flatten", [pool.output[0]], axis=1)


def _is_flatten(node: onnx.NodeProto, pooled: set[str], facts: _Facts) -> bool:
    """A reshape of ``[N, C, 1, 1]`` to two dimensions of which one is surely its own can only be ``[N, C]``."""
    if node.op_type != "Reshape" or node.input[0] not in pooled:
        return False
    target = _target(node.input[1], facts)
    batch, channels = (facts.shapes.get(node.input[0]) or [None, None])[:2]
    if len(target) != 2:
        return False
    copies_batch = target[0] == 0 and not any(item.name == "allowzero" and item.i for item in node.attribute)
    return copies_batch or target[0] == (batch or "free") or target[1] == (channels or "free")


def _target(name: str, facts: _Facts) -> list[int | None]:
    """What a reshape is asked for; ``None`` for a size that is only known when the graph runs."""
    if name in facts.constants:
        values: list[int | None] = numpy_helper.to_array(facts.constants[name]).tolist()
        return values
    producer = facts.producers.get(name)
    if producer is not None and producer.op_type == "Concat":
        return [size for part in producer.input for size in _target(part, facts)]
    return [None] * ((facts.shapes.get(name) or [None])[0] or 0)


def _replace(node: onnx.NodeProto, op_type: str, inputs: list[str], **attributes: int) -> None:
    kept = list(inputs)
    node.op_type = op_type
    del node.input[:], node.attribute[:]
    node.input.extend(kept)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())


def _drop_dead_nodes(graph: onnx.GraphProto) -> None:
    """Remove nodes that nothing reads any more, such as those that computed a reshape's target."""
    wanted = {value.name for value in graph.output}
    dead = []
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if wanted.isdisjoint(node.output):
            dead.append(index)
        else:
            wanted.update(node.input)
    for index in dead:  # the last one first, so that the indices before it stay what they are
        del graph.node[index]


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove constants that no node reads, and put the others in the order in which they are read."""
    order: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            order.setdefault(name, len(order))
    kept = sorted((t for t in graph.initializer if t.name in order), key=lambda tensor: order[tensor.name])
    if [tensor.name for tensor in kept] != [tensor.name for tensor in graph.initializer]:
        copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def convert(model: onnx.ModelProto, opset: int) -> None:
    """Bring a graph to another opset, and to the oldest file format that has it, in place.

    Args:
        model: As the exporter wrote it: in the wanted opset, or in a newer one up to 18.
        opset: Wanted.

    Raises:
        GraphError: Some operator has no equivalent there; names the node.
    """
    if opset < opset_of(model):
        downgrade(model, opset)
        drop_unread(model.graph)
    if opset_of(model) != opset:
        raise GraphError(f"the exporter wrote opset {opset_of(model)} where {opset} was asked for")
    # A file should not ask its reader for a newer format than its operators need: JetPack's parsers refuse it.
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operator set."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def _is_heavy(tensor: TensorProto) -> bool:
    return len(tensor.raw_data) > _STUB_BYTES


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large constants are graph inputs; the original's bytes are not copied on the way."""
    graph = model.graph
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    for tensor in graph.initializer:
        if _is_heavy(tensor):
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            light.graph.initializer.append(tensor)
    return light
