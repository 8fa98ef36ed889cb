"""One name for one layer, in every file: nodes and tensors named by module path.

A node gets the path of the module that it came from (``layer1.0.conv1``); an operator written in a block's own
``forward`` gets the block's path and its operator (``layer1.0.add``); a second one gets ``_1``. A node's first
output carries the node's name, so that a range, a calibration-cache row and an engine layer are found under it.
"""

from __future__ import annotations

import ast
import re

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_NO_SCOPE = "_empty_nn_module_stack"  # torch 2.14 and before, for operators of no module
_COUNTER = re.compile(r"_+\d*$")
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
DIMENSIONS = ("batch", "channels", "height", "width")


def rename_nodes(model: onnx.ModelProto, input_name: str = "input", output_name: str = "logits") -> None:
    """Name every node and tensor of an exporter's graph, in place, and drop the exporter's own annotations.

    Args:
        model: Straight from either exporter, with an input and an output that share their names with no parameter.
        input_name: Name of the graph's one input.
        output_name: Name of its one output.
    """
    graph = model.graph
    taken = {tensor.name for tensor in graph.initializer}
    renamed = {graph.input[0].name: input_name, graph.output[0].name: output_name}
    for name in taken & {input_name, output_name}:  # parameters that happen to be called like one of the two
        renamed[name] = unique(f"{name}.value", taken)
    names: set[str] = set()
    owner = ""
    for node in graph.node:
        owner = _weight_owner(node) or owner
        name = unique(_base_name(node, owner), names)
        names.add(name)
        node.name = name
        for index, output in enumerate(node.output):
            if output and output not in renamed:
                wanted = name if index == 0 else f"{name}.{index}"
                renamed[output] = unique(wanted, taken | {input_name, output_name})
                taken.add(renamed[output])
    _apply(graph, renamed)
    _name_dimensions(graph)
    _drop_annotations(model)


def unique(wanted: str, taken: set[str]) -> str:
    """``wanted``, or with the first ``_1``, ``_2`` … that nobody has."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def _base_name(node: onnx.NodeProto, owner: str) -> str:
    properties = {item.key: item.value for item in node.metadata_props}
    if _SCOPES not in properties:
        return _name_without_scopes(node, owner)
    scopes = ast.literal_eval(properties[_SCOPES])
    classes = ast.literal_eval(properties.get(_CLASSES, "[]"))
    path, operator = scopes[-2] if len(scopes) > 1 else "", _COUNTER.sub("", scopes[-1])
    if path.startswith(_NO_SCOPE):
        path = ""
    return base_name(str(path), str(classes[-2]) if len(classes) > 1 else "", operator)


def base_name(path: str, layer: str, operator: str) -> str:
    """The name of an operator before it is told from others of the same name.

    Args:
        path: Module path that it belongs to; empty at the top level.
        layer: Qualified name of that module's class.
        operator: Name of the operator, without a counter.
    """
    if path and layer.startswith("torch.nn.modules.") and ".container." not in layer:
        return path
    return f"{path}.{operator}" if path else operator


def _name_without_scopes(node: onnx.NodeProto, owner: str) -> str:
    """The TorchScript exporter keeps no paths beside the weights' names: the others are named after the last one."""
    if _weight_owner(node):
        return owner
    block = owner.rpartition(".")[0]
    operator = node.op_type.lower()
    return f"{block}.{operator}" if block else operator


def _weight_owner(node: onnx.NodeProto) -> str:
    if node.op_type in _WEIGHTED and len(node.input) > 1 and node.input[1].endswith(".weight"):
        return str(node.input[1].removesuffix(".weight"))
    return ""


def _apply(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = renamed.get(name, name)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renamed.get(value.name, value.name)


def _name_dimensions(graph: onnx.GraphProto) -> None:
    """Free dimensions are ``batch``, ``height``, ``width``; inner tensors' shapes are left to shape inference."""
    del graph.value_info[:]
    for value in (graph.input[0], graph.output[0]):
        for name, dim in zip(DIMENSIONS, value.type.tensor_type.shape.dim, strict=False):
            if not dim.HasField("dim_value"):
                dim.dim_param = name


def _drop_annotations(model: onnx.ModelProto) -> None:
    """Stack traces name folders of this machine, and generated names differ from run to run."""
    graph = model.graph
    del model.metadata_props[:]
    del model.functions[:]
    del graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
