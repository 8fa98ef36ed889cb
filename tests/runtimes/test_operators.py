"""Every operator against ONNX Runtime, which runs one node as it is written.

Inputs are small integers wherever sums of them are exact in float32, so that "the same" means every bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from runtimes.base import Array
from runtimes.errors import GraphError
from runtimes.operators import OPERATORS, compiled, convolution, gemm, present, unknown_operators
from tests.runtimes.models import model

RNG = np.random.default_rng(0)
EXACT, ROUNDED = 0.0, 1e-6  # ROUNDED: a division or an exponential, which libraries round differently in the last bits


def whole(*shape: int, dtype: Any = np.float32, rng: np.random.Generator = RNG) -> Array:
    """Integers from -9 to 9 (from 0 where the type is unsigned), in random order."""
    low = 0 if np.dtype(dtype).kind == "u" else -9
    return np.asarray(rng.integers(low, 10, shape)).astype(dtype)


def same(*shape: int) -> Array:
    """As :func:`whole`, but the same at each call: a property that fails has to fail again."""
    return whole(*shape, rng=np.random.default_rng(shape))


def real(*shape: int) -> Array:
    return np.asarray(RNG.standard_normal(shape)).astype(np.float32)


def scalar(value: float, dtype: Any = np.float32) -> Array:
    return np.array(value, dtype)


def indices(*values: int) -> Array:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One node; its inputs in order, None where one is left out."""

    kind: str
    arrays: Sequence[Array | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    tolerance: float = EXACT

    def __str__(self) -> str:
        shapes = [None if array is None else array.shape for array in self.arrays]
        return f"{self.kind}-{self.opset}-{shapes}-{dict(self.attributes)}".replace(" ", "")


def node_of(case: Case) -> onnx.NodeProto:
    names = [f"x{place}" if array is not None else "" for place, array in enumerate(case.arrays)]
    return helper.make_node(case.kind, names, ["y"], name="the_node", **case.attributes)


def by_onnxruntime(case: Case) -> Array:
    node, given_arrays = node_of(case), [array for array in case.arrays if array is not None]
    feeds = dict(zip([name for name in node.input if name], given_arrays, strict=True))
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    source = model([node], inputs, [onnx.ValueInfoProto(name="y")], opset=case.opset).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    result: Array = session.run(None, feeds)[0]
    return result


def by_operators(case: Case) -> Array:
    copies = [None if array is None else torch.tensor(array) for array in case.arrays]
    result: Array = compiled(node_of(case))(copies).numpy()
    for copy, array in zip(copies, case.arrays, strict=True):
        if copy is not None and array is not None:
            np.testing.assert_array_equal(copy.numpy(), array, err_msg="an operator wrote into its input")
    return result


def check(case: Case) -> None:
    got, expected = by_operators(case), by_onnxruntime(case)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(got, expected, rtol=case.tolerance, atol=case.tolerance)


CASES = [
    Case("Add", [whole(2, 3, 4), whole(3, 1)]),
    Case("Sub", [whole(2, 3, 4), whole(4)]),
    Case("Mul", [whole(2, 3, 4), scalar(3)]),
    Case("Div", [whole(2, 3, 4), np.float32(2) ** whole(2, 3, 4)]),
    Case("Relu", [whole(2, 3)]),
    Case("LeakyRelu", [whole(2, 3)]),
    Case("LeakyRelu", [whole(2, 3)], {"alpha": 0.25}),
    Case("Sigmoid", [real(2, 5)], tolerance=ROUNDED),
    Case("Softmax", [real(2, 3, 4)], tolerance=ROUNDED),
    Case("Softmax", [real(2, 3, 4)], {"axis": 1}, tolerance=ROUNDED),
    Case("Identity", [whole(2, 3)]),
    Case("Dropout", [whole(2, 3)]),
    Case("Dropout", [whole(2, 3), scalar(0.5), scalar(False, np.bool_)]),
    # Convolutions
    Case("Conv", [whole(2, 4, 7, 6), whole(5, 4, 3, 2)]),
    Case("Conv", [whole(2, 4, 7, 6), whole(5, 4, 3, 3), whole(5)], {"strides": [2, 1], "pads": [1, 1, 1, 1]}),
    Case("Conv", [whole(2, 4, 7, 6), whole(5, 4, 3, 3)], {"strides": [2, 2], "pads": [0, 1, 1, 2]}),
    Case("Conv", [whole(1, 4, 9, 9), whole(6, 2, 3, 3)], {"group": 2, "dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    Case("Conv", [whole(1, 4, 5, 5), whole(4, 1, 3, 3), whole(4)], {"group": 4, "kernel_shape": [3, 3]}),
    Case("Conv", [whole(2, 3, 8), whole(4, 3, 3)], {"pads": [2, 0], "strides": [3]}),
    Case("Conv", [whole(1, 2, 4, 5, 3), whole(3, 2, 2, 2, 2)], {"pads": [1, 0, 1, 0, 1, 1]}),
    Case("Conv", [whole(1, 2, 5, 5), whole(3, 2, 2, 2)], {"auto_pad": "VALID"}),
    Case("Gemm", [whole(2, 3), whole(3, 4)]),
    Case("Gemm", [whole(2, 3), whole(4, 3), whole(4)], {"transB": 1}),
    Case("Gemm", [whole(3, 2), whole(3, 4), whole(2, 1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [whole(3, 2), whole(4, 3), whole(2, 4)], {"transA": 1, "transB": 1, "alpha": -2.0}),
    Case("Gemm", [whole(2, 3), whole(3, 4), scalar(5)], {"beta": 0.25}),
    Case("MatMul", [whole(2, 3), whole(3, 4)]),
    Case("MatMul", [whole(2, 1, 2, 3), whole(5, 3, 4)]),
    Case("MatMul", [whole(2, 3), whole(3)]),
    Case("MatMul", [whole(3), whole(3, 4)]),
    Case("BatchNormalization", [real(2, 3, 4), real(3), real(3), real(3), abs(real(3))], tolerance=ROUNDED),
    Case("BatchNormalization", [real(2, 3), real(3), real(3), real(3), abs(real(3))], {"epsilon": 0.1}, 17, ROUNDED),
    # Pools; the windows of ceil_mode are a property test below
    Case("MaxPool", [whole(2, 3, 7, 7)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [-1 - abs(whole(1, 1, 4, 4))], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [whole(1, 2, 9, 9)], {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [0, 1, 1, 0]}),
    Case("MaxPool", [whole(2, 3, 8)], {"kernel_shape": [2]}),
    Case("MaxPool", [whole(1, 2, 4, 5, 6)], {"kernel_shape": [2, 2, 3], "strides": [1, 2, 3]}),
    Case("MaxPool", [whole(1, 2, 5, 5, dtype=np.int8)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [whole(1, 2, 5, 5, dtype=np.uint8)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", [whole(2, 3, 8, 8)], {"kernel_shape": [2, 4], "strides": [2, 2]}),
    Case("AveragePool", [whole(2, 3, 8)], {"kernel_shape": [3], "pads": [1, 0]}, tolerance=ROUNDED),
    Case("AveragePool", [whole(1, 2, 4, 4)], {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1}),
    Case("AveragePool", [whole(1, 2, 4, 4, 4)], {"kernel_shape": [2, 2, 2]}),
    Case("AveragePool", [whole(1, 2, 4, 4)], {"kernel_shape": [2, 2], "dilations": [1, 1]}, 19),
    Case("GlobalAveragePool", [whole(2, 3, 4, 8)]),
    Case("GlobalAveragePool", [whole(2, 3, 8)]),
    Case("GlobalMaxPool", [whole(2, 3, 4, 5)]),
    Case("ReduceMean", [whole(2, 3, 4, 8)], {"axes": [2, 3]}, 13),
    Case("ReduceMean", [whole(2, 3, 4, 8)], {"axes": [-1, -2], "keepdims": 0}, 13),
    Case("ReduceMean", [whole(2, 2, 4)], {}, 13),
    Case("ReduceMean", [whole(2, 3, 4, 8), indices(-1, 2)], {"keepdims": 0}, 18),
    Case("ReduceMean", [whole(2, 4, 4)], {"keepdims": 0}, 18),
    Case("ReduceMean", [whole(2, 4, 4), indices()], {}, 18),
    Case("ReduceMean", [whole(2, 4, 4)], {"noop_with_empty_axes": 1}, 18),
    Case("ReduceMean", [whole(2, 4, 4), indices()], {"noop_with_empty_axes": 1}, 18),
    # Shapes
    *[Case("Flatten", [whole(2, 3, 4, 5)], {"axis": axis}) for axis in range(-4, 5)],
    Case("Flatten", [whole(2, 3, 4, 5)]),
    Case("Reshape", [whole(2, 3, 4), indices(0, -1)]),
    Case("Reshape", [whole(2, 3, 4), indices(4, 0, 2)]),
    Case("Reshape", [whole(0, 3), indices(3, 0)], {"allowzero": 1}),
    Case("Transpose", [whole(2, 3, 4)]),
    Case("Transpose", [whole(2, 3, 4)], {"perm": [1, 2, 0]}),
    Case("Squeeze", [whole(1, 2, 1)]),
    Case("Squeeze", [whole(1, 2, 1), indices(-1)]),
    Case("Squeeze", [whole(1, 2, 1, 1), indices(0, 2)]),
    Case("Squeeze", [whole(1, 2, 1), indices()]),
    Case("Unsqueeze", [whole(2, 3), indices(-1, 0)]),
    Case("Unsqueeze", [whole(2, 3), indices(3, 1)]),
    Case("Concat", [whole(2, 3), whole(2, 1), whole(2, 2)], {"axis": -1}),
    Case("Slice", [whole(5, 6), indices(1, 0), indices(4, 3)]),
    Case("Slice", [whole(5, 6), indices(-100), indices(2**63 - 1), indices(-2), indices(3)]),
    Case("Slice", [whole(5, 6), indices(-1), indices(-(2**63)), indices(-1), indices(-2)]),
    Case("Slice", [whole(5, 6), indices(0), indices(3), indices(1), indices(-1)]),
    Case("Slice", [whole(5, 6), indices(2), indices(2), indices(0)]),
    Case("Slice", [whole(5, 6), indices(-7), indices(-9), indices(0), indices(-1)]),
    Case("Pad", [whole(2, 3), indices(1, 0, 2, 3)]),
    Case("Pad", [whole(2, 3), indices(1, 0, 2, 3), scalar(-4)]),
    Case("Pad", [whole(4, 5), indices(-1, 2, 1, -2), scalar(7)]),
    Case("Pad", [whole(2, 3, 4), indices(1, 2, 3, 4), scalar(7), indices(2, 0)], {}, 18),
    Case("Pad", [whole(2, 3, 4), indices(1, 2, 3, 4), None, indices(-1, -3)], {"mode": "constant"}, 18),
    Case("Pad", [whole(2, 3, dtype=np.uint8), indices(1, 0, 2, 3), scalar(128, np.uint8)]),
    Case("Clip", [whole(3, 4)]),
    Case("Clip", [whole(3, 4), scalar(-2)]),
    Case("Clip", [whole(3, 4), None, scalar(2)]),
    Case("Clip", [whole(3, 4), scalar(0), scalar(6)]),
    Case("Clip", [whole(3, 4), scalar(2), scalar(-2)]),
    Case("Cast", [whole(2, 3, dtype=np.uint8)], {"to": int(TensorProto.FLOAT)}),
    Case("Cast", [whole(3, 4)], {"to": int(TensorProto.INT64)}),
    Case("Cast", [whole(3, 4)], {"to": int(TensorProto.DOUBLE)}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_computes_what_onnx_runtime_computes(case):
    check(case)


def test_no_operator_is_left_untested():
    assert {case.kind for case in CASES} == set(OPERATORS)


@st.composite
def pools(draw):
    """A pool whose windows may hang over the end, with borders smaller than the window, as ONNX demands."""
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    attributes = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 4)) for _ in range(2)],
        "pads": [draw(st.integers(0, size - 1)) for size in kernel * 2],
        "ceil_mode": draw(st.integers(0, 1)),
    }
    kind = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    if kind == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    else:
        # A dilated window can outgrow the data, where ONNX Runtime fails; two steps at most stay inside.
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(2)]
    sizes = [draw(st.integers(5, 8)) for _ in range(2)]
    return Case(kind, [same(1, 2, *sizes)], attributes, draw(st.sampled_from([13, 19])), ROUNDED)


@settings(max_examples=60, deadline=None)
@given(pools())
def test_the_windows_of_a_pool_are_those_of_onnx_runtime(case):
    if case.kind == "MaxPool":
        assert np.isfinite(by_operators(case)).all()  # no window lies in the border alone
    check(case)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-8, 8), st.integers(-8, 8), st.sampled_from([-3, -2, -1, 1, 2, 3])),
        min_size=1,
        max_size=2,
    ),
    st.booleans(),
)
def test_a_slice_takes_what_onnx_runtime_takes(cuts, from_the_back):
    starts, ends, steps = (indices(*column) for column in zip(*cuts, strict=True))
    axes = indices(*[place - 3 if from_the_back else place for place in range(len(cuts))])
    check(Case("Slice", [same(5, 6, 2), starts, ends, axes, steps]))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_convolution_is_that_of_onnx_runtime(data):
    kernel = [data.draw(st.integers(1, 3)) for _ in range(2)]
    groups, inputs, outputs = (data.draw(st.integers(1, 3)) for _ in range(3))
    attributes = {
        "group": groups,
        "strides": [data.draw(st.integers(1, 3)) for _ in range(2)],
        "dilations": [data.draw(st.integers(1, 2)) for _ in range(2)],
        "pads": [data.draw(st.integers(0, 2)) for _ in range(4)],
    }
    arrays = [same(2, groups * inputs, 7, 6), same(groups * outputs, inputs, *kernel)]
    bias = [same(groups * outputs)] if data.draw(st.booleans()) else []
    check(Case("Conv", arrays + bias, attributes))


def test_gradients_reach_the_data_through_every_float_operator():
    """Refinement needs them; a NaN from a window without data would spoil all of them."""
    pool = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    for case in [*CASES, Case("AveragePool", [whole(1, 2, 5, 5)], pool)]:
        first, *others = case.arrays
        if first is None or first.dtype != np.float32 or first.size == 0:
            continue
        data = torch.tensor(first, requires_grad=True)
        rest = [None if array is None else torch.tensor(array) for array in others]
        result = compiled(node_of(case))([data, *rest])
        if not result.is_floating_point():  # a Cast to integers has no slope
            continue
        result.sum().backward()
        assert data.grad is not None, str(case)
        assert bool(torch.isfinite(data.grad).all()), str(case)


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("Conv", {"auto_pad": "SAME_UPPER"}, "Conv with auto_pad SAME_UPPER cannot be simulated, only NOTSET or VALID"),
        ("MaxPool", {"auto_pad": "SAME_LOWER", "kernel_shape": [2, 2]}, "MaxPool with auto_pad SAME_LOWER"),
        ("AveragePool", {"dilations": [2, 1], "kernel_shape": [2, 2]}, r"AveragePool with dilations \[2, 1\]"),
        ("BatchNormalization", {"training_mode": 1}, "BatchNormalization with training_mode 1 cannot .*, only 0"),
        ("Pad", {"mode": "reflect"}, "Pad with mode reflect cannot be simulated, only constant"),
    ],
)
def test_an_attribute_that_is_not_simulated_is_refused_before_anything_runs(kind, attributes, message):
    with pytest.raises(GraphError, match=f"node the_node: {message}"):
        compiled(node_of(Case(kind, [whole(1)], attributes)))


def test_dropout_in_training_mode_is_refused():
    case = Case("Dropout", [whole(2, 3), scalar(0.5), scalar(True, np.bool_)])
    with pytest.raises(GraphError, match="training mode"):
        by_operators(case)


def test_an_unknown_operator_is_refused_by_its_name_and_node():
    with pytest.raises(GraphError, match="node the_node: Erf is not among"):
        compiled(node_of(Case("Erf", [whole(1)])))


def test_an_input_that_is_missing_or_left_out_is_refused():
    for arrays in ([], [None]):
        with pytest.raises(GraphError, match="lacks its input 0"):
            present(arrays, 0)


def test_unknown_operators_are_listed_once_sorted_and_with_a_foreign_domain():
    nodes = [
        helper.make_node("Erf", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], domain="ai.onnx"),
        helper.make_node("Gelu", ["b"], ["c"]),
        helper.make_node("Erf", ["c"], ["d"]),
        # It bears a known name, but whose meaning it has is not ours to guess.
        helper.make_node("Relu", ["d"], ["y"], domain="com.example"),
        helper.make_node("Constant", [], ["unused"], value_float=1.0),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    assert unknown_operators(model(nodes, values[:1], values[1:])) == ["Erf", "Gelu", "com.example.Relu"]


@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 1, 2, 1]])
def test_sums_of_integers_are_exact_in_float64_beyond_what_float32_holds(pads):
    """What the simulated INT8 runtime rests on, for convolution and gemm alike."""
    data, weight = RNG.integers(-(2**15), 2**15, (1, 3, 4, 4)), RNG.integers(-(2**15), 2**15, (2, 3, 3, 3))
    got = convolution({"pads": pads}, torch.tensor(data).double(), torch.tensor(weight).double(), None).numpy()
    padded = np.pad(data, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    np.testing.assert_array_equal(got, np.einsum("nchwij,ocij->nohw", windows, weight))
    left, right = data.reshape(3, 16), weight.reshape(2, 27)[:, :16]
    product = gemm({"transB": 1}, torch.tensor(left).double(), torch.tensor(right).double(), None).numpy()
    np.testing.assert_array_equal(product, left @ right.T)
