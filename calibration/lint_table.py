"""The rules of the linter as one table: what is looked for, for whom, how bad it is, why, and what to do about it.

A row's ``error`` is what the target refuses or computes wrongly, its ``warning`` what is slow or loses accuracy, its
``note`` what is worth knowing. Reasons that name versions were tried: TensorRT-RTX 1.7.1's parser and builder, ONNX
Runtime 1.19 to 1.32 and OpenVINO 2026.4 on an x86 CPU. The rest is NVIDIA's developer guide on explicit quantisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

from calibration import lint_onnxruntime as ort
from calibration import lint_placement as place
from calibration import lint_rules as common
from calibration.lint_graph import QuantisedGraph
from calibration.placement import TARGETS

Severity = Literal["error", "warning", "note"]
Find = Callable[[QuantisedGraph], Iterable[common.Hit]]


class Rule(NamedTuple):
    """One row.

    Attributes:
        id: Name of the rule; a target has each name once.
        targets: For whom.
        severity: How bad it is for them.
        reason: Why it matters to them.
        advice: What to do.
        find: The function that finds the places.
    """

    id: str
    targets: frozenset[str]
    severity: Severity
    reason: str
    advice: str
    find: Find


_ALL: Final = frozenset(TARGETS)
_TRT: Final = frozenset({"tensorrt"})
_ORT: Final = frozenset({"onnxruntime"})
_OV: Final = frozenset({"openvino"})

_NO_RANGE: Final = "calibrate again: a tensor that is always 0 and a range with NaN give such scales"
_MATCH: Final = "give the DequantizeLinear the scale, zero point and axis of its QuantizeLinear"
_SYMMETRIC: Final = "quantise symmetrically: int8, zero point 0, scale = largest magnitude / 127"
_PER_TENSOR: Final = "give the activation one scale; put what differs between channels into the weights"
_Q_BEHIND: Final = "put QuantizeLinear and DequantizeLinear behind it, the only thing that takes its output"
_Q_BEFORE: Final = "put QuantizeLinear and DequantizeLinear before it, with nothing but MaxPool or Reshape between"
_OUTPUT_AXIS: Final = "axis 0 for Conv and for Gemm with transB, 1 for Gemm without it, the last one for MatMul"
_BOTH: Final = "quantise its input and its weights"
_FIRST: Final = "it is a few percent of the work, and often left so for accuracy"
_FIRST_TOO: Final = "quantise it too where speed counts"
_CLASSIFIER: Final = "it runs in float: little work, but its weights are not small"
_WEIGHTS: Final = "one scale for each output channel, int8, zero point 0"

RULES: Final[tuple[Rule, ...]] = (
    # What no runtime can use.
    Rule("scale", _TRT, "error", "TensorRT refuses scales that are not positive numbers", _NO_RANGE, common.bad_scales),
    Rule("scale", _ORT | _OV, "error", "the file loads and gives wrong numbers or NaN", _NO_RANGE, common.bad_scales),
    Rule("scale-computed", _TRT, "error", "TensorRT needs scales when it builds the engine",
         "use static quantisation", common.computed_scales),
    Rule("scale-computed", _ORT | _OV, "warning", "only constant scales lead to integer kernels",
         "use static quantisation", common.computed_scales),
    Rule("unpaired", _ALL, "warning", "integers that are not read as integers lead to no integer kernel",
         "put a DequantizeLinear behind each QuantizeLinear, or take the single one out", common.lonely),
    Rule("rounded-twice", _ALL, "warning", "each rounding costs accuracy and, unless it can be merged, a pass over the "
         "memory; ONNX Runtime merges the two and changes the scale", "quantise a tensor once, with one scale",
         common.rescaled_chains),
    Rule("pair-mismatch", _ALL, "warning", "what is read is not what was written", _MATCH, common.mismatched_pairs),
    Rule("input-reinterpreted", _TRT, "warning", "what is read is not what was written", _MATCH,
         common.reinterpreted_inputs),
    Rule("input-reinterpreted", _ORT | _OV, "note", "8-bit pixels are taken in as they are; the first convolution's "
         "weights have to make up for it", "nothing, where this is meant", common.reinterpreted_inputs),
    # Which integers.
    Rule("zero-point", _TRT, "error", "TensorRT has symmetric quantisation only, and refuses the file", _SYMMETRIC,
         place.asymmetric),
    Rule("unsigned", _TRT, "error", "TensorRT refuses uint8, or reads it as int8 (10.x): values above 127 steps are "
         "cut off", _SYMMETRIC, place.unsigned),
    Rule("zero-point-missing", _TRT, "warning", "TensorRT takes it for int8: the file means another network there than "
         "in ONNX Runtime", "write the zero point: int8, 0", place.zero_left_out),
    Rule("int32", _TRT, "error", "DequantizeLinear of int32 is refused, as onnxruntime.quantization writes for biases",
         "leave biases in float: extra_options={'QuantizeBias': False} there", place.integer_biases),
    Rule("integer-type", _TRT, "error", "TensorRT has no such integers", _SYMMETRIC, place.wide_integers),
    Rule("integer-type", _OV, "warning", "kernels with 16-bit integers are missing: the layers run in float",
         "quantise activations to 8 bits", place.wide_activations),
    Rule("integer-operator", _TRT, "error", "TensorRT's parser knows QuantizeLinear and DequantizeLinear only",
         "write the file in QDQ format, not in QOperator format", place.integer_operators),
    Rule("activation-per-channel", _TRT, "error", "TensorRT quantises activations per tensor only", _PER_TENSOR,
         common.per_channel_activations),
    Rule("activation-per-channel", _ORT, "error", "the file loads, and QLinearConv stops when it runs", _PER_TENSOR,
         common.per_channel_kernels),
    Rule("activation-per-channel", _OV, "warning", "the convolutions behind it run in float", _PER_TENSOR,
         common.per_channel_reads),
    Rule("opset", _TRT, "error", "TensorRT 11 ends there", "export with opset 17, which every TensorRT since 8.4 reads",
         place.unreadable_opset),
    Rule("opset-new", _TRT, "note", "an older TensorRT refuses the file", "use opset 17, or 13 for JetPack 4.6",
         place.demanding_opset),
    Rule("opset-new", _ORT, "note", "an older ONNX Runtime refuses the file or runs parts of it in float",
         "use opset 17 to 21", ort.new_opset),
    # Weights.
    Rule("weight-per-tensor", _ALL, "warning", "the largest channel sets the step of all others: this costs accuracy, "
         "and scales for each channel cost nothing", _WEIGHTS, common.weights_per_tensor),
    Rule("weight-axis", _TRT, "error", "TensorRT documents scales along the output channels only", _OUTPUT_AXIS,
         common.weight_axes),
    Rule("weight-axis", _ORT, "error", "QLinearConv takes the scales for those of its output channels: it stops, or "
         "gives wrong numbers where there are equally many of both", _OUTPUT_AXIS, common.weight_axes),
    Rule("weight-axis", _OV, "warning", "the layer runs in float", _OUTPUT_AXIS, common.weight_axes),
    Rule("weight-zero-points", _ORT, "error", "ONNX Runtime 1.23 stops when it runs such a layer", _WEIGHTS,
         ort.uneven_weight_zeros),
    Rule("weight-asymmetric", _OV, "warning", "the layer runs in float", _WEIGHTS, place.asymmetric_weights),
    Rule("weight-float", _ORT, "warning", "ONNX Runtime 1.21, 1.23 and later quantise them while loading, with "
         "one scale for all channels; others run the layer in float", _WEIGHTS, ort.float_weights),
    Rule("weight-stored-as-float", _ALL, "note", "the file is about four times as large as it needs to be",
         "store the integers, with a DequantizeLinear", common.weights_behind_quantize),
    Rule("weight-overflow", _ORT | _OV, "note", "x86 CPUs without VNNI add two products of uint8 and int8 in 16 bits, "
         "which can overflow with these: other numbers there than elsewhere",
         "quantise weights to 7 bits (reduce_range) or spare the pairs that overflow; nothing for VNNI and ARM",
         ort.saturating_weights),
    # Placement for engines that fuse by themselves.
    Rule("half-quantised", _TRT, "warning", "a layer with one quantised input runs in float",
         "quantise both the input and the weights", place.half_quantised_tensorrt),
    Rule("half-quantised", _OV, "warning", "a layer with one quantised input runs in float",
         "quantise both the input and the weights", place.half_quantised_openvino),
    Rule("conv-float", _TRT, "warning", "the layer runs in float", _BOTH, place.float_convolutions_tensorrt),
    Rule("conv-float", _OV, "warning", "the layer runs in float", _BOTH, place.float_convolutions_openvino),
    Rule("first-conv-float", _TRT, "note", _FIRST, _FIRST_TOO, place.float_first_convolution_tensorrt),
    Rule("first-conv-float", _OV, "note", _FIRST, _FIRST_TOO, place.float_first_convolution_openvino),
    Rule("classifier-float", _TRT, "note", _CLASSIFIER, _BOTH, place.float_classifier_tensorrt),
    Rule("classifier-float", _OV, "note", _CLASSIFIER, _BOTH, place.float_classifier_openvino),
    Rule("add-quantised-twice", _TRT, "warning", "NVIDIA calls it suboptimal: the last convolution and the sum become "
         "two kernels", "keep Q/DQ on the shortcut only", place.sums_quantised_twice),
    Rule("add-float", _TRT, "warning", "the sum runs in float, with the shortcut written and read in float "
         "(TensorRT #1293: 4.6 ms against 2.7 ms)", "put Q/DQ on the shortcut", place.sums_in_float),
    Rule("add-wrong-side", _TRT, "warning", "it keeps Conv, Add and Relu from becoming one kernel",
         "move Q/DQ from the convolution's output to the shortcut", place.sums_quantised_on_the_wrong_side),
    Rule("before-relu", _TRT | _ORT, "warning", "it keeps the Relu from becoming part of the kernel, and spends half "
         "of the integers on values that the Relu drops", "quantise behind the Relu", place.quantised_before_relu),
    Rule("pool-float", _TRT, "note", "averages do not commute with Q/DQ: the tensor is written twice, in float as well",
         "let the pool take the DequantizeLinear's output", place.float_pools),
    Rule("few-channels", _TRT, "note", "INT8 kernels take channels in steps of 8 or 16 and fill up the rest",
         "use a number of channels that is divisible by 8", place.narrow_convolutions),
    Rule("padding", _TRT, "note", "a kernel on integers cannot fill it in exactly",
         "fill in a multiple of the scale within the range", place.padding_off_the_grid),
    Rule("padding", _OV, "warning", "the convolution behind it runs in float", "pad with 0, inside the convolution",
         place.padding_with_values),
    # What becomes of the layers in ONNX Runtime.
    Rule("conv-input", _ORT, "warning", "it will not be a QLinearConv: it runs in float", _Q_BEFORE,
         ort.because("input")),
    Rule("conv-weight", _ORT, "warning", "it will not be a QLinearConv: it runs in float", _WEIGHTS,
         ort.because("weight")),
    Rule("conv-output", _ORT, "warning", "it will not be a QLinearConv: it runs in float, and its integers are turned "
         "into float on the way in", _Q_BEHIND, ort.because("output")),
    Rule("conv-relu", _ORT, "warning", "a Relu is part of the QuantizeLinear only where its zero point is the lowest "
         "integer; else the convolution runs in float",
         "quantise behind a Relu to uint8 with zero point 0, or to int8 with -128",
         ort.because("relu")),
    Rule("conv-types", _ORT, "warning", "it will not be a QLinearConv: it runs in float",
         "quantise activations on both sides to uint8 and weights to int8, with float32 scales", ort.because("types")),
    Rule("conv-bias", _ORT, "warning", "it will not be a QLinearConv: it runs in float",
         "store the bias as int32, zero point 0, scale = input scale x weight scale", ort.because("bias")),
    Rule("bias-scale", _ORT, "error", "QLinearConv and QGemm take the bias in input scale x weight scale whatever the "
         "file says: ONNX Runtime 1.23 gives wrong numbers, 1.32 runs a convolution in float",
         "store bias / (input scale x weight scale) as int32, with that scale", ort.wrong_bias_scales),
    Rule("bias-zero-point", _ORT, "error", "ONNX Runtime refuses to run DequantizeLinear of int32 with a zero point",
         "leave the zero point out", ort.wrong_bias_zeros),
    Rule("bias-float", _ORT, "note", "ONNX Runtime 1.21, 1.23 and later quantise it while loading; 1.20, 1.22 "
         "and earlier run the layer in float", "store the bias as int32", ort.float_biases),
    Rule("signed-activations", _ORT, "warning", "x86 kernels want uint8, and int8 with several takers is not turned "
         "into it: the layers beside it run in float (right on ARM)",
         "quantise activations to uint8; for ARM this is no fault", ort.signed_activations),
    Rule("signed-activations-converted", _ORT, "note", "right on ARM; on x86 ONNX Runtime turns them into uint8 while "
         "loading", "for x86 alone, quantise activations to uint8", ort.converted_activations),
    Rule("add-float", _ORT, "warning", "it will not be a QLinearAdd: it runs in float",
         "put Q/DQ on both inputs and behind the sum or its Relu, all of one type", ort.float_sums),
    Rule("add-rank", _ORT, "error", "ONNX Runtime 1.23 does not load the file, 1.32 runs the sum in float",
         "give scale and zero point rank 0, not shape [1]", ort.sums_beside_vectors),
    Rule("gemm-float", _ORT, "warning", "it runs in float, and its integers are turned into float each time",
         "put Q/DQ just before it (behind Flatten), int8 weights, an int32 bias", ort.float_products),
    Rule("classifier-float", _ORT, "note", _CLASSIFIER, _BOTH, ort.float_classifier),
    Rule("maxpool-float", _ORT, "warning", "it runs in float, with conversions on both sides",
         "put the same scale before and behind it", ort.float_maxima),
    Rule("pool-float", _ORT, "note", "it runs in float, with a conversion before it",
         "put Q/DQ before and behind it; write GlobalAveragePool instead of ReduceMean", ort.float_averages),
)  # fmt: skip
