from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from exporter.graph.capture import InputShape
from exporter.graph.check import operator_counts, structural_faults
from tests.exporter.graphs import onnx_model

SHAPE = InputShape(3, 8, 8)


def sound() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["input"], ["relu"]),
        helper.make_node("BatchNormalization", ["relu", "s", "s", "s", "s"], ["norm"]),
        helper.make_node("GlobalAveragePool", ["norm"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["logits"]),
    ]
    model = onnx_model(nodes, [helper.make_tensor("s", TensorProto.FLOAT, [3], [1.0] * 3)], opset=17)
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    model.graph.output[0].CopyFrom(result)
    return model


def faults(plant: Callable[[onnx.ModelProto], object], shape: InputShape = SHAPE) -> list[str]:
    model = sound()
    plant(model)
    return structural_faults(model, shape, 17, 1)


def input_dim(model: onnx.ModelProto, axis: int) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim[axis]


def test_a_sound_graph_has_no_fault() -> None:
    assert faults(lambda model: None) == []


def test_a_graph_that_the_checker_refuses_is_a_fault() -> None:
    found = faults(lambda model: model.graph.node[0].input.__setitem__(0, "nowhere"))
    assert [fault.split(":")[0] for fault in found] == ["the ONNX checker refuses it"]
    assert "\n" not in found[0]


def test_types_that_do_not_fit_are_a_fault() -> None:
    def plant(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT16, [1], [1.0]))
        model.graph.node[0].CopyFrom(helper.make_node("Add", ["input", "half"], ["relu"], name="relu"))

    assert any("checker" in fault for fault in faults(plant))


def test_another_opset_is_a_fault() -> None:
    assert "it is in opset 18, not 17" in faults(lambda model: setattr(model.opset_import[0], "version", 18))


def test_a_norm_too_many_is_a_fault() -> None:
    assert structural_faults(sound(), SHAPE, 17, 0) == ["it has 1 BatchNormalization nodes, expected 0"]


@pytest.mark.parametrize("name", ["", "relu"])
def test_missing_and_repeated_names_are_a_fault(name: str) -> None:
    assert faults(lambda model: setattr(model.graph.node[2], "name", name)) == [
        "its node names are missing or not unique"
    ]


@pytest.mark.parametrize(
    ("axis", "size", "shown"),
    [(0, 2, "[2, 3, 8, 8]"), (2, 9, "[free, 3, 9, 8]"), (3, 7, "[free, 3, 8, 7]")],
)
def test_another_input_size_is_a_fault(axis: int, size: int, shown: str) -> None:
    found = faults(lambda model: setattr(input_dim(model, axis), "dim_value", size))
    assert f"its input is {shown}, expected [free, 3, 8, 8]" in found


def test_a_free_size_that_was_not_asked_for_is_a_fault() -> None:
    found = faults(lambda model: setattr(input_dim(model, 2), "dim_param", "height"))
    assert found == ["its input is [free, 3, free, 8], expected [free, 3, 8, 8]"]


def test_a_fixed_size_where_a_free_one_was_asked_for_is_a_fault() -> None:
    found = faults(lambda model: None, InputShape(3, 8, 8, dynamic_size=True))
    assert found == ["its input is [free, 3, 8, 8], expected [free, 3, free, free]"]


def test_a_free_batch_where_a_fixed_one_was_asked_for_is_a_fault() -> None:
    found = faults(lambda model: None, InputShape(3, 8, 8, batch=4))
    assert any("its input is" in fault for fault in found)
    assert any("its output has 2 dimensions and batch free" in fault for fault in found)


def test_an_output_whose_batch_is_frozen_is_a_fault() -> None:
    def plant(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1

    assert any("batch 1, expected 2 and free" in fault for fault in faults(plant))


def test_an_output_of_another_rank_is_a_fault() -> None:
    def plant(model: onnx.ModelProto) -> None:
        del model.graph.node[3]
        model.graph.node[2].output[0] = "logits"
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 1, 1]))

    assert any("its output has 4 dimensions" in fault for fault in faults(plant))


def test_a_second_output_is_a_fault() -> None:
    def plant(model: onnx.ModelProto) -> None:
        model.graph.output.append(helper.make_tensor_value_info("relu", TensorProto.FLOAT, ["batch", 3, 8, 8]))

    assert faults(plant) == ["it has 1 inputs and 2 outputs, expected one of each"]


def test_every_fault_is_reported_at_once() -> None:
    def plant(model: onnx.ModelProto) -> None:
        model.graph.node[2].name = ""
        model.opset_import[0].version = 16
        input_dim(model, 1).dim_value = 3
        input_dim(model, 2).dim_value = 4

    assert len(faults(plant)) == 3


def test_operators_are_counted_with_the_most_frequent_first() -> None:
    model = sound()
    model.graph.node.append(helper.make_node("Relu", ["pool"], ["again"], name="again"))
    assert next(iter(operator_counts(model).items())) == ("Relu", 2)


def test_other_names_types_and_classes_are_faults() -> None:
    assert faults(lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT16))[
        -1
    ] == ("its input is FLOAT16, expected FLOAT")
    model = sound()
    assert structural_faults(model, SHAPE, 17, 1, classes=4) == ["its output has 3 logits, expected 4"]
    assert structural_faults(model, SHAPE, 17, 1, classes=3) == []
    renamed = sound()
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "scores"
    assert structural_faults(renamed, SHAPE, 17, 1) == ["its 'logits' is called 'scores'"]
