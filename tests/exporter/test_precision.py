from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from exporter.graph.export import Exporter, export
from exporter.graph.precision import to_fp16
from runtimes.errors import GraphError
from tests.exporter.graphs import (
    SHAPE,
    Net,
    bottleneck,
    cifar,
    evaluate,
    folded,
    images,
    net,
    onnx_model,
    operators,
    ort_run,
    pre_activation,
    sqnr,
)

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
MAKERS = {"a": cifar, "b": lambda: cifar("B"), "bottleneck": bottleneck, "preact": pre_activation}


def values_of(model: onnx.ModelProto, element: int) -> set[str]:
    """Every tensor of an element type, by strict inference over the whole graph."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    typed = {value.name for value in (*graph.value_info, *graph.input, *graph.output) if is_of(value, element)}
    return typed | {tensor.name for tensor in graph.initializer if tensor.data_type == element}


def is_of(value: onnx.ValueInfoProto, element: int) -> bool:
    return value.type.tensor_type.elem_type == element


def assert_true_fp16(model: onnx.ModelProto, kept: frozenset[str] = frozenset()) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert values_of(model, FLOAT) == {"input", "logits"} | kept
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.attribute[0].i in (FLOAT, HALF)]
    assert casts[0].input[0] == "input"
    assert casts[-1].output[0] == "logits"


def refusal(model: onnx.ModelProto) -> str:
    with pytest.raises(GraphError) as caught:
        to_fp16(model)
    text = str(caught.value)
    assert "\n" not in text
    assert "--precision fp32" in text
    return text


def scaled(weight: np.ndarray, name: str = "w") -> onnx.ModelProto:
    """``logits = flatten(input * w)``."""
    nodes = [helper.make_node("Mul", ["input", name], ["m"]), helper.make_node("Flatten", ["m"], ["logits"])]
    return onnx_model(nodes, [numpy_helper.from_array(np.asarray(weight, np.float32), name)], opset=17)


@pytest.mark.parametrize("exporter", ["torch.export", "torchscript"])
@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", MAKERS)
def test_everything_between_input_and_output_is_fp16(name: str, opset: int, exporter: Exporter) -> None:
    module = MAKERS[name]()
    model = export(folded(module).captured, opset, exporter)
    before = model.SerializeToString(deterministic=True)
    half = to_fp16(model).model
    assert model.SerializeToString(deterministic=True) == before
    assert_true_fp16(half)
    for count in (1, 7):
        output = ort_run(half, images(count))
        assert output.dtype == np.float32
        assert sqnr(evaluate(module, images(count)), output) >= 40


def test_without_kept_io_there_is_no_cast_and_no_fp32() -> None:
    module = cifar()
    half = to_fp16(export(folded(module).captured, 17, "torch.export"), keep_io=False).model
    assert values_of(half, FLOAT) == set()
    assert "Cast" not in operators(half)
    assert is_of(half.graph.input[0], HALF)
    assert is_of(half.graph.output[0], HALF)
    output = ort_run(half, images().half())
    assert output.dtype == np.float16
    assert sqnr(evaluate(module, images()), output) >= 40


@pytest.mark.parametrize("value", [65505.0, -1e5, 3e38])
def test_a_value_beyond_fp16_is_refused_by_name(value: float) -> None:
    text = refusal(scaled(np.array([1.0, value]).repeat(4), "layer1.0.conv1.weight"))
    assert text.startswith(f"layer1.0.conv1.weight has a value of {abs(value):g}")
    assert "65504" in text


@pytest.mark.parametrize("value", [65504.0, -65504.0, np.inf, -np.inf])
def test_a_value_that_fp16_holds_is_kept(value: float) -> None:
    (tensor,) = to_fp16(scaled(np.array([value]))).model.graph.initializer
    assert numpy_helper.to_array(tensor).tolist() == [value]


def test_weights_that_become_zero_are_counted() -> None:
    half = to_fp16(scaled(np.array([0.0, 1e-9, -2e-8, 1e-7, 1.0, -0.0, 5e-8, 2.0])))
    assert half.underflows == 2


def test_the_worst_relative_error_is_that_of_normal_weights() -> None:
    values = np.array([1.0, 1.0 + 2**-11, 3.0, 1e-7, 0.0, 2.0, 4.0, 8.0])
    assert to_fp16(scaled(values)).worst_relative == pytest.approx(2**-11, rel=1e-3)
    assert to_fp16(scaled(np.zeros(8))).worst_relative == 0.0


def test_weights_round_to_nearest_even() -> None:
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-20, -1 - 2**-12] * 2)
    (tensor,) = to_fp16(scaled(values)).model.graph.initializer
    assert numpy_helper.to_array(tensor).tolist() == [1.0, 1 + 2**-9, 1 + 2**-10, -1.0] * 2


def constant_graph(**attribute: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Constant", [], ["c"], **attribute),
        helper.make_node("Mul", ["input", "c"], ["m"]),
        helper.make_node("Flatten", ["m"], ["logits"]),
    ]
    return onnx_model(nodes, opset=17)


@pytest.mark.parametrize(
    "attribute",
    [
        {"value": numpy_helper.from_array(np.array([2.0], np.float32))},
        {"value_float": 2.0},
        {"value_floats": [2.0]},
    ],
    ids=["value", "value_float", "value_floats"],
)
def test_constants_in_attributes_become_fp16(attribute: dict[str, Any]) -> None:
    half = to_fp16(constant_graph(**attribute)).model
    assert_true_fp16(half)
    assert sqnr((images() * 2).flatten(1), ort_run(half, images())) >= 60


def test_an_overflow_in_an_attribute_names_its_node() -> None:
    tensor = numpy_helper.from_array(np.array([1e6], np.float32))
    assert refusal(constant_graph(value=tensor)).startswith("c has a value of 1e+06")


@pytest.mark.parametrize("explicit", [True, False])
def test_a_constant_of_shape_becomes_fp16(explicit: bool) -> None:
    attributes: dict[str, Any] = {"value": numpy_helper.from_array(np.zeros(1, np.float32))} if explicit else {}
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], **attributes),
        helper.make_node("Add", ["input", "zeros"], ["sum"]),
        helper.make_node("Flatten", ["sum"], ["logits"]),
    ]
    half = to_fp16(onnx_model(nodes, [numpy_helper.from_array(np.array([1], np.int64), "shape")], opset=17)).model
    assert_true_fp16(half)
    assert sqnr(images().flatten(1), ort_run(half, images())) >= 60


def test_casts_to_fp32_become_casts_to_fp16() -> None:
    nodes = [
        helper.make_node("Greater", ["input", "zero"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["ones"], to=FLOAT),
        helper.make_node("Mul", ["input", "ones"], ["m"]),
        helper.make_node("Flatten", ["m"], ["logits"]),
    ]
    half = to_fp16(onnx_model(nodes, [helper.make_tensor("zero", FLOAT, [1], [0.0])], opset=17)).model
    assert_true_fp16(half)
    assert sqnr(torch.relu(images()).flatten(1), ort_run(half, images())) >= 60


@pytest.mark.parametrize("exporter", ["torch.export", "torchscript"])
def test_clips_and_pads_with_values_become_fp16(exporter: Exporter) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = F.pad(F.relu6(m.conv(x)), (1, 1, 1, 1), value=0.5)
        y = torch.clamp(y, -1.25, 2.5)
        y = F.max_pool2d(F.pad(y, (1, 1, 1, 1), value=float("-inf")), 3, 2)
        return m.fc(y.mean((2, 3)))  # type: ignore[no-any-return]

    module = net(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 5))
    half = to_fp16(export(folded(module).captured, 17, exporter)).model
    assert {"Clip", "Pad"} <= set(operators(half))
    assert_true_fp16(half)
    assert sqnr(evaluate(module, images()), ort_run(half, images())) >= 50


@pytest.mark.parametrize("opset", [13, 17])
def test_the_scales_of_a_resize_stay_fp32(opset: int) -> None:
    nodes = [
        helper.make_node("Resize", ["input", "", "scales"], ["big"], mode="nearest"),
        helper.make_node("Flatten", ["big"], ["logits"]),
    ]
    model = onnx_model(nodes, [helper.make_tensor("scales", FLOAT, [4], [1.0, 1.0, 2.0, 2.0])], opset=opset)
    half = to_fp16(model).model
    assert_true_fp16(half, frozenset({"scales"}))
    assert sqnr(ort_run(model, images()), ort_run(half, images())) >= 60


@pytest.mark.parametrize("kind", ["value", "value_floats"])
def test_the_scales_of_a_resize_stay_fp32_in_a_constant_node(kind: str) -> None:
    scales = [1.0, 1.0, 2.0, 2.0]
    given: Any = {"value": numpy_helper.from_array(np.array(scales, np.float32)), "value_floats": scales}[kind]
    nodes = [
        helper.make_node("Constant", [], ["scales"], **{kind: given}),
        helper.make_node("Resize", ["input", "", "scales"], ["big"], mode="nearest"),
        helper.make_node("Flatten", ["big"], ["logits"]),
    ]
    assert_true_fp16(to_fp16(onnx_model(nodes, opset=17)).model, frozenset({"scales"}))


def test_an_upsampling_network_exports_to_fp16() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        return m.fc(F.interpolate(m.conv(x), scale_factor=2.0, mode="nearest").mean((2, 3)))  # type: ignore[no-any-return]

    module = net(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 5))
    half = to_fp16(export(folded(module).captured, 18, "torch.export")).model
    assert "Resize" in operators(half)
    assert sqnr(evaluate(module, images()), ort_run(half, images())) >= 50


def test_computed_scales_are_refused_by_node() -> None:
    nodes = [
        helper.make_node("Abs", ["scales"], ["computed"]),
        helper.make_node("Resize", ["input", "", "computed"], ["big"], mode="nearest", name="neck.up"),
        helper.make_node("Flatten", ["big"], ["logits"]),
    ]
    model = onnx_model(nodes, [helper.make_tensor("scales", FLOAT, [4], [1.0, 1.0, 2.0, 2.0])], opset=17)
    assert refusal(model).startswith("neck.up: Resize takes computed in FP32 only")


def test_a_constant_that_both_kinds_of_operator_read_is_refused() -> None:
    nodes = [
        helper.make_node("Resize", ["input", "", "s"], ["big"], mode="nearest"),
        helper.make_node("ReduceSum", ["s"], ["total"], keepdims=0),
        helper.make_node("Mul", ["big", "total"], ["m"]),
        helper.make_node("Flatten", ["m"], ["logits"]),
    ]
    refusal(onnx_model(nodes, [helper.make_tensor("s", FLOAT, [4], [1.0, 1.0, 2.0, 2.0])], opset=17))


def test_an_operator_that_makes_fp32_by_itself_is_refused_by_name() -> None:
    nodes = [
        helper.make_node("EyeLike", ["mask"], ["eye"], dtype=FLOAT),
        helper.make_node("ReduceSum", ["eye"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["count"], to=TensorProto.INT64),
        helper.make_node("Cast", ["count"], ["scale"], to=FLOAT),
        helper.make_node("Mul", ["input", "scale"], ["m"]),
        helper.make_node("Flatten", ["m"], ["logits"]),
    ]
    mask = numpy_helper.from_array(np.ones((2, 2), np.int64), "mask")
    assert refusal(onnx_model(nodes, [mask], opset=17)).startswith("eye stays FP32")


def test_a_quantized_graph_is_refused() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Flatten", ["d"], ["logits"]),
    ]
    constants = [helper.make_tensor("scale", FLOAT, [], [0.1]), helper.make_tensor("zero", TensorProto.INT8, [], [0])]
    refusal(onnx_model(nodes, constants, opset=17))


def test_the_shape_of_the_input_survives() -> None:
    model = export(folded(cifar()).captured, 17, "torch.export")
    half = to_fp16(model, keep_io=False).model
    for before, after in ((model.graph.input[0], half.graph.input[0]), (model.graph.output[0], half.graph.output[0])):
        assert before.type.tensor_type.shape == after.type.tensor_type.shape
    assert SHAPE.channels == half.graph.input[0].type.tensor_type.shape.dim[1].dim_value
