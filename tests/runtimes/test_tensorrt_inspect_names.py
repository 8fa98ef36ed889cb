"""Names and types in an engine's layer table, as the inspector of each generation writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.tensorrt.inspect_names import is_quantiser, kernel_operators, modules_of, nodes_of, profile_of, spans_of
from runtimes.tensorrt.inspect_types import precision_of, read_tensor, tactic_type, type_in
from tests.runtimes.engine_documents import TACTICS

# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("layer1.0.conv1 + layer1.0.relu", ["layer1.0.conv1", "layer1.0.relu"]),
        ("conv1.weight + QuantizeLinear_7 + Conv_9", ["conv1.weight", "QuantizeLinear_7", "Conv_9"]),
        ("a.conv + a.relu || b.conv + b.relu", ["a.conv", "a.relu", "b.conv", "b.relu"]),
        ("layer1.0.conv2 + PWN(layer1.0.add)", ["layer1.0.conv2", "layer1.0.add"]),
        ("PWN(PWN(sub), PWN(div))", ["sub", "div"]),
        ("Reformatting CopyNode for Input Tensor 0 to a.conv + a.relu", ["a.conv", "a.relu"]),
        ("Reformatting CopyNode for Output Tensor 12 to fc", ["fc"]),
        ("layer1.0.add copy", ["layer1.0.add"]),
        ("QuantizeLinear_20_quantize_scale_node", ["QuantizeLinear_20"]),
        ("{ForeignNode[layer1.0.conv1...layer1.0.relu_1]}", ["layer1.0.conv1", "layer1.0.relu_1"]),
        ("layer1.0.conv1+layer1.0.relu_myl0_7", ["layer1.0.conv1", "layer1.0.relu"]),
        ("__myl_CastMulAdd_myl0_8", []),
        ("(Unnamed Layer* 360) [Shuffle]", []),
        ("fc + (Unnamed Layer* 360) [Shuffle] + unsqueeze_node_after_fc.bias + (Unnamed Layer* 361) [ElementWise]",
         ["fc"]),
        ("copied_squeeze_after_(Unnamed Layer* 361) [ElementWise]", []),
        ("conv1 + relu [profile 1]", ["conv1", "relu"]),
        ("/model.4/cv2/Conv + /model.4/act(1)", ["/model.4/cv2/Conv", "/model.4/act(1)"]),
    ],
)  # fmt: skip
def test_a_name_tells_the_nodes(name: str, nodes: list[str]) -> None:
    assert list(nodes_of(name)) == nodes


@pytest.mark.parametrize("separator", ["\x1e", "\x1f", "", "\ufffd"])
def test_metadata_is_believed_before_the_name(separator: str) -> None:
    told = separator.join(["[ONNX Layer: layer1.0.conv1]", "[ONNX Layer: layer1.0.relu]"])
    assert nodes_of("__myl_ConvRelu_myl0_3", told) == ("layer1.0.conv1", "layer1.0.relu")
    assert nodes_of("another + name", told) == ("layer1.0.conv1", "layer1.0.relu")
    assert nodes_of("x", "[ONNX Layer: odd[0]]" + separator + "[ONNX Layer: b]") == ("odd[0]", "b")


_PATHS = st.from_regex(r"[a-z][a-z0-9_]{0,8}(?:\.[a-z0-9_]{1,8}){0,4}", fullmatch=True).filter(
    lambda path: not path.startswith("__my") and "_myl" not in path and not path.endswith("_scale_node")
    and "_clone_" not in path and "_before_" not in path and "_after_" not in path
)  # fmt: skip


@given(st.lists(_PATHS, min_size=1, max_size=5, unique=True), st.sampled_from([" + ", " || ", ", "]))
def test_every_module_path_comes_back_from_a_fused_name(paths: list[str], joint: str) -> None:
    assert list(nodes_of(joint.join(paths))) == paths
    assert list(nodes_of("PWN(" + ", ".join(f"PWN({path})" for path in paths) + ")")) == paths
    assert list(nodes_of("whatever", "\x1e".join(f"[ONNX Layer: {path}]" for path in paths))) == paths


@given(st.text(), st.text())
def test_no_name_is_too_odd(name: str, told: str) -> None:
    assert all(isinstance(node, str) and node for node in nodes_of(name, told))
    assert kernel_operators(name) == tuple(kernel_operators(name))
    assert profile_of(name) >= 0


def test_parts_of_another_compiler_are_named_by_their_ends() -> None:
    assert spans_of("{ForeignNode[conv1.weight + conv1...layer4.1.relu]}") == (("conv1", "layer4.1.relu"),)
    assert spans_of("conv1 + relu") == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu.quantized", True),
        ("relu.dequantized", True),
        ("conv1.weight.dequantized", True),
        ("QuantizeLinear_12", True),
        ("/conv1/DequantizeLinear", True),
        ("conv1.weight_QuantizeLinear", True),
        ("layer1.0.conv1", False),
        ("quantized.conv1", False),
        ("NotQuantizeLinearAtAll", False),
    ],
)
def test_q_and_dq_are_known_by_name(name: str, expected: bool) -> None:
    assert is_quantiser(name) is expected


def test_constants_and_quantisers_are_no_modules() -> None:
    assert modules_of(nodes_of("conv1.weight + QuantizeLinear_7 + Conv_9")) == ("Conv_9",)
    names = ("fc.weight.quantized", "fc.weight.dequantized", "fc", "fc.bias.float", "bias_net.0", "weight")
    assert modules_of(names) == ("fc", "bias_net.0", "weight")


# -- types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Row major linear FP32", "FP32"),
        ("Row major linear FP32 format (kLINEAR)", "FP32"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "INT8"),
        ("Channel major INT8 format where column stride % 32 == 0", "INT8"),
        ("Channel major FP16 format where channel % 4 == 0", "FP16"),
        ("Two wide channel vectorized row major BFloat16 format", "BF16"),
        ("Row major linear FP8 format", "FP8"),
        ("Row major linear UInt8 format", "UINT8"),
        ("Row major linear Int32", "INT32"),
        ("Half", "FP16"),
        ("Float", "FP32"),
        ("BFloat16", "BF16"),
        ("Row major linear BOOL", "BOOL"),
        ("N/A due to dynamic shapes", None),
        ("Unknown format", None),
        ("", None),
    ],
)
def test_a_description_names_a_type(text: str, expected: str | None) -> None:
    assert type_in(text) == expected


@pytest.mark.parametrize(
    ("tactic", "expected"),
    [
        *((TACTICS[name], name) for name in ("INT8", "FP16", "FP32", "TF32")),
        ("volta_int8x4_icudnn_int8x4_128x32_relu_xregs_small_c32_nn_v1", "INT8"),
        ("ampere_h16816cudnn_128x128_ldg8_relu_exp_stages_64x3_large_nhwc_tn_v1", "FP16"),
        ("trt_turing_cutlass_image_network_first_layer_hmma_fprop_f16f16f32_nhwc_nhwc_k64r7s7c4_stride2x2", "FP16"),
        ("sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc", "TF32"),
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_nchw_vect_c_32kcrs", "INT8"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "BF16"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", "FP8"),
        ("0x0000000000000461", None),
    ],
)
def test_a_kernel_is_named_after_what_it_multiplies(tactic: str, expected: str | None) -> None:
    assert tactic_type(tactic) == expected


def test_a_type_beside_the_layout_is_believed_before_it() -> None:
    assert read_tensor({"Name": "x", "Format": "LINEAR", "DataType": "Half"}).type == "FP16"
    assert read_tensor({"Name": "x", "Format": "Row major linear FP32", "Datatype": "Int8"}).type == "INT8"
    assert read_tensor({"Name": "x", "Shape": [1, "batch"], "Format": "Row major linear FP32"}) == (
        "x", (1, -1), "FP32", "Row major linear FP32"
    )  # fmt: skip


def test_a_layer_with_weights_computes_in_the_type_of_data_and_weights() -> None:
    def told(data: str | None, weights: str | None, tactic: str = "") -> str | None:
        return precision_of([data], ["FP32"], weighted=True, weights=weights, tactic=tactic)

    assert told("INT8", "INT8") == "INT8"  # whatever it writes
    assert told("FP32", "FP32", TACTICS["TF32"]) == "TF32"
    assert told(None, "INT8") == "INT8"
    assert told(None, None, TACTICS["INT8"]) == "INT8"
    assert told("FP16", "FP16", TACTICS["TF32"]) == "FP16"  # only FP32 tensors can be multiplied as TF32
    # A conversion inside the kernel is proven by the kernel's name alone.
    assert told("FP32", "INT8") == "FP32"
    assert told("INT8", "FP32") == "FP32"
    assert told("FP32", "INT8", TACTICS["INT8"]) == "INT8"


def test_a_layer_without_weights_computes_in_its_widest_input() -> None:
    def told(*inputs: str | None, tactic: str = "") -> str | None:
        return precision_of(inputs, ["INT8"], weighted=False, weights=None, tactic=tactic)

    assert told("INT8", "INT8") == "INT8"
    assert told("INT8", "FP16") == "FP16"
    assert told("FP16", "INT64") == "FP16"
    assert told("INT64") == "INT64"
    assert told() == "INT8"  # a constant: what it writes
