from __future__ import annotations

import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from exporter.graph.export import Exporter, export
from exporter.graph.names import rename_nodes
from tests.exporter.graphs import Net, bottleneck, cifar, folded, images, net, onnx_model, ort_run, sqnr

EXPORTERS: tuple[Exporter, ...] = ("torch.export", "torchscript")
WEIGHTED = ("Conv", "Gemm")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_names_are_unique_and_each_first_output_carries_its_nodes(exporter: Exporter) -> None:
    graph = export(folded(cifar()).captured, 17, exporter).graph
    names = [node.name for node in graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    outputs = [name for node in graph.node for name in node.output]
    values = [*outputs, *(tensor.name for tensor in graph.initializer), graph.input[0].name]
    assert len(set(values)) == len(values)
    assert all(node.output[0] == node.name for node in graph.node[:-1])
    assert ([value.name for value in graph.input], [value.name for value in graph.output]) == (["input"], ["logits"])


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("make", [cifar, bottleneck], ids=["basic", "bottleneck"])
def test_weighted_nodes_are_named_by_module_path(make, exporter: Exporter) -> None:
    module = make()
    graph = export(folded(module).captured, 17, exporter).graph
    layers = {path: part for path, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    found = {node.name: node for node in graph.node if node.op_type in WEIGHTED}
    assert set(found) == set(layers)
    for path, node in found.items():
        assert node.input[1] == f"{path}.weight"
        assert node.input[2] == f"{path}.bias"


def test_operators_of_a_blocks_forward_carry_the_blocks_path() -> None:
    graph = export(folded(cifar()).captured, 17, "torch.export").graph
    names = {node.name: node.op_type for node in graph.node}
    assert names["layer1.0.add"] == "Add"
    assert names["layer1.0.relu_1"] == "Relu"
    assert names["layer2.0.downsample.pad"] == "Pad"
    assert names["avgpool"] == "GlobalAveragePool"


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_free_dimensions_have_the_same_names_from_both_exporters(exporter: Exporter) -> None:
    graph = export(folded(cifar()).captured, 17, exporter).graph
    dims = [
        [dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim]
        for v in (graph.input[0], graph.output[0])
    ]
    assert dims == [["batch", 3, 8, 8], ["batch", 10]]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_nothing_of_this_machine_is_left_in_the_bytes(exporter: Exporter) -> None:
    model = export(folded(cifar("B")).captured, 17, exporter)
    data = model.SerializeToString()
    for trace in (b"stack_trace", b"site-packages", b"/work", b"/home", b"/tmp", b".py", b"name_scopes", b"pkg."):
        assert trace not in data, trace
    assert not model.metadata_props
    assert not model.functions
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_modules_named_like_the_input_and_the_output_do_not_collide(exporter: Exporter) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = torch.relu(m.get_submodule("input")(x))
        return m.logits(y.mean((2, 3))) * m.scale  # type: ignore[no-any-return]

    module = net(forward, input=nn.Conv2d(3, 4, 3), logits=nn.Linear(4, 4), scale=nn.Parameter(torch.randn(4)))
    model = export(folded(module).captured, 17, exporter)
    assert {node.name for node in model.graph.node if node.op_type in WEIGHTED} == {"input", "logits"}
    with torch.no_grad():
        assert sqnr(module(images()), ort_run(model, images())) >= 100


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_parameters_named_like_the_input_and_the_output_do_not_collide(exporter: Exporter) -> None:
    module = net(
        lambda m, x: m.conv(x).mean((2, 3)) * m.logits + m.input,
        conv=nn.Conv2d(3, 4, 3),
        logits=nn.Parameter(torch.randn(4)),
        input=nn.Parameter(torch.randn(4)),
    )
    model = export(folded(module).captured, 17, exporter)
    with torch.no_grad():
        assert sqnr(module(images()), ort_run(model, images())) >= 100


def test_a_repeated_name_gets_a_number() -> None:
    nodes = [helper.make_node("Relu", ["input"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    model = onnx_model([*nodes, helper.make_node("Flatten", ["b"], ["logits"])])
    rename_nodes(model)
    assert [node.name for node in model.graph.node] == ["relu", "relu_1", "flatten"]
    assert [list(node.input) for node in model.graph.node] == [["input"], ["relu"], ["relu_1"]]


def test_a_tensor_does_not_take_the_name_of_a_constant() -> None:
    relu = helper.make_node("Relu", ["input"], ["a"])
    add = helper.make_node("Add", ["a", "relu"], ["b"])
    constant = helper.make_tensor("relu", TensorProto.FLOAT, [1], [1.0])
    model = onnx_model([relu, add, helper.make_node("Flatten", ["b"], ["logits"])], [constant])
    rename_nodes(model)
    assert model.graph.node[0].output[0] == "relu_1"
    assert list(model.graph.node[1].input) == ["relu_1", "relu"]
