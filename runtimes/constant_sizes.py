"""Constants of a model that nobody knows the size of before they are made.

A runtime computes what depends on no input when it loads a model. Shape inference tells most sizes of such parts
beforehand; what it does not tell (a size that a ``Pow`` makes, one inside of a branch) can be anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

import onnx

# Operators that make more than they take, and the inputs that say how much.
_SIZED: Final[Mapping[str, tuple[int, ...]]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Tile": (1,),
    "Range": (0, 1, 2),
}
_MOST_NODES: Final = 100_000  # of functions, written out; the deepest published residual networks have a tenth of it

_Function: TypeAlias = tuple[str, str]


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside of a node: branches, and bodies of loops."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """Every tensor whose shape a graph tells, also of nested graphs."""
    yield from (*graph.input, *graph.output, *graph.value_info)
    for node in graph.node:
        for inner in subgraphs(node):
            yield from values(inner)


def written_out(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """A model without functions of its own; ``None`` for one that would be endless, or as good as that.

    Args:
        model: Calls of its functions are replaced by what they do.
    """
    if not model.functions:
        return model
    bodies = {(each.domain, each.name): list(each.node) for each in model.functions}
    known: dict[_Function, int] = {}
    if _count(list(model.graph.node), bodies, known, frozenset()) > _MOST_NODES:
        return None
    from onnx.inliner import inline_local_functions

    return inline_local_functions(model)


def _count(
    nodes: list[onnx.NodeProto],
    bodies: Mapping[_Function, list[onnx.NodeProto]],
    known: dict[_Function, int],
    within: frozenset[_Function],
) -> int:
    """Nodes in all, once functions are written out; one more than allowed for a function that calls itself."""
    total = 0
    for node in nodes:
        key = (node.domain, node.op_type)
        if key in within:
            return _MOST_NODES + 1
        if key in bodies and key not in known:
            known[key] = _count(bodies[key], bodies, known, within | {key})
        total += known.get(key, 1)
        total += sum(_count(list(inner.node), bodies, known, within) for inner in subgraphs(node))
        if total > _MOST_NODES:
            break
    return total


def unknown_size(graph: onnx.GraphProto) -> str | None:
    """The first tensor that depends on no input and whose size is not known; ``None`` where there is none.

    Args:
        graph: After shape inference, without calls of functions.
    """
    stored = {item.name for item in graph.initializer}
    return _first(graph, {item.name for item in graph.input if item.name not in stored}, frozenset())


def _first(graph: onnx.GraphProto, moving: set[str], outer: frozenset[str]) -> str | None:
    told = (*graph.input, *graph.output, *graph.value_info)
    known = outer | {item.name for item in told if _is_known(item)}
    for node in graph.node:
        sizes = [node.input[place] for place in _SIZED.get(node.op_type, ()) if place < len(node.input)]
        if sizes and not moving & set(sizes) and node.output[0] not in known:
            return str(node.output[0])
        depends = bool(moving & set(node.input))
        for inner in subgraphs(node):
            # What a body is handed by its node depends on what the node takes.
            own = {*moving, *(item.name for item in inner.input if depends)}
            found = _first(inner, own, known)
            if found is not None:
                return found
            depends = depends or any(own & set(each.input) for each in inner.node)
        if depends:
            moving.update(node.output)
    return None


def _is_known(item: onnx.ValueInfoProto) -> bool:
    kind = item.type.tensor_type
    return kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
