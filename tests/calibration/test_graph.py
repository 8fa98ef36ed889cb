"""The graph as calibration sees it: which tensors have a range of their own, and which files are refused."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from calibration.graph import SHARING, Network, input_size, read_network, with_shapes
from exporter.graph.export import export
from runtimes.errors import GraphError
from tests.exporter.graphs import bottleneck, cifar, folded, onnx_model

PADDED = {"pads": [1, 1, 1, 1]}
HALVES = {"kernel_shape": [2, 2], "strides": [2, 2]}


def node(operator, sources, *names, **attributes):
    return helper.make_node(operator, sources.split(" "), list(names), **attributes)


def floats(name, *shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def integers(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


STEM = [node("Conv", "input stem", "conv", **PADDED), node("Relu", "conv", "relu")]
WEIGHTS = [floats("stem", 4, 3, 3, 3), floats("w3", 4, 4, 3, 3), floats("w1", 4, 4, 1, 1), floats("fc", 4, 5)]


def head(source):
    return [
        node("GlobalAveragePool", source, "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat fc", "logits"),
    ]


def network(nodes, constants=(), **options):
    copies = [onnx.NodeProto.FromString(item.SerializeToString()) for item in nodes]
    return Network(onnx_model(copies, [*WEIGHTS, *constants], **options), "0" * 64)


def basic_block():
    return network(
        [
            *STEM,
            node("Conv", "relu w3", "conv1", **PADDED),
            node("Relu", "conv1", "relu1"),
            node("Conv", "relu1 w3", "conv2", **PADDED),
            node("Add", "conv2 relu", "add"),
            node("Relu", "add", "relu2"),
            *head("relu2"),
        ]
    )


def projected_bottleneck():
    return network(
        [
            *STEM,
            node("MaxPool", "relu", "maxpool", kernel_shape=[3, 3], strides=[2, 2], **PADDED),
            node("Conv", "maxpool w1", "conv1"),
            node("Relu", "conv1", "relu1"),
            node("Conv", "relu1 w3", "conv2", **PADDED),
            node("Relu", "conv2", "relu2"),
            node("Conv", "relu2 w1", "conv3"),
            node("Conv", "maxpool w1", "downsample"),
            node("Add", "conv3 downsample", "add"),
            node("Relu", "add", "relu3"),
            *head("relu3"),
        ]
    )


def option_a():
    """Every second pixel, and a zero channel on both sides of two that are kept."""
    return network(
        [
            *STEM,
            node("Conv", "relu w3", "conv1", strides=[2, 2], **PADDED),
            node("Relu", "conv1", "relu1"),
            node("Conv", "relu1 w3", "conv2", **PADDED),
            node("Slice", "relu starts ends axes steps", "slice"),
            node("Pad", "slice pads", "pad"),
            node("Add", "conv2 pad", "add"),
            node("Relu", "add", "relu2"),
            *head("relu2"),
        ],
        [
            integers("starts", 0, 0, 0),
            integers("ends", 2, 8, 8),
            integers("axes", 1, 2, 3),
            integers("steps", 1, 2, 2),
            integers("pads", 0, 1, 0, 0, 0, 1, 0, 0),
        ],
    )


def test_a_basic_block_is_observed_where_something_but_a_relu_takes_the_tensor():
    found = basic_block()
    assert found.observed == ("input", "relu", "relu1", "conv2", "relu2", "pool")
    assert found.source("flat") == "pool"


def test_a_projected_bottleneck_is_observed_on_both_sides_of_its_addition():
    found = projected_bottleneck()
    assert found.observed == ("input", "relu", "relu1", "relu2", "conv3", "downsample", "relu3", "pool")
    assert found.source("maxpool") == "relu"


def test_a_shortcut_without_parameters_has_the_range_of_what_it_was_cut_from():
    found = option_a()
    assert found.observed == ("input", "relu", "relu1", "conv2", "relu2", "pool")
    assert found.source("pad") == found.source("slice") == "relu"


BASIC = ["Relu", "Conv", "Relu"]
BOTTLENECK = ["Relu", "Relu", "Conv", "Conv", "Relu"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (cifar, ["Relu", *BASIC, *BASIC, *BASIC, "GlobalAveragePool"]),
        (bottleneck, ["Relu", *BOTTLENECK, *BOTTLENECK, "GlobalAveragePool"]),
    ],
    ids=["option A", "projections"],
)
def test_exported_networks_are_observed_alike(make, expected):
    found = Network(export(folded(make()).captured, 17, "torchscript"), "0" * 64)
    first, *others = found.observed
    assert first == found.input
    assert [found.producers[name].op_type for name in others] == expected


def test_tensors_are_observed_in_the_order_of_computation_whatever_their_names():
    nodes = [
        node("Conv", "input stem", "z", **PADDED),
        node("LeakyRelu", "z", "m"),
        node("Conv", "m w3", "a", **PADDED),
        node("GlobalAveragePool", "a", "b"),
        node("Flatten", "b", "logits"),
    ]
    assert network(nodes).observed == ("input", "z", "m", "a", "b")


def test_neither_outputs_nor_integers_nor_what_comes_of_a_shape_are_observed():
    nodes = [
        *STEM,
        node("ArgMax", "relu", "winner", axis=1),
        node("Cast", "winner", "channel", to=TensorProto.FLOAT),
        node("Shape", "relu", "shape"),
        node("Cast", "shape", "sizes", to=TensorProto.FLOAT),
        node("ReduceMax", "sizes", "largest", keepdims=0),
        node("Div", "channel largest", "logits"),
    ]
    found = network(nodes)
    assert found.observed == ("input", "relu", "channel")
    assert found.is_activation("winner")
    assert not any(found.is_activation(name) for name in ("shape", "sizes", "largest", "stem"))


def test_a_network_of_one_relu_has_nothing_to_observe():
    assert network([node("Relu", "input", "logits")]).observed == ()


SHARES = {
    "MaxPool": (node("MaxPool", "conv", "made", kernel_shape=[3, 3], **PADDED), ()),
    "Flatten": (node("Flatten", "conv", "made"), ()),
    "Reshape": (node("Reshape", "conv to", "made"), [integers("to", 0, -1)]),
    "Transpose": (node("Transpose", "conv", "made", perm=[0, 2, 3, 1]), ()),
    "Squeeze": (node("Squeeze", "conv axes", "made"), [integers("axes", 0)]),
    "Unsqueeze": (node("Unsqueeze", "conv axes", "made"), [integers("axes", 0)]),
    "Identity": (node("Identity", "conv", "made"), ()),
    "Slice": (node("Slice", "conv from until", "made"), [integers("from", 0, 1), integers("until", 1, 3)]),
    "Pad": (node("Pad", "conv pads", "made"), [integers("pads", *[1] * 8)]),
}


def test_every_operator_that_shares_its_range_is_tried_here():
    assert set(SHARES) == SHARING


@pytest.mark.parametrize("operator", SHARES)
def test_a_shared_range_holds_every_value_but_zero(operator):
    made, constants = SHARES[operator]
    found = network([STEM[0], made, node("Neg", "made", "logits")], constants, dims=(1, 3, 8, 8), rank=4)
    assert found.source("made") == "conv"
    assert "made" not in found.observed
    found.model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in ("conv", "made"))
    image = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    conv, values = map(np.ravel, ReferenceEvaluator(found.model).run(["conv", "made"], {"input": image}))
    assert set(values) <= {*conv, 0.0}


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("Relu", {}), ("LeakyRelu", {}), ("GlobalAveragePool", {}), ("AveragePool", HALVES), ("Sigmoid", {})],
)
def test_an_operator_that_computes_has_a_range_of_its_own(operator, attributes):
    found = network([STEM[0], node(operator, "conv", "made", **attributes), node("Neg", "made", "logits")], rank=4)
    assert found.source("made") == "made"
    assert "made" in found.observed


def test_a_range_is_shared_through_any_number_of_operators():
    nodes = [*STEM, node("MaxPool", "relu", "a", **HALVES), node("Identity", "a", "b"), node("Flatten", "b", "c")]
    assert network([*nodes, node("Neg", "c", "logits")]).source("c") == "relu"


def constant(**attributes):
    return helper.make_node("Constant", [], ["fill"], **attributes)


def scalar(value):
    return numpy_helper.from_array(np.array(value, np.float32), "fill")


@pytest.mark.parametrize(
    ("before", "constants", "sources", "mode", "shared"),
    [
        ([], [], "relu pads", "constant", True),
        ([], [scalar(0.0)], "relu pads fill", "constant", True),
        ([], [scalar(-1.0)], "relu pads fill", "constant", False),
        ([constant(value=scalar(0.0))], [], "relu pads fill", "constant", True),
        ([constant(value=scalar(2.0))], [], "relu pads fill", "constant", False),
        ([constant(value_float=0.0)], [], "relu pads fill", "constant", True),
        ([constant(value_float=2.0)], [], "relu pads fill", "constant", False),
        ([node("ReduceMin", "input", "fill", keepdims=0)], [], "relu pads fill", "constant", False),
        ([], [], "relu pads", "reflect", True),
        ([], [], "relu pads", "edge", True),
    ],
)
def test_a_pad_shares_its_range_only_where_it_fills_in_zeros_or_copies(before, constants, sources, mode, shared):
    nodes = [*before, *STEM, node("Pad", sources, "made", mode=mode), node("Neg", "made", "logits")]
    found = network(nodes, [*constants, integers("pads", 0, 0, 1, 1, 0, 0, 1, 1)])
    assert (found.source("made") == "relu") is shared
    assert ("made" in found.observed) is not shared
    assert found.non_negative("made") is shared


@pytest.mark.parametrize(("value", "source"), [(0.0, "relu"), (3.0, "made")])
def test_a_pad_of_an_old_opset_is_judged_by_its_attribute(value, source):
    made = node("Pad", "relu", "made", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=value)
    assert network([*STEM, made, node("Neg", "made", "logits")], opset=10).source("made") == source


@pytest.mark.parametrize(
    ("operator", "attributes", "of_relu", "of_conv"),
    [
        ("Relu", {}, True, True),
        ("Sigmoid", {}, True, True),
        ("Softmax", {"axis": 1}, True, True),
        ("MaxPool", HALVES, True, False),
        ("AveragePool", HALVES, True, False),
        ("GlobalAveragePool", {}, True, False),
        ("GlobalMaxPool", {}, True, False),
        ("ReduceMean", {}, True, False),
        ("Flatten", {}, True, False),
        ("Identity", {}, True, False),
        ("Neg", {}, False, False),
        ("LeakyRelu", {}, False, False),
    ],
)
def test_a_tensor_is_non_negative_where_its_operator_cannot_make_a_sign(operator, attributes, of_relu, of_conv):
    for source, expected in (("relu", of_relu), ("conv", of_conv)):
        made = node(operator, source, "made", **attributes)
        assert network([*STEM, made, node("Neg", "made", "logits")]).non_negative("made") is expected


def test_neither_the_input_nor_a_sum_counts_as_non_negative():
    found = basic_block()
    assert [name for name in found.observed if found.non_negative(name)] == ["relu", "relu1", "relu2", "pool"]
    assert not found.non_negative("add")
    assert not found.non_negative("input")


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([node("Relu", "conv", "logits")], True),
        ([node("Relu", "conv", "a"), node("Relu", "conv", "b"), node("Add", "a b", "logits")], False),
        ([node("Relu", "conv", "a"), node("Add", "a conv", "logits")], False),
        ([node("LeakyRelu", "conv", "logits")], False),
        ([node("Relu", "input", "logits")], False),
    ],
    ids=["one", "two", "and an addition", "another", "nothing"],
)
def test_only_one_relu_may_take_a_tensor_that_it_is_fused_with(others, expected):
    found = network([STEM[0], *others], rank=4)
    assert found.only_feeds_relu("conv") is expected
    assert ("conv" in found.observed) is not expected


def test_an_output_feeds_more_than_the_relu_behind_it():
    found = network([node("Conv", "input stem", "logits"), node("Relu", "logits", "relu")], rank=4)
    assert not found.only_feeds_relu("logits")
    assert "logits" not in found.observed


def test_a_node_that_takes_a_tensor_twice_is_one_consumer():
    found = network([*STEM, node("Mul", "relu relu", "logits")], rank=4)
    assert [item.op_type for item in found.consumers["relu"]] == ["Mul"]
    assert found.producers["relu"].op_type == "Relu"
    assert found.producers.keys().isdisjoint(["input", "stem"])


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": scalar(1.5)}, 1.5),
        ({"value_float": 1.5}, 1.5),
        ({"value_floats": [1.5, 2.0]}, [1.5, 2.0]),
        ({"value_int": 3}, 3),
        ({"value_ints": [3, 4]}, [3, 4]),
    ],
)
def test_constants_are_known_however_a_node_holds_them(attributes, expected):
    found = network([constant(**attributes), node("Relu", "input", "logits")]).initializers
    np.testing.assert_array_equal(found["fill"], expected)
    np.testing.assert_array_equal(found["fc"], numpy_helper.to_array(WEIGHTS[3]))


def test_an_operator_of_a_set_that_is_not_imported_is_a_graph_error():
    found = basic_block()
    found.model.graph.node[0].domain = "somebody.else"
    with pytest.raises(GraphError, match=r"somebody\.else"):
        with_shapes(found.model)
    with pytest.raises(GraphError, match="cannot be inferred"):
        _ = found.observed


def saved(path, model, **options):
    onnx.save(model, path, **options)
    return path


def test_a_file_is_read_with_the_hash_of_its_bytes(tmp_path):
    path = saved(tmp_path / "model.onnx", basic_block().model)
    found = read_network(path)
    assert found.model == basic_block().model
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.input, found.outputs, found.opset) == ("input", frozenset({"logits"}), 18)
    assert found.observed == basic_block().observed


def test_initializers_among_the_inputs_are_no_inputs(tmp_path):
    model = basic_block().model
    names = [item.name for item in WEIGHTS]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names]
    own = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend([*inputs, *own])
    found = read_network(saved(tmp_path / "old.onnx", model))
    assert found.input == "input"
    assert input_size(found) == (None, 3, 8, 8)


def test_weights_in_another_file_are_read_and_part_of_the_hash(tmp_path):
    outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    path = saved(tmp_path / "model.onnx", basic_block().model, **outside)
    first, graph = read_network(path), path.read_bytes()
    assert {item.data_location for item in first.model.graph.initializer} == {TensorProto.DEFAULT}
    np.testing.assert_array_equal(first.initializers["fc"], numpy_helper.to_array(WEIGHTS[3]))
    values = tmp_path / "weights.bin"
    values.write_bytes(bytes(values.stat().st_size))
    second = read_network(path)
    assert path.read_bytes() == graph
    assert not second.initializers["fc"].any()
    assert second.sha256 != first.sha256


def refusal(path):
    with pytest.raises(GraphError) as caught:
        read_network(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_in_a_file_that_is_gone_are_refused(tmp_path):
    outside = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    path = saved(tmp_path / "model.onnx", basic_block().model, **outside)
    (tmp_path / "weights.bin").unlink()
    assert "keeps its weights in other files" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"this is text, not a model\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(64)],
    ids=["empty", "text", "png"],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    assert "is not an ONNX file" in refusal(path)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(tmp_path, part):
    path = saved(tmp_path / "model.onnx", basic_block().model)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "absent.onnx")
    assert "cannot be read: Is a directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("QuantizeLinear", "input scale", "q"), node("DequantizeLinear", "q scale", "logits")],
        [node("DynamicQuantizeLinear", "input", "q", "s", "z"), node("DequantizeLinear", "q s z", "logits")],
    ],
    ids=["static", "dynamic"],
)
def test_a_quantised_file_is_refused_by_the_operators_that_show_it(tmp_path, nodes):
    path = saved(tmp_path / "int8.onnx", network(nodes, [floats("scale")]).model)
    message = refusal(path)
    assert "quantised already" in message
    assert "DequantizeLinear" in message


def half(name, *shape):
    return numpy_helper.from_array(np.ones(shape, np.float16), name)


@pytest.mark.parametrize(
    "model",
    [
        onnx_model([node("Conv", "input w", "logits")], [half("w", 4, 3, 1, 1)], element=TensorProto.FLOAT16),
        # float32 on the outside only, as converters that keep the types of inputs and outputs write it
        onnx_model(
            [
                node("Cast", "input", "cast", to=TensorProto.FLOAT16),
                node("Conv", "cast w", "conv"),
                node("Cast", "conv", "logits", to=TensorProto.FLOAT),
            ],
            [half("w", 4, 3, 1, 1)],
        ),
        onnx_model(
            [
                helper.make_node("Constant", [], ["w"], value=half("w", 4, 3, 1, 1)),
                node("Cast", "input", "cast", to=TensorProto.FLOAT16),
                node("Conv", "cast w", "logits"),
            ],
        ),
    ],
    ids=["everywhere", "inside", "in constants"],
)
def test_a_file_in_half_precision_is_refused(tmp_path, model):
    assert "is not FP32" in refusal(saved(tmp_path / "half.onnx", model))


def test_two_inputs_and_none_are_refused_by_their_names(tmp_path):
    model = basic_block().model
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N"]))
    assert "has 2 inputs (input, mask)" in refusal(saved(tmp_path / "two.onnx", model))
    del model.graph.input[:]
    assert "has 0 inputs (none)" in refusal(saved(tmp_path / "none.onnx", model))


def test_an_input_that_is_no_batch_of_images_is_refused(tmp_path):
    model = onnx_model([node("Relu", "input", "logits")], dims=("N", 8, 8))
    assert "takes 3 dimensions, expected images [N,C,H,W]" in refusal(saved(tmp_path / "flat.onnx", model))


def test_nodes_out_of_order_are_refused_because_activations_would_be_missed(tmp_path):
    model = basic_block().model
    turned = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(turned)
    assert "node logits takes flat, which nothing before it makes" in refusal(saved(tmp_path / "turned.onnx", model))


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        (("N", 3, 8, 8), (None, 3, 8, 8)),
        ((4, 3, "height", "width"), (4, 3, None, None)),
        ((1, 1, 28, "width"), (1, 1, 28, None)),
        ((0, 3, 8, 8), (None, 3, 8, 8)),
        ((-1, 3, 8, 8), (None, 3, 8, 8)),
    ],
)
def test_the_size_of_the_input_has_none_where_it_is_free(dims, expected):
    assert input_size(network([node("Relu", "input", "logits")], dims=dims)) == expected


def test_a_free_number_of_channels_is_refused():
    with pytest.raises(GraphError, match="channels is free"):
        input_size(network([node("Relu", "input", "logits")], dims=("N", "C", 8, 8)))
