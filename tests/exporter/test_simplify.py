from __future__ import annotations

from collections.abc import Callable

import onnx
import onnxsim
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.check import structural_faults
from exporter.graph.export import export
from exporter.graph.metadata import read_metadata, write_metadata
from exporter.graph.simplify import simplify
from tests.exporter.graphs import SHAPE, cifar, conv_norm, evaluate, folded, images, onnx_model, ort_run, sqnr


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return export(folded(cifar()).captured, 17, "torch.export")


def redundant() -> onnx.ModelProto:
    """A Transpose pair and an Identity that a simplifier removes."""
    nodes = [
        helper.make_node("Transpose", ["input"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["t"], ["u"], perm=[0, 3, 1, 2]),
        helper.make_node("Identity", ["u"], ["i"]),
        helper.make_node("Relu", ["i"], ["r"]),
        helper.make_node("Flatten", ["r"], ["logits"]),
    ]
    return onnx_model(nodes, opset=17)


def replaced(monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.ModelProto], object]) -> None:
    def fake(model: onnx.ModelProto, **_: object) -> tuple[onnx.ModelProto, bool]:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        change(copy)
        return copy, True

    monkeypatch.setattr(onnxsim, "simplify", fake)


def test_a_candidate_computes_the_same_and_keeps_the_interface(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    result = simplify(model)
    assert model.SerializeToString(deterministic=True) == before
    assert result.model is not None
    assert result.reason == ""
    assert list(result.model.graph.input) == list(model.graph.input)
    assert list(result.model.graph.output) == list(model.graph.output)
    assert result.model.ir_version == model.ir_version
    assert not result.model.graph.value_info
    assert structural_faults(result.model, SHAPE, 17, 0) == []
    assert sqnr(evaluate(cifar(), images(7)), ort_run(result.model, images(7))) >= 100
    names = {node.name for node in model.graph.node}
    for node in result.model.graph.node:
        assert node.name in names  # fused nodes too: a module path survives
        assert node.output[0] in (node.name, "logits")


def test_what_was_removed_is_counted() -> None:
    result = simplify(redundant())
    assert result.removed in ({"Transpose": 2, "Identity": 1}, {"Transpose": 1, "Identity": 1})  # onnxsim 0.8, 0.7


def test_metadata_survives(model: onnx.ModelProto) -> None:
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    write_metadata(marked, {"precision": "fp32", "classes": {"count": 10}})
    result = simplify(marked)
    assert result.model is not None
    assert read_metadata(result.model) == {"precision": "fp32", "classes": {"count": 10}}
    assert result.model.producer_name == "resnet-export"


def test_the_same_graph_is_simplified_to_the_same_bytes(model: onnx.ModelProto) -> None:
    first, second = simplify(model).model, simplify(model).model
    assert first is not None
    assert second is not None
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.parametrize("error", [RuntimeError("boom\nlong story"), ValueError("boom"), KeyError("boom")], ids=repr)
def test_a_simplifier_that_raises_costs_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(onnxsim, "simplify", fail)
    result = simplify(redundant())
    assert (result.model, result.removed) == (None, {})
    assert result.reason.startswith("onnxsim failed: ")
    assert "boom" in result.reason
    assert "\n" not in result.reason


def test_a_simplifier_that_gives_nothing_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxsim, "simplify", lambda *_, **__: (None, False))
    result = simplify(redundant())
    assert result.model is None
    assert "onnxsim" in result.reason


@pytest.mark.parametrize("role", ["input", "output"])
def test_a_renamed_interface_is_refused(monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    replaced(monkeypatch, lambda copy: setattr(getattr(copy.graph, role)[0], "name", "other"))
    result = simplify(redundant())
    assert result.model is None
    assert f"changed the {role}" in result.reason
    assert "other" in result.reason


def test_dropped_node_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, lambda copy: setattr(copy.graph.node[2], "name", ""))
    result = simplify(redundant())
    assert (result.model, result.reason) == (None, "onnxsim dropped node names")


def test_a_frozen_batch_and_a_newer_format_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze(copy: onnx.ModelProto) -> None:
        copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        copy.ir_version = 99
        copy.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 3, 8, 8]))

    replaced(monkeypatch, freeze)
    result = simplify(redundant())
    assert result.model is not None
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert result.model.ir_version == redundant().ir_version
    assert not result.model.graph.value_info


def test_a_changed_result_is_left_to_parity_and_does_not_touch_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    model = export(folded(conv_norm()).captured, 17, "torch.export")

    def spoil(copy: onnx.ModelProto) -> None:
        weight = next(tensor for tensor in copy.graph.initializer if tensor.name == "conv.weight")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))

    before = ort_run(model, images())
    replaced(monkeypatch, spoil)
    result = simplify(model)
    assert result.model is not None
    assert sqnr(before, ort_run(result.model, images())) < 40
    assert sqnr(before, ort_run(model, images())) > 200
