"""The simulated INT8 runtime against ONNX Runtime, which executes Q/DQ literally when it may not optimise.

Where scales are powers of two and sums are small, float32 holds every intermediate value: then both have to agree in
every bit. Where float32 has to round, the expected numbers are computed here, in numpy's integers and float64.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from runtimes import int8_sim
from runtimes.base import Array, Floats
from runtimes.errors import GraphError, TensorError
from runtimes.int8_sim import Int8SimRuntime
from runtimes.ort import OrtRuntime
from tests.runtimes.models import images, model, onnx_linear, weights

S8, U8 = np.int8, np.uint8
CHANNELS, SIZE = 4, 6


def value(name: str, elements: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    item = onnx.ValueInfoProto(name=name)
    item.type.tensor_type.elem_type = elements
    return item


class Net:
    """A graph in the making: each method adds nodes and gives the name of what they make."""

    def __init__(self, opset: int = 17, elements: int = TensorProto.FLOAT) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.opset = opset
        self.elements = elements

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def dequantise(self, integers: str, scale: Any, zero: Any = None, dtype: Any = S8, **attributes: Any) -> str:
        zeros = [] if zero is None else [self.constant(zero, dtype)]
        return self.node("DequantizeLinear", integers, self.constant(scale), *zeros, **attributes)

    def quantise(self, data: str, scale: Any, zero: Any = 0, dtype: Any = S8, **attributes: Any) -> str:
        """``QuantizeLinear`` and ``DequantizeLinear``."""
        parameters = self.constant(scale), self.constant(zero, dtype)
        return self.node(
            "DequantizeLinear", self.node("QuantizeLinear", data, *parameters, **attributes), *parameters, **attributes
        )

    def weight(self, integers: Array, scale: Any, zero: Any = None, **attributes: Any) -> str:
        """Stored integers, dequantised."""
        return self.dequantise(self.constant(integers, integers.dtype), scale, zero, integers.dtype, **attributes)

    def model(self, output: str, *shape: Any) -> onnx.ModelProto:
        taken = helper.make_tensor_value_info("input", self.elements, ["N", *(shape or (CHANNELS, SIZE, SIZE))])
        return model(self.nodes, [taken], [value(output)], self.initializers, self.opset)


def simulated(source: onnx.ModelProto, batch: Array) -> Floats:
    with Int8SimRuntime(source.SerializeToString()) as runtime:
        return runtime.run(batch)


def executed(source: onnx.ModelProto, batch: Array) -> Floats:
    """By ONNX Runtime, every Q/DQ in float32 as it is written."""
    with OrtRuntime(source.SerializeToString(), threads=1, optimize=False) as runtime:
        return runtime.run(batch)


def agree(source: onnx.ModelProto, batch: Array) -> None:
    got, expected = simulated(source, batch), executed(source, batch)
    assert np.unique(expected).size > 1  # nothing was clipped to one value
    np.testing.assert_array_equal(got, expected)


def codes(*shape: int, low: int = -8, high: int = 8, dtype: Any = S8, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).integers(low, high, shape, endpoint=True).astype(dtype)


def quarters(*shape: int, high: int = 8) -> Array:
    """Multiples of 1/4 between −high/4 and high/4: 4 bits in steps of 1/4, ties in steps of 1/2."""
    return np.asarray(codes(*shape, low=-high, high=high, dtype=np.float32, seed=1) / np.float32(4))


@pytest.fixture
def kernels(monkeypatch):
    """The types of the operators that were computed in integers, in the order of computation."""
    seen: list[str] = []
    real = int8_sim._integer_sums

    def spy(kind, *rest):
        seen.append(kind)
        return real(kind, *rest)

    monkeypatch.setattr(int8_sim, "_integer_sums", spy)
    return seen


ACTIVATIONS = [pytest.param(S8, 0, id="s8"), pytest.param(S8, -3, id="s8-zero"), pytest.param(U8, 7, id="u8-zero")]
PER_CHANNEL = [2.0**-power for power in range(1, 7)]


@pytest.mark.parametrize(("dtype", "zero"), ACTIVATIONS)
@pytest.mark.parametrize("scale", [0.125, PER_CHANNEL], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ({}, (6, CHANNELS, 3, 3)),
        ({"strides": [2, 1], "pads": [1, 1, 1, 1], "dilations": [1, 2]}, (6, CHANNELS, 3, 3)),
        ({"pads": [0, 1, 2, 0]}, (6, CHANNELS, 2, 3)),
        ({"group": 2, "strides": [3, 3]}, (6, CHANNELS // 2, 1, 1)),
    ],
    ids=["plain", "strided-dilated", "asymmetric-pads", "groups"],
)
def test_a_convolution_agrees_in_every_bit(kernels, dtype, zero, scale, attributes, shape):
    net = Net()
    data = net.quantise("input", 0.25, zero, dtype)
    zeros = np.zeros(6, S8) if isinstance(scale, list) else 0
    weight = net.weight(codes(*shape), scale, zeros, axis=0)
    bias = net.weight(codes(6, low=-99, high=99, dtype=np.int32), 0.25 * np.asarray(scale), axis=0)
    agree(net.model(net.node("Flatten", net.node("Conv", data, weight, bias, **attributes))), quarters(3, 4, 6, 6))
    assert kernels == ["Conv"]


@pytest.mark.parametrize("shape", [(5, CHANNELS, 3), (5, CHANNELS, 2, 2, 2)], ids=["1d", "3d"])
def test_a_convolution_over_one_or_three_dimensions_agrees(kernels, shape):
    net = Net()
    weight = net.weight(codes(*shape), PER_CHANNEL[:5], axis=-len(shape))
    bias = net.constant(np.arange(5) / 8)
    sizes = [SIZE] * (len(shape) - 2)
    output = net.node("Flatten", net.node("Conv", net.quantise("input", 0.25), weight, bias))
    agree(net.model(output, CHANNELS, *sizes), quarters(2, CHANNELS, *sizes))
    assert kernels == ["Conv"]


def test_a_bias_in_float_and_a_zero_point_of_the_weights_agree(kernels):
    net = Net()
    weight = net.weight(codes(3, CHANNELS, 2, 2, low=100, high=140, dtype=U8), 0.5, 120)
    bias = net.constant([0.375, -1.5, 8.0])
    agree(
        net.model(net.node("Flatten", net.node("Conv", net.quantise("input", 0.25), weight, bias))),
        quarters(2, 4, 6, 6),
    )
    assert kernels == ["Conv"]


def test_zero_points_of_each_channel_agree(kernels):
    net = Net()
    weight = net.weight(codes(3, CHANNELS, 2, 2), [0.5, 0.25, 2.0], [1, -2, 3], axis=0)
    agree(
        net.model(net.node("Flatten", net.node("Conv", net.quantise("input", 0.25), weight))),
        quarters(2, 4, 6, 6),
    )
    assert kernels == ["Conv"]


@pytest.mark.parametrize(("dtype", "zero"), ACTIVATIONS)
@pytest.mark.parametrize("scale", [0.125, PER_CHANNEL[:3]], ids=["per-tensor", "per-channel"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_agrees_in_every_bit(kernels, dtype, zero, scale, transposed):
    net = Net()
    weight = net.weight(codes(*((3, 5) if transposed else (5, 3))), scale, axis=1 - transposed)
    bias = net.weight(np.array([-99, 0, 98], np.int32), 0.25 * np.asarray(scale), axis=0)
    output = net.node("Gemm", net.quantise("input", 0.25, zero, dtype), weight, bias, transB=transposed)
    agree(net.model(output, 5), quarters(2, 5))
    assert kernels == ["Gemm"]


@pytest.mark.parametrize("bias", [None, (3,), (1, 3), (2, 3), (2, 1), ()], ids=str)
def test_gemm_with_factors_and_a_bias_of_any_shape_agrees(kernels, bias):
    net = Net()
    others = [] if bias is None else [net.constant(np.arange(np.prod(bias)).reshape(bias) / 4)]
    weight = net.weight(codes(5, 3), PER_CHANNEL[:3], axis=1)
    output = net.node("Gemm", net.quantise("input", 0.25), weight, *others, alpha=0.5, beta=-2.0)
    agree(net.model(output, 5), quarters(2, 5))
    assert kernels == ["Gemm"]


def test_gemm_with_its_data_transposed_agrees(kernels):
    net = Net()
    data = net.node("Transpose", net.quantise("input", 0.25))
    agree(net.model(net.node("Gemm", data, net.weight(codes(5, 3), 0.5), transA=1), 5), quarters(2, 5))
    assert kernels == ["Gemm"]


@pytest.mark.parametrize("scale", [0.125, [0.5, 2.0, 0.25]], ids=["per-tensor", "per-channel"])
def test_matmul_agrees_in_every_bit(kernels, scale):
    net = Net()
    product = net.node("MatMul", net.quantise("input", 0.25, 5), net.weight(codes(5, 3), scale, axis=-1))
    agree(net.model(product, 5), quarters(4, 5))
    assert kernels == ["MatMul"]


def test_matmul_of_two_activations_and_with_vectors_agrees(kernels):
    net = Net()
    data = net.quantise("input", 0.25, 5)
    column = net.node("MatMul", data, net.weight(codes(5), 0.5))  # [N]
    both = net.node("MatMul", net.weight(codes(5), 0.5), net.weight(codes(5, seed=1), 0.25))  # []
    both = net.node("Unsqueeze", both, net.constant([0, 1], np.int64))  # [1, 1], if it was []
    square = net.node("MatMul", data, net.node("Transpose", data))  # [N, N]
    agree(net.model(net.node("Add", net.node("Gemm", square, square, both), column), 5), quarters(4, 5))
    assert kernels == ["MatMul"] * 3


MOVES = [
    pytest.param("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [], id="MaxPool"),
    pytest.param("GlobalMaxPool", {}, [], id="GlobalMaxPool"),
    pytest.param("Flatten", {}, [], id="Flatten"),
    pytest.param("Reshape", {}, [[0, 2, -1, 3]], id="Reshape"),
    pytest.param("Transpose", {"perm": [0, 3, 1, 2]}, [], id="Transpose"),
    pytest.param("Unsqueeze", {}, [[1]], id="Unsqueeze"),
    pytest.param("Identity", {}, [], id="Identity"),
    pytest.param("Slice", {}, [[-1], [-9], [2], [-2]], id="Slice"),
    pytest.param("Pad", {}, [[0, 0, 1, 0, 0, 0, 0, 2]], id="Pad"),
]


@pytest.mark.parametrize(("dtype", "zero"), ACTIVATIONS)
@pytest.mark.parametrize(("kind", "attributes", "others"), MOVES)
def test_integers_stay_integers_while_they_are_moved(kernels, dtype, zero, kind, attributes, others):
    net = Net()
    extra = [net.constant(values, np.int64) for values in others]
    moved = net.node("Flatten", net.node(kind, net.quantise("input", 0.25, zero, dtype), *extra, **attributes))
    size = executed(net.model(moved), quarters(1, 4, 6, 6)).shape[1]
    weight = net.weight(codes(size, 3, low=-2, high=2), 0.5)
    agree(net.model(net.node("Gemm", moved, weight)), quarters(2, 4, 6, 6))
    assert kernels == ["Gemm"]


def test_integers_stay_integers_while_they_are_squeezed(kernels):
    net = Net()
    pooled = net.node("GlobalMaxPool", net.quantise("input", 0.25, 3))
    flat = net.node("Squeeze", pooled, net.constant([2, 3], np.int64))
    agree(net.model(net.node("MatMul", flat, net.weight(codes(4, 3), 0.5))), quarters(3, 4, 6, 6))
    assert kernels == ["MatMul"]


@pytest.mark.parametrize(
    ("fill", "scale", "expected"),
    [
        pytest.param(-1.5, 0.25, ["Conv"], id="steps"),
        pytest.param(0.0, 0.25, ["Conv"], id="zero"),
        pytest.param(40.0, 0.25, ["Conv"], id="beyond-8-bits"),
        pytest.param(0.375, 0.25, [], id="between-two-steps"),
        pytest.param(2.0**-6, 0.25, [], id="next-to-nothing"),
    ],
)
@pytest.mark.parametrize("opset", [17, 18])
def test_a_pad_between_dequantisation_and_convolution_fills_in_its_own_value(kernels, fill, scale, expected, opset):
    net = Net(opset)
    axes = [net.constant([-1, 2], np.int64)] if opset == 18 else []
    pads = net.constant([1, 2, 0, 1] if axes else [0, 0, 2, 1, 0, 0, 1, 0], np.int64)
    padded = net.node("Pad", net.quantise("input", scale, 3), pads, net.constant(fill), *axes)
    weight = net.weight(codes(3, CHANNELS, 2, 2), 0.5)
    agree(net.model(net.node("Flatten", net.node("Conv", padded, weight))), quarters(2, 4, 6, 6))
    assert kernels == expected


def test_a_fill_of_steps_that_was_rounded_to_float32_is_still_steps(kernels):
    net = Net()
    scale, fill = np.float32(0.1), np.float32(0.9)
    assert fill != 9 * scale
    pads = net.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    padded = net.node("Pad", net.quantise("input", scale), pads, net.constant(fill))
    source = net.model(net.node("Flatten", net.node("Conv", padded, net.weight(codes(3, CHANNELS, 2, 2), 0.5))))
    batch = quarters(2, 4, 6, 6)
    np.testing.assert_allclose(simulated(source, batch), executed(source, batch), rtol=1e-5, atol=1e-4)
    assert kernels == ["Conv"]


SCALES_OF_FOUR = [0.5, 0.25, 2.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "shape", "axis", "attributes"),
    [
        pytest.param("Conv", (4, 4, 2, 2), 1, {}, id="conv"),
        pytest.param("Gemm", (4, 4), 0, {}, id="gemm"),
        pytest.param("Gemm", (4, 4), 1, {"transB": 1}, id="gemm-transposed"),
        pytest.param("MatMul", (4, 4), 0, {}, id="matmul"),
        pytest.param("MatMul", (1, 4, 4), 1, {}, id="matmul-stacked"),
        pytest.param("MatMul", (4,), 0, {}, id="matmul-vector"),
    ],
)
def test_a_scale_of_each_input_channel_leaves_no_integer_sum(kernels, kind, shape, axis, attributes):
    """Square weights: read along the wrong axis, such scales would fit and give other numbers."""
    net = Net()
    sizes = (4, 6, 6) if kind == "Conv" else (4,)
    weight = net.weight(codes(*shape), SCALES_OF_FOUR, axis=axis)
    output = net.node(kind, net.quantise("input", 0.25), weight, **attributes)
    output = net.node("Reshape", output, net.constant([2, -1], np.int64))
    agree(net.model(output, *sizes), quarters(2, *sizes))
    assert kernels == []


@pytest.mark.parametrize("pooled", [False, True])
def test_scales_of_each_channel_of_the_data_leave_no_integer_sum(kernels, pooled):
    net = Net()
    data = net.quantise("input", SCALES_OF_FOUR, [0] * 4)  # along axis 1, where nothing is said
    data = net.node("MaxPool", data, kernel_shape=[2, 2]) if pooled else data
    output = net.node("Flatten", net.node("Conv", data, net.weight(codes(4, 4, 2, 2), 0.5)))
    agree(net.model(output), quarters(2, 4, 6, 6))
    assert kernels == []


def test_scales_of_each_channel_stay_with_their_channels_when_the_weights_are_transposed():
    net = Net()
    weight = net.node("Transpose", net.weight(codes(4, 4), SCALES_OF_FOUR, axis=0))
    agree(net.model(net.node("MatMul", net.quantise("input", 0.25), weight), 4), quarters(3, 4))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_weights_of_more_than_8_bits_are_multiplied_in_float(kernels, dtype):
    net = Net()
    values = codes(4, 4, 2, 2)
    weight = net.constant(values) if dtype is np.float32 else net.weight(values.astype(np.int32), 0.5)
    agree(net.model(net.node("Flatten", net.node("Conv", net.quantise("input", 0.25), weight))), quarters(2, 4, 6, 6))
    assert kernels == []


@pytest.mark.parametrize("extra", [0, 1], ids=["largest", "one-more"])
def test_a_sum_wraps_at_32_bits_like_a_register(extra):
    length = (2**31 - 1) // (255 * 127) + extra  # 66311 products of 255 × 127 still fit
    data, column = np.full((1, length), 255, U8), np.full((length, 1), 127, S8)
    net = Net(elements=TensorProto.UINT8)
    product = net.node("MatMul", net.dequantise("input", 1.0, 0, U8), net.weight(column, 1.0))
    net.quantise(product, 1.0)  # taken by nobody: it makes the file a quantised one
    by_hand = (data[0].astype(np.int32) * column[:, 0].astype(np.int32)).sum(dtype=np.int32)
    assert (by_hand < 0) == bool(extra)
    assert simulated(net.model(product, length), data) == np.float32(by_hand)


def test_zero_points_count_among_the_32_bits():
    """(−128 − 127) × (−128 − 127) = 65025: 33026 of them are the first that do not fit."""
    for length in (33025, 33026, 66053):
        net = Net()
        data = net.quantise("input", 1.0, 127)
        product = net.node("MatMul", data, net.weight(np.full((length, 1), -128, S8), 0.5, 127))
        wide = np.full(length, -255, np.int32)
        by_hand = np.float32((wide * wide).sum(dtype=np.int32)) / 2
        assert simulated(net.model(product, length), np.full((1, length), -300, np.float32)) == by_hand


def test_an_int32_bias_is_not_rounded_before_it_is_added():
    net = Net()
    bias = net.weight(np.array([2**24 + 1], np.int32), 1.0)
    weight = net.weight(np.full((1, 1032), -128, S8), 1.0)
    output = net.node("Gemm", net.quantise("input", 1.0), weight, bias, transB=1)
    batch = np.full((1, 1032), 127, np.float32)
    assert simulated(net.model(output, 1032), batch) == 2**24 + 1 - 1032 * 127 * 128


SCALES = st.floats(2.0**-20, 2.0**10, width=32)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_kernel_is_the_integer_sum_scaled_and_rounded_once(data):
    """Arbitrary scales and zero points, against numpy's integers and float64."""
    rows, length, columns = (data.draw(st.integers(1, 5)) for _ in range(3))
    kind = data.draw(st.sampled_from([S8, U8]))
    integers = hnp.from_dtype(np.dtype(kind))
    left = data.draw(hnp.arrays(kind, (rows, length), elements=integers))
    right = data.draw(hnp.arrays(S8, (length, columns)))
    zero, scale = data.draw(integers), np.float32(data.draw(SCALES))
    scales = np.array([data.draw(SCALES) for _ in range(columns)], np.float32)
    bias = data.draw(hnp.arrays(np.int32, columns, elements=st.integers(-(2**31), 2**31 - 1)))
    net = Net(elements=TensorProto.INT8 if kind is S8 else TensorProto.UINT8)
    output = net.node(
        "Gemm",
        net.dequantise("input", scale, zero, kind),
        net.weight(right, scales, axis=1),
        net.weight(bias, scales, axis=0),
    )
    net.quantise(output, 1.0)  # taken by nobody, as above
    sums = (left.astype(np.int64) - int(zero)) @ right.astype(np.int64)
    exact = sums * (np.float64(scale) * scales.astype(np.float64)) + bias * scales.astype(np.float64)
    np.testing.assert_array_equal(simulated(net.model(output, length), left), exact.astype(np.float32))


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 7), elements=st.floats(width=32, allow_nan=False)),
    SCALES,
    st.sampled_from([(S8, -128), (S8, 0), (S8, 17), (U8, 0), (U8, 128), (U8, 255)]),
)
def test_quantisation_rounds_and_clips_as_onnx_runtime_does(batch, scale, point):
    dtype, zero = point
    # Ties and their neighbours in float32, where a quotient computed in float64 would fall to one side.
    ties = (np.arange(-130, 260, dtype=np.float32) + np.float32(0.5)) * np.float32(scale)
    batch[1, :6] = [0, *np.resize(ties, 3), np.inf, -np.inf]
    spread = np.concatenate([batch, np.stack([ties, np.nextafter(ties, np.float32(0))])], axis=1)
    net = Net()
    source = net.model(net.quantise("input", scale, zero, dtype), spread.shape[1])
    np.testing.assert_array_equal(simulated(source, spread), executed(source, spread))


@pytest.mark.parametrize("dtype", [S8, U8])
def test_integers_that_are_pooled_before_they_are_dequantised_agree(kernels, dtype):
    net = Net()
    scale, zero = net.constant(0.25), net.constant(9, dtype)
    integers = net.node("QuantizeLinear", "input", scale, zero)
    pooled = net.node("MaxPool", integers, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    data = net.node("DequantizeLinear", pooled, scale, zero)
    output = net.node("Flatten", net.node("Conv", data, net.weight(codes(3, CHANNELS, 2, 2), 0.5)))
    agree(net.model(output), quarters(2, 4, 6, 6))
    assert kernels == ["Conv"]


@pytest.mark.parametrize("elements", [TensorProto.INT8, TensorProto.UINT8])
def test_a_model_may_take_integers(kernels, elements):
    dtype = helper.tensor_dtype_to_np_dtype(elements)
    net = Net(elements=elements)
    output = net.node("MatMul", net.dequantise("input", 0.25, 4, dtype), net.weight(codes(5, 3), 0.5))
    agree(net.model(net.quantise(output, 0.25), 5), codes(3, 5, low=0, high=15, dtype=dtype))
    assert kernels == ["MatMul"]


def residual_net(opset: int = 17) -> onnx.ModelProto:
    """A block with a shortcut and a classifier, with scales that are no powers of two."""
    rng = np.random.default_rng(3)
    net = Net(opset)

    def layer(kind: str, data: str, shape: tuple[int, ...], **attributes: Any) -> str:
        scales = rng.uniform(0.002, 0.004, shape[0]).astype(np.float32)
        integers = rng.integers(-127, 127, shape, endpoint=True).astype(S8)
        bias = rng.integers(-2000, 2000, shape[0]).astype(np.int32)
        weight = net.weight(integers, scales, np.zeros(shape[0], S8), axis=0)
        return net.node(kind, data, weight, net.weight(bias, scales * np.float32(0.02), axis=0), **attributes)

    data = net.quantise("input", 0.0173, -3)
    first = net.quantise(net.node("Relu", layer("Conv", data, (8, 4, 3, 3), pads=[1] * 4)), 0.0117, -128)
    second = layer("Conv", first, (8, 8, 3, 3), pads=[1] * 4)
    total = net.node("Relu", net.node("Add", second, layer("Conv", data, (8, 4, 1, 1))))
    pooled = net.node("GlobalAveragePool", net.quantise(total, 0.0231, 0, U8))
    flat = net.quantise(net.node("Flatten", pooled), 0.0093, -128)
    return net.model(layer("Gemm", flat, (10, 8), transB=1))


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
def test_a_residual_network_differs_in_few_steps_only(opset):
    """A sum rounded elsewhere can cross a tie of the next quantisation: rare, and one step high."""
    batch = np.random.default_rng(0).standard_normal((16, 4, 6, 6)).astype(np.float32)
    source = residual_net(opset)
    got, expected = simulated(source, batch), executed(source, batch)
    far = ~np.isclose(got, expected, rtol=1e-5, atol=1e-5)
    assert far.mean() < 0.05
    step = 0.0093 * 0.004 * 127  # one step of the classifier's input, through its largest weight
    assert np.abs(got - expected).max() <= 2 * step
    assert expected.std() > 20 * step


def test_an_image_gives_the_same_bits_in_any_batch_and_at_any_time():
    batch = np.random.default_rng(0).standard_normal((7, 4, 6, 6)).astype(np.float32)
    source = residual_net().SerializeToString()
    with Int8SimRuntime(source) as runtime, Int8SimRuntime(source) as other:
        whole = runtime.run(batch)
        np.testing.assert_array_equal(runtime.run(batch), whole)
        np.testing.assert_array_equal(other.run(batch), whole)
        for size in (1, 2, 3):
            parts = [runtime.run(batch[start : start + size]) for start in range(0, 7, size)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_batch_that_may_not_be_written_to_is_taken_without_a_word():
    net = Net()
    source = net.model(net.node("Relu", net.quantise("input", 0.25)), 5)
    batch = quarters(2, 5)
    before = batch.copy()
    batch.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulated(source, batch)
    np.testing.assert_array_equal(batch, before)


def test_intermediate_values_are_let_go_as_soon_as_nothing_takes_them():
    held: list[int] = []

    def counting(step, constants):
        def counted(values):
            step(values)
            held.append(len(values.keys() - constants))

        return counted

    with Int8SimRuntime(residual_net().SerializeToString()) as runtime:
        runtime._program = [counting(step, runtime._constants.keys()) for step in runtime._program]
        runtime.run(np.zeros((1, 4, 6, 6), np.float32))
        assert runtime._constants
    # Shortcut, data, and the dequantised weight and bias of one layer at a time; at the end the logits alone.
    assert max(held) <= 4
    assert held[-1] == 1
    assert not runtime._constants
    assert not runtime._program


def test_a_closed_runtime_opens_again():
    net = Net()
    source = net.model(net.node("Relu", net.quantise("input", 0.25)), 5)
    runtime = Int8SimRuntime(source.SerializeToString())
    with runtime:
        first = runtime.run(quarters(2, 5))
    with runtime:
        np.testing.assert_array_equal(runtime.run(quarters(2, 5)), first)


def test_an_initializer_that_is_listed_as_an_input_is_no_input():
    """As files of IR version 3 have it."""
    source = residual_net()
    for item in source.graph.initializer:
        source.graph.input.insert(0, helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    batch = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(simulated(source, batch), simulated(residual_net(), batch))


def test_parameters_may_come_from_constant_nodes():
    source = residual_net()
    nodes = [helper.make_node("Constant", [], [item.name], value=item) for item in source.graph.initializer]
    moved = helper.make_graph([*nodes, *source.graph.node], "graph", source.graph.input, source.graph.output)
    other = helper.make_model(moved, opset_imports=source.opset_import, ir_version=9)
    batch = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    np.testing.assert_array_equal(simulated(other, batch), simulated(source, batch))


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
def test_without_a_zero_point_quantisation_is_to_uint8(opset):
    net = Net(opset)
    integers = net.node("QuantizeLinear", "input", net.constant(0.25))
    agree(net.model(net.dequantise(integers, 0.25), 5), quarters(3, 5))


@pytest.mark.parametrize("elements", [TensorProto.INT8, TensorProto.UINT8])
@pytest.mark.parametrize("point", [False, True], ids=["alone", "with-zero-point"])
def test_output_dtype_says_what_is_quantised_to(elements, point):
    dtype = helper.tensor_dtype_to_np_dtype(elements)
    net = Net(21)
    zero = [net.constant(5, dtype)] if point else []
    integers = net.node("QuantizeLinear", "input", net.constant(0.25), *zero, output_dtype=elements)
    agree(net.model(net.node("DequantizeLinear", integers, net.constant(0.25), *zero), 5), quarters(3, 5, high=600))


def test_an_undeclared_shape_is_any_batch_of_images_and_a_fixed_one_is_held():
    net = Net()
    source = net.model(net.node("Flatten", net.quantise("input", 0.25)))
    with Int8SimRuntime(source.SerializeToString()) as runtime:
        assert runtime.inputs[0].shape == (None, CHANNELS, SIZE, SIZE)
        assert runtime.outputs[0].shape == (None, None)
        assert runtime.used["accumulators"] == "int32, exact"
        with pytest.raises(TensorError, match=r"int8-sim: tensor 'input': received float32 \[2, 3, 6, 6\], expected"):
            runtime.run(quarters(2, 3, 6, 6))
        with pytest.raises(TensorError, match=r"received int8"):
            runtime.run(codes(2, 4, 6, 6))
    source.graph.input[0].type.tensor_type.ClearField("shape")
    with Int8SimRuntime(source.SerializeToString()) as runtime:
        assert runtime.inputs[0].shape == (None,) * 4
        assert runtime.run(quarters(2, 3, 5, 5)).shape == (2, 75)


def test_a_path_a_string_and_bytes_are_the_same_model(tmp_path):
    source, path = residual_net(), tmp_path / "model.onnx"
    onnx.save(source, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    batch = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
    for form in (path, str(path)):
        with Int8SimRuntime(form, name="renamed") as runtime:
            assert runtime.name == "renamed"
            np.testing.assert_array_equal(runtime.run(batch), simulated(residual_net(), batch))
    (tmp_path / "weights.bin").unlink()
    assert str(path) in refusal(path)


def refusal(source: Any) -> str:
    """What opening ends with: one line that names the runtime."""
    content = source.SerializeToString() if isinstance(source, onnx.ModelProto) else source
    with pytest.raises(GraphError) as caught, Int8SimRuntime(content):
        pass
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("int8-sim: ")
    return str(caught.value)


def test_a_missing_file_a_folder_and_a_file_that_is_no_model_are_refused_by_their_path(tmp_path):
    assert f"{tmp_path / 'absent.onnx'} cannot be read: No such file" in refusal(tmp_path / "absent.onnx")
    assert f"{tmp_path} cannot be read: " in refusal(tmp_path)
    broken = tmp_path / "broken.onnx"
    for content in (b"", b"this is text, not a model\n" * 20, residual_net().SerializeToString()[:-400]):
        broken.write_bytes(content)
        assert f"{broken} is not an ONNX file: " in refusal(broken)
    assert "the model in memory is not an ONNX file: " in refusal(b"hello")


def test_a_model_without_quantisation_is_refused():
    assert "the model is not quantised: expected a file with QuantizeLinear" in refusal(onnx_linear(weights()))


def test_an_old_opset_is_refused():
    assert "the model has opset 12, expected 13 or later" in refusal(residual_net(12))


def test_unknown_operators_are_refused_by_their_names():
    net = Net()
    erf = net.node("Erf", net.quantise("input", 0.25))
    foreign = net.node("QuantizeLinear", erf, net.constant(0.5), net.constant(0, np.int16), domain="com.microsoft")
    message = refusal(net.model(net.node("Tanh", foreign), 5))
    assert "the model has Erf, Tanh, com.microsoft.QuantizeLinear, which cannot be simulated" in message


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([value("input"), value("more")], [value("t1")], "the model has 2 inputs (input, more), expected exactly one"),
        ([value("input")], [value("t1"), value("t0")], "the model has 2 outputs (t1, t0), expected exactly one"),
        ([value("input")], [value("t0", TensorProto.INT8)], "output 't0' is INT8, expected float32"),
        (
            [value("input", TensorProto.FLOAT16)],
            [value("t1")],
            "input 'input' is FLOAT16, expected float32 or int8 or uint8",
        ),
    ],
)
def test_other_inputs_and_outputs_than_one_of_a_known_type_are_refused(inputs, outputs, message):
    net = Net()
    net.quantise("input", 0.25)
    assert f": {message}" in refusal(model(net.nodes, inputs, outputs, net.initializers))


@pytest.mark.parametrize(
    ("place", "attribute", "wanted", "message"),
    [
        (0, "output_dtype", TensorProto.FLOAT8E4M3FN, "QuantizeLinear 't0': output_dtype 17 cannot be simulated"),
        (1, "output_dtype", TensorProto.FLOAT16, "DequantizeLinear 't1': output_dtype 10 cannot be simulated"),
        (1, "block_size", 2, "DequantizeLinear 't1': scales for blocks cannot be simulated, expected block_size 0"),
    ],
)
def test_another_quantisation_than_to_8_bits_is_refused(place, attribute, wanted, message):
    net = Net(23)
    source = net.model(net.quantise("input", 0.25), 5)
    source.graph.node[place].attribute.append(helper.make_attribute(attribute, wanted))
    assert message in refusal(source)


def test_a_pad_that_is_not_simulated_is_refused_when_the_model_is_opened():
    net = Net()
    padded = net.node("Pad", net.quantise("input", 0.25), net.constant([0, 1, 0, 1], np.int64), mode="edge")
    assert "Pad with mode edge cannot be simulated, only constant" in refusal(net.model(padded, 5))


def test_weights_of_4_bits_are_refused_by_their_name():
    net = Net(21)
    net.quantise("input", 0.25)
    net.initializers.append(helper.make_tensor("four", TensorProto.INT4, [2], [1, -1]))
    assert "constant 'four' cannot be read: " in refusal(net.model(net.dequantise("four", 1.0, 0), 5))


def test_a_second_output_that_is_taken_is_refused():
    net = Net()
    pooled = helper.make_node("MaxPool", [net.quantise("input", 0.25)], ["y", "places"], "pool", kernel_shape=[2, 2])
    net.nodes.append(pooled)
    net.node("Identity", "places")
    assert "MaxPool 'pool': an output beside the first one is used" in refusal(net.model("y"))


def test_an_output_that_nothing_takes_is_no_obstacle():
    net = Net()
    data = net.quantise("input", 0.25)
    net.nodes.append(helper.make_node("MaxPool", [data], ["pooled", "places"], kernel_shape=[2, 2]))
    agree(net.model(net.node("Flatten", "pooled")), quarters(2, 4, 6, 6))


def failure(source: onnx.ModelProto, batch: Array) -> str:
    """What the first run ends with: one line that names the runtime and the shape."""
    with (
        Int8SimRuntime(source.SerializeToString()) as runtime,
        pytest.raises(GraphError, match=r"int8-sim: .* failed on \[") as caught,
    ):
        runtime.run(batch)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_failure_while_running_names_the_node():
    net = Net()
    data = net.quantise("input", 0.25)
    output = net.node("Reshape", data, net.constant([1, 5], np.int64), name="the_reshape")
    assert "failed on [2, 3, 4, 4]: Reshape 'the_reshape': " in failure(net.model(output, 3, 4, 4), images(2))


def test_a_tensor_that_nothing_makes_is_a_failure_of_the_node_that_takes_it():
    net = Net()
    output = net.node("Add", net.quantise("input", 0.25), "nowhere")
    assert "Add 't2': 'nowhere'" in failure(net.model(output, 5), quarters(2, 5))


def test_a_16_bit_zero_point_is_refused_by_its_type():
    net = Net(21)
    assert "a zero point of torch.int16 cannot be simulated, expected int8 or uint8" in failure(
        net.model(net.quantise("input", 0.25, 0, np.int16), 5), quarters(2, 5)
    )


def test_scales_that_do_not_go_with_their_axis_are_refused():
    net = Net()
    output = net.quantise("input", [0.25, 0.5], [0, 0], axis=1)
    assert "2 scales along axis 1 of [2, 5], expected one for each" in failure(net.model(output, 5), quarters(2, 5))
