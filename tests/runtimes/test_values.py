from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtimes.errors import GraphError
from runtimes.values import constants, inputs_of, last_uses
from tests.runtimes.models import model


def nodes_of(*edges: tuple[str, str]) -> list[onnx.NodeProto]:
    """Nodes from ``("a b", "c")``: inputs and outputs, each parted by a space."""
    return [helper.make_node("Add", takes.split(" "), gives.split(" ")) for takes, gives in edges]


def graph_of(nodes: list[onnx.NodeProto], *initializers: TensorProto) -> onnx.ModelProto:
    return model(nodes, [], [], list(initializers))


def test_a_tensor_is_let_go_after_the_last_node_that_takes_it():
    # A residual block: `x` waits for the addition.
    nodes = nodes_of(("x w", "a"), ("a a", "b"), ("b x", "sum"), ("sum w", "y"))
    assert last_uses(nodes, ["y", "w"]) == [(), ("a",), ("x", "b"), ("sum",)]


def test_what_is_kept_is_never_let_go():
    nodes = nodes_of(("x", "a"), ("a", "b"), ("a", "c"))
    assert last_uses(nodes, ["x", "a", "b", "c"]) == [(), (), ()]


def test_an_output_that_nothing_takes_is_let_go_at_once():
    assert last_uses(nodes_of(("x", "dead mask"), ("x", "y")), ["y"]) == [("dead", "mask"), ("x",)]


def test_an_input_left_out_is_no_tensor():
    assert last_uses(nodes_of(("x  b", "y")), ["y"]) == [("x", "b")]


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=10))
def test_nothing_is_let_go_early_twice_or_never(picks):
    """Node i may take any of the tensors 0..i, and makes tensor i + 1."""
    nodes = [
        helper.make_node("Sum", [f"t{pick % (index + 1)}" for pick in picked], [f"t{index + 1}"])
        for index, picked in enumerate(picks)
    ]
    alive, output = {"t0"}, f"t{len(picks)}"
    taken = {"t0"} & {name for node in nodes for name in node.input}
    for node, gone in zip(nodes, last_uses(nodes, [output]), strict=True):
        assert set(node.input) <= alive
        alive |= set(node.output)
        assert set(gone) <= alive
        alive -= set(gone)
    assert alive == {output} | ({"t0"} - taken)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": numpy_helper.from_array(np.array([[1, -2]], np.int8))}, np.array([[1, -2]], np.int8)),
        ({"value": numpy_helper.from_array(np.array(0.5, np.float32))}, np.array(0.5, np.float32)),
        ({"value_float": 0.5}, np.array(0.5, np.float32)),
        ({"value_floats": [0.5, 2.0]}, np.array([0.5, 2.0], np.float32)),
        ({"value_int": -3}, np.array(-3, np.int64)),
        ({"value_ints": [2, 3]}, np.array([2, 3], np.int64)),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_a_constant_node_is_read_in_every_dense_form(attributes, expected):
    found = constants(graph_of([helper.make_node("Constant", [], ["c"], **attributes)]))["c"].numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, strict=True)


def test_initializers_are_copies_that_may_be_written_to():
    source = graph_of([], numpy_helper.from_array(np.zeros(2, np.float32), "w"))
    constants(source)["w"].add_(1)
    assert constants(source)["w"].tolist() == [0, 0]


@pytest.mark.parametrize("form", ["sparse", "text", "int4", "outside"])
def test_a_constant_that_torch_cannot_hold_is_refused_by_its_name(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where data outside the file would be looked for
    item = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1])
    if form == "sparse":
        values = numpy_helper.from_array(np.ones(1, np.float32), "v")
        places = numpy_helper.from_array(np.zeros(1, np.int64), "i")
        sparse = helper.make_sparse_tensor(values, places, [4])
        source = graph_of([helper.make_node("Constant", [], ["c"], sparse_value=sparse)])
    elif form == "text":
        source = graph_of([helper.make_node("Constant", [], ["c"], value_string="text")])
    elif form == "int4":
        source = graph_of([], helper.make_tensor("c", TensorProto.INT4, [2], [1, -1]))
    else:
        item.data_location = TensorProto.EXTERNAL
        item.external_data.add(key="location", value="absent.bin")
        source = graph_of([], item)
    with pytest.raises(GraphError, match="constant 'c' ") as caught:
        constants(source)
    assert "\n" not in str(caught.value)


def test_the_inputs_of_a_node_are_its_tensors_and_none_where_one_is_left_out():
    node, *_ = nodes_of(("x  b", "y"))
    values = {"x": torch.zeros(1), "b": torch.ones(1), "other": torch.ones(1)}
    found = inputs_of(node, values)
    assert found[0] is values["x"]
    assert found[1] is None
    assert found[2] is values["b"]
