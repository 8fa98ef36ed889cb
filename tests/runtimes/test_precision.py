from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from runtimes.precision import carried, computed
from tests.runtimes.models import onnx_linear, weights


@pytest.mark.parametrize(
    ("elements", "precision"),
    [(TensorProto.FLOAT, "fp32"), (TensorProto.FLOAT16, "fp16"), (TensorProto.BFLOAT16, "bf16")],
)
def test_an_onnx_file_has_the_precision_of_its_weights(tmp_path, elements, precision):
    onnx.save(onnx_linear(weights(), elements=elements), tmp_path / "model.onnx")
    assert carried(onnx.load(tmp_path / "model.onnx")) == precision


def test_weights_in_other_files_need_not_be_there(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(onnx_linear(weights()), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    assert carried(onnx.load(path, load_external_data=False)) == "fp32"


@pytest.mark.parametrize("operator", ["ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QLinearConv"])
def test_a_file_of_integer_operators_is_int8_without_any_q_dq(operator):
    graph = helper.make_graph([helper.make_node(operator, ["x", "w"], ["y"])], "g", [], [])
    assert carried(helper.make_model(graph)) == "int8"


@pytest.mark.parametrize(
    ("own", "options", "expected"),
    [
        ("fp32", {}, "fp32"),
        ("fp32", {"dtype": "float16"}, "fp16"),
        ("fp32", {"dtype": "bfloat16"}, "bf16"),
        ("fp32", {"precision": "bf16", "threads": 2}, "bf16"),
        ("fp32", {"tf32": True}, "tf32"),
        ("fp32", {"tf32": True, "dtype": "float16"}, "fp16"),
        ("fp16", {"precision": "f32"}, "fp16"),
        ("int8", {"precision": "bf16", "tf32": True}, "int8"),
        (None, {"dtype": "float16"}, None),
        ("fp16", {"precision": "bf16"}, "bf16"),
        ("bf16", {"precision": "f16"}, "bf16"),
    ],
)
def test_a_model_is_computed_in_its_own_precision_or_the_lower_one_asked_for(own, options, expected):
    assert computed(own, options) == expected
