"""Opset 18 -> 13 … 17, one node at a time.

ONNX's own converter has no way back for ``Pad`` 18, nor for ``Relu`` 14 (1.23: "No Adapter"), which leaves a
residual network no path to the opset of a Jetson. Most of what changed between 13 and 18 is that more element types
are allowed; the rest is a row in ``_ADAPTERS``. What has neither is refused by name, never relabelled in hope.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx
from onnx import defs, helper, numpy_helper

from runtimes.errors import GraphError

_Constants = Mapping[str, onnx.TensorProto]
#: Between opsets 13 and 18 these gained element types and nothing else (ONNX changelog, "Version 14" to "18").
_TYPES_ONLY = frozenset((
    "Add", "Sub", "Mul", "Div", "Relu", "Identity", "LeakyRelu", "PRelu", "Where", "Pow", "CumSum",
    "GreaterOrEqual", "LessOrEqual", "Shape",
))  # fmt: skip
_REDUCTIONS = frozenset((
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
))  # fmt: skip


def downgrade(model: onnx.ModelProto, opset: int) -> None:
    """Rewrite every node for an older opset, in place.

    Args:
        model: In opset 18 or older.
        opset: Wanted, 13 or newer.

    Raises:
        GraphError: An operator has no equivalent there; names the node.
    """
    source = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        _downgrade_node(node, source, opset, constants)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset


def _downgrade_node(node: onnx.NodeProto, source: int, opset: int, constants: _Constants) -> None:
    new = defs.get_schema(node.op_type, source, node.domain)
    try:
        old = defs.get_schema(node.op_type, opset, node.domain)
    except defs.SchemaError:
        raise GraphError(
            f"{node.name}: opset {opset} has no {node.op_type} (new in {new.since_version}): "
            f"give --opset {new.since_version}"
        ) from None
    if old.since_version == new.since_version:
        return
    adapter = _ADAPTERS.get(node.op_type)
    adapted = adapter(node, constants) if adapter else node.op_type in _TYPES_ONLY
    extra = {item.name for item in node.attribute} - set(old.attributes)
    if not adapted or extra or len(node.input) > old.max_input:
        raise GraphError(
            f"{node.name}: this {node.op_type} needs opset {new.since_version}, and {opset} was asked for: "
            f"give --opset {new.since_version}"
        )


def _pad(node: onnx.NodeProto, constants: _Constants) -> bool:
    """Opset 18 gave Pad a fourth input, the axes; absent or empty it means all of them, as before."""
    del constants
    while len(node.input) > 3 and not node.input[-1]:
        node.input.pop()
    return len(node.input) <= 3 and _attribute(node, "mode", b"constant") in (b"constant", b"reflect", b"edge")


def _reduce(node: onnx.NodeProto, constants: _Constants) -> bool:
    """Opset 18 made the axes an input; before they were an attribute."""
    if _attribute(node, "noop_with_empty_axes", 0):
        return False
    if len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            return False
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        if axes:  # none: all of them, before and after
            node.attribute.append(helper.make_attribute("axes", axes))
    del node.input[1:]
    _drop_attribute(node, "noop_with_empty_axes")
    return True


def _reshape(node: onnx.NodeProto, constants: _Constants) -> bool:
    """Opset 14 brought ``allowzero``; where the target has no zero it changes nothing."""
    target = constants.get(node.input[1])
    harmless = target is not None and 0 not in numpy_helper.to_array(target).tolist()
    if _attribute(node, "allowzero", 0) and not harmless:
        return False
    _drop_attribute(node, "allowzero")
    return True


def _batch_normalization(node: onnx.NodeProto, constants: _Constants) -> bool:
    """Opset 14 brought ``training_mode``; in inference the operator is what it was."""
    del constants
    if _attribute(node, "training_mode", 0):
        return False
    _drop_attribute(node, "training_mode")
    return True


def _split(node: onnx.NodeProto, constants: _Constants) -> bool:
    """Opset 18 brought ``num_outputs``, which alone allows an uneven last part; with the sizes given it is absent."""
    del constants
    return len(node.input) > 1 and bool(node.input[1])


def _attribute(node: onnx.NodeProto, name: str, default: object) -> object:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


_ADAPTERS: dict[str, Callable[[onnx.NodeProto, _Constants], bool]] = {
    "Pad": _pad,
    "Reshape": _reshape,
    "BatchNormalization": _batch_normalization,
    "Split": _split,
    **dict.fromkeys(_REDUCTIONS, _reduce),
}
