"""onnxsim, used as a suggestion: whether its graph may stand in for ours is decided by the caller's parity check."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx

from exporter.graph.opset import drop_unread
from exporter.graph.quiet import quiet
from runtimes.errors import first_line


@dataclass(frozen=True)
class Simplified:
    """What the simplifier gave.

    Attributes:
        model: The simplified graph, or ``None``.
        removed: Operator -> how many fewer there are.
        reason: Why there is no graph; empty where there is one.
    """

    model: onnx.ModelProto | None
    removed: dict[str, int]
    reason: str = ""


def simplify(model: onnx.ModelProto) -> Simplified:
    """Run onnxsim on a graph; never raises for what the simplifier does.

    Args:
        model: Untouched.

    Returns:
        A candidate that still has to be proven equal, or the reason why there is none.
    """
    import onnxsim

    # The random inputs of onnxsim's own check are not what the model runs on, and parity follows on ours.
    try:
        with quiet():
            simplified, _ = onnxsim.simplify(model, check_n=0)
        broken = _interface_change(model.graph, simplified.graph)
    except Exception as error:  # noqa: BLE001  (a failing simplifier must not cost the user the file)
        return Simplified(None, {}, f"onnxsim failed: {first_line(error)}")
    if broken:
        return Simplified(None, {}, broken)
    _restore_names(model.graph, simplified.graph)
    _restore_interface(model, simplified)
    before = Counter(node.op_type for node in model.graph.node)
    after = Counter(node.op_type for node in simplified.graph.node)
    return Simplified(simplified, dict(before - after))


def _interface_change(before: onnx.GraphProto, after: onnx.GraphProto) -> str:
    for role, old, new in (("input", before.input, after.input), ("output", before.output, after.output)):
        if [value.name for value in old] != [value.name for value in new]:
            return f"onnxsim changed the {role} {[value.name for value in old]} to {[value.name for value in new]}"
    if any(not node.name for node in after.node):
        return "onnxsim dropped node names"
    return ""


def _restore_names(before: onnx.GraphProto, after: onnx.GraphProto) -> None:
    """A node that onnxsim made takes the name, a module path, of the one that fed its reader before."""
    old = {node.name for node in before.node}
    fed = {(node.name, index): name for node in before.node for index, name in enumerate(node.input)}
    made = {node.output[0]: node for node in after.node if node.name not in old}
    taken = {node.name for node in after.node} | {name for node in after.node for name in node.output}
    renamed: dict[str, str] = {}
    for node in reversed(after.node):  # readers first: their own names are settled by then
        for index, name in enumerate(node.input):
            wanted = fed.get((node.name, index), "")
            if name in made and wanted in old - taken:
                made.pop(name).name = renamed[name] = wanted
                taken.add(wanted)
    for node in after.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = renamed.get(name, name)


def _restore_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Free dimensions and the file format stay ours; value infos are left out, any reader can infer them."""
    for old, new in ((before.graph.input, after.graph.input), (before.graph.output, after.graph.output)):
        for source, target in zip(old, new, strict=True):
            target.CopyFrom(source)
    after.ir_version = before.ir_version
    del after.graph.value_info[:]
    drop_unread(after.graph)
