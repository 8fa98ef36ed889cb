"""The written file against a plain one: in every bit where scales are powers of two, within a step where they are not.

The oracle (:func:`tests.calibration.networks.plain`) knows nothing of offsets, folded biases or removed Relus: it has
UINT8 with the zero point 0 where the file folds a zero point away.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.parameters import initial
from calibration.placement import place, target
from calibration.qdq import write
from runtimes.errors import GraphError
from runtimes.int8_sim import Int8SimRuntime
from tests.calibration.networks import (
    NETWORKS,
    Net,
    basic,
    bottleneck,
    downsample,
    exact,
    flattened,
    images,
    observers_of,
    option_a,
    plain,
    run,
    session,
    squeeze_excite,
)

GOALS = {
    "tensorrt all": target("tensorrt", folds="all"),
    "tensorrt free": target("tensorrt"),
    "tensorrt none": target("tensorrt", folds="none"),
    "onnxruntime": target("onnxruntime"),
    "onnxruntime arm": target("onnxruntime", cpu="arm"),
    "openvino": target("openvino"),
}
BATCH = images(4, seed=2)


def written(net, goal, keep=(), **options):
    return write(*exact(net, GOALS[goal], frozenset(keep), **options))


def agree(net, goal, keep=(), **options):
    """The file gives what the oracle gives, and that is neither the float network's result nor a constant."""
    network, placement, parameters = exact(net, GOALS[goal], frozenset(keep), **options)
    model = write(network, placement, parameters)
    expected = run(plain(network, placement, parameters), BATCH)
    np.testing.assert_array_equal(run(model, BATCH), expected)
    assert np.unique(expected).size > 4
    assert (expected != run(network.model, BATCH)).any()
    return model


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def optimised(model, folder):
    """The operators that ONNX Runtime runs in the end."""
    session(model, optimize=True, save=str(folder / "optimised.onnx"))
    return operators(onnx.load(folder / "optimised.onnx"))


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_the_placement_says_in_every_bit(name, goal):
    model = agree(NETWORKS[name](), goal)
    with Int8SimRuntime(model.SerializeToString()) as runtime:
        np.testing.assert_array_equal(runtime.run(BATCH), run(model, BATCH))


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("opset", [13, 21])
def test_other_opsets_compute_the_same(opset, goal):
    assert agree(option_a(), goal, opset=opset).opset_import[0].version == opset


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("layer", ["stem", "conv1", "conv2", "downsample", "logits"])
def test_a_kept_layer_computes_in_float_and_all_others_as_before(layer, goal):
    model = agree(downsample(), goal, [layer])
    (node,) = (node for node in model.graph.node if node.name == layer)
    assert not node.input[1].endswith(".dequantized")
    assert sum("weight.dequantized" in name for node in model.graph.node for name in node.input) == 4


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("name", ["bottleneck", "projection first", "SE"])
def test_scales_that_are_no_powers_of_two_change_ties_only(name, goal):
    network = NETWORKS[name]().network()
    placement = place(network, GOALS[goal])
    parameters = initial(network, placement, observers_of(network, images()), "minmax", {})
    got, expected = run(write(network, placement, parameters), BATCH), run(plain(network, placement, parameters), BATCH)
    exactly = run(network.model, BATCH)
    # A tie that falls to the other side moves the result by a fraction of what quantisation does to it.
    assert np.abs(got - expected).max() < 0.1 * np.abs(exactly - expected).max()


@pytest.mark.parametrize("goal", GOALS)
def test_the_same_arguments_give_the_same_bytes(goal):
    first, second = (written(option_a(), goal).SerializeToString() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("goal", GOALS)
def test_the_float_network_is_not_changed_and_its_metadata_go_along(goal):
    network, placement, parameters = exact(bottleneck(), GOALS[goal])
    helper.set_model_props(network.model, {"classes": "5"})
    before = network.model.SerializeToString()
    model = write(network, placement, parameters)
    onnx.checker.check_model(model, full_check=True)
    assert network.model.SerializeToString() == before
    assert {item.key: item.value for item in model.metadata_props} == {"classes": "5"}


@pytest.mark.parametrize("goal", GOALS)
def test_the_file_holds_nothing_that_no_node_takes(goal):
    model = written(squeeze_excite(), goal)
    taken = {name for node in model.graph.node for name in node.input} | {"logits"}
    assert {item.name for item in model.graph.initializer} <= taken
    assert {name for node in model.graph.node for name in node.output} <= taken


def test_initializers_that_are_listed_as_inputs_do_not_become_inputs():
    network, placement, parameters = exact(basic(), GOALS["onnxruntime"])
    network.model.graph.input.extend(
        helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in network.model.graph.initializer
    )
    model = write(network, placement, parameters)
    assert [item.name for item in model.graph.input] == ["input"]
    np.testing.assert_array_equal(run(model, BATCH), run(plain(network, placement, parameters), BATCH))


# --- What TensorRT's parser takes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", ["tensorrt all", "tensorrt free", "tensorrt none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tensorrt_gets_int8_with_zero_points_of_0_and_float_biases(name, goal):
    model = written(NETWORKS[name](), goal)
    stored = {item.name: item for item in model.graph.initializer}
    assert not {TensorProto.UINT8, TensorProto.INT32} & {item.data_type for item in stored.values()}
    linear = [node for node in model.graph.node if node.op_type.endswith("eLinear")]
    for node in linear:
        assert stored[node.input[2]].data_type == TensorProto.INT8
        assert not numpy_helper.to_array(stored[node.input[2]]).any()
    assert len(linear) >= 6


@pytest.mark.parametrize(
    ("goal", "pads", "adds", "relus"),
    [
        ("tensorrt all", 1, 2, 1),  # before the padded conv2; the residual and the one before pool; the last Relu
        ("tensorrt free", 0, 2, 2),  # and relu1, whose taker is padded
        ("tensorrt none", 0, 1, 4),
        ("onnxruntime", 0, 1, 0),
        ("openvino", 0, 1, 1),
    ],
)
def test_folding_costs_no_operators_but_those_it_has_to(goal, pads, adds, relus):
    found = operators(written(bottleneck(), goal))
    assert (found["Pad"], found["Add"], found["Relu"]) == (pads, adds, relus)


@pytest.mark.parametrize("side", ["conv2", "conv1"])
@pytest.mark.parametrize("goal", ["tensorrt all", "tensorrt free"])
def test_a_constant_is_folded_into_a_layer_that_stays_in_float(goal, side):
    agree(basic(), goal, [side])


@pytest.mark.parametrize("goal", GOALS)
def test_a_sum_that_is_an_output_is_the_real_one(goal):
    net = Net()
    net.conv(net.stem(), "conv1", 4, 4, 1)
    net.op("Add", "conv1 relu", "logits")
    agree(net, goal, rank=4)


@pytest.mark.parametrize("goal", GOALS)
def test_a_pool_that_is_an_output_gives_the_real_values(goal):
    net = Net()
    net.conv(net.stem(), "conv1", 4, 4, 1)
    net.op("Add", "conv1 relu", "add")
    net.op("MaxPool", "add", "logits", kernel_shape=[2, 2])
    agree(net, goal, rank=4)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("counted", [0, 1])
def test_an_average_over_padding_counts_real_zeros(counted, goal):
    net = Net()
    net.conv(net.stem(), "conv1", 4, 4, 1)
    net.op("Add", "conv1 relu", "add")
    net.op("AveragePool", "add", "small", kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=counted)
    agree(net.head(net.conv("small", "conv2", 4, 4, 1)), goal)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("fill", [0.0, 1.5])
def test_a_pad_fills_in_what_it_did(fill, mode, goal):
    net = Net()
    net.constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    net.constant("fill", fill)
    net.op("Pad", f"{net.stem()} pads fill", "padded", mode=mode)
    net.conv("padded", "conv1", 4, 4, pads=[0] * 4)
    net.conv("relu", "conv2", 4, 4, 1)
    agree(net.head(net.op("Add", "conv1 conv2", "add")), goal)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("sides", ["conv1 downsample", "downsample conv1"])
def test_a_constant_does_not_go_through_a_projection_that_is_quantised_itself(sides, goal):
    net = Net()
    net.conv(net.stem(), "hidden", 4, 4, 1)
    net.conv(net.relu("hidden", "relu1"), "conv1", 4, 4, 1)
    net.conv("relu", "downsample", 4, 4, 1)
    net.op("Add", sides, "add")
    model = agree(net.head(net.conv(net.relu("add", "relu2"), "conv2", 4, 4, 1)), goal)
    assert "downsample.quantized" in {name for node in model.graph.node for name in node.output}


@pytest.mark.parametrize("goal", GOALS)
def test_a_doubled_convolution_is_doubled_once(goal):
    net = Net()
    net.conv(net.stem(), "conv1", 4, 4, 1)
    net.op("Add", "conv1 conv1", "add")
    inner = net.relu("add", "relu1")
    agree(net.head(net.conv(inner, "conv2", 4, 4, 1)), goal)


@pytest.mark.parametrize("goal", GOALS)
def test_sums_of_sums_keep_their_constants(goal):
    net = Net()
    start = net.stem()
    for index in (1, 2):
        net.conv(start, f"conv{index}", 4, 4, 1)
    net.op("Add", "conv1 relu", "add1")
    net.op("Add", "add1 conv2", "add2")
    inner = net.relu("add2", "relu1")
    agree(net.head(net.conv(inner, "conv3", 4, 4, 1)), goal)


@pytest.mark.parametrize("goal", GOALS)
def test_two_layers_can_share_weights(goal):
    net = Net()
    inner = net.relu(net.conv(net.stem(), "conv1", 4, 4), "relu1")
    net.op("Conv", f"{inner} conv1.weight conv1.bias", "conv2", pads=[1, 1, 1, 1])
    net.op("Add", "conv2 relu", "add")
    model = agree(net.head(net.relu("add", "relu2")), goal)
    assert sum(name == "conv1.weight.dequantized" for node in model.graph.node for name in node.output) == 1


@pytest.mark.parametrize("goal", GOALS)
def test_a_scalar_bias_and_weights_in_constant_nodes_are_taken(goal):
    net = Net()
    net.stem()
    net.conv("relu", "conv1", 4, 4)
    stored = {item.name: item for item in net.constants}
    net.constants = [item for item in net.constants if item.name != "conv1.weight"]
    net.nodes.insert(0, helper.make_node("Constant", [], ["conv1.weight"], value=stored["conv1.weight"]))
    net.op("GlobalAveragePool", net.relu("conv1", "relu1"), "pool")
    net.constant("fc.weight", np.random.default_rng(5).standard_normal((4, 5)))
    net.constant("fc.bias", 0.25)
    net.op("Gemm", f"{net.op('Flatten', 'pool', 'flat')} fc.weight fc.bias", "logits")
    agree(net, goal)


# --- Relu -----------------------------------------------------------------------------------------------------------


def test_a_relu_goes_only_where_all_that_take_it_read_its_integers():
    def relus(also):
        net = Net()
        net.conv(net.stem(), "conv1", 4, 4)
        net.op(also, "relu", "other")
        net.op("Mul", "conv1 other", "mul")
        return operators(agree(net.head("mul"), "openvino"))["Relu"]

    assert relus("Identity") == 0
    assert relus("Sigmoid") == 1


def test_a_relu_that_is_an_output_stays():
    network = basic().network()
    network.model.graph.output.append(helper.make_tensor_value_info("relu2", TensorProto.FLOAT, [None] * 4))
    placement = place(network, GOALS["onnxruntime"])
    parameters = initial(network, placement, observers_of(network, images()), "minmax", {})
    model = write(network, placement, parameters)
    assert [node.output[0] for node in model.graph.node if node.op_type == "Relu"] == ["relu2"]


# --- What ONNX Runtime makes of its file ----------------------------------------------------------------------------


def test_int32_biases_have_the_scale_of_the_accumulators():
    network, placement, parameters = exact(bottleneck(), GOALS["onnxruntime"])
    model = write(network, placement, parameters)
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for name, each in placement.weights.items():
        assert stored[f"{name}.bias.quantized"].dtype == np.int32
        data, weight = stored[f"{each.data}.scale"], stored[f"{each.name}.scale"]
        np.testing.assert_array_equal(stored[f"{name}.bias.scale"], data * weight)
        real = stored[f"{name}.bias.quantized"] * stored[f"{name}.bias.scale"]
        np.testing.assert_array_equal(real, parameters.biases[name])


def test_the_bias_of_a_channel_without_weights_to_speak_of_survives():
    net = basic()
    for item in net.constants:
        if item.name == "conv1.weight":  # a BatchNorm that weight decay has emptied
            values = numpy_helper.to_array(item).copy()
            values[1] *= 1e-12
            item.CopyFrom(numpy_helper.from_array(values, item.name))
        if item.name == "conv1.bias":
            item.CopyFrom(numpy_helper.from_array(np.array([0.1, 1.5, 0.2, 0.3], np.float32), item.name))
    network = net.network()
    placement = place(network, GOALS["onnxruntime"])
    parameters = initial(network, placement, observers_of(network, images()), "minmax", {})
    model = write(network, placement, parameters)
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    real = stored["conv1.bias.quantized"].astype(np.float64) * stored["conv1.bias.scale"]
    np.testing.assert_allclose(real, [0.1, 1.5, 0.2, 0.3], rtol=1e-3)
    np.testing.assert_allclose(run(model, BATCH), run(plain(network, placement, parameters), BATCH), rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (basic, {"QLinearConv": 3, "QLinearAdd": 1}),
        (bottleneck, {"QLinearConv": 4, "QLinearAdd": 1, "NhwcMaxPool": 1}),
        (downsample, {"QLinearConv": 4, "QLinearAdd": 1}),
        (option_a, {"QLinearConv": 3, "QLinearAdd": 1}),
        (NETWORKS["grouped"], {"QLinearConv": 4}),
    ],
    ids=["basic", "bottleneck", "downsample", "option A", "grouped"],
)
def test_onnx_runtime_computes_every_layer_in_integers(make, expected, tmp_path):
    model = written(make(), "onnxruntime")
    found = optimised(model, tmp_path)
    assert {name: found[name] for name in expected} == expected
    assert found["QGemm"] == found["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "FusedConv", "Add", "Relu", "Gemm", "GlobalAveragePool", "MaxPool"} & set(found)
    np.testing.assert_array_equal(run(model, BATCH, optimize=True), run(model, BATCH))


def test_onnx_runtime_averages_and_classifies_in_integers(tmp_path):
    found = optimised(written(flattened(), "onnxruntime"), tmp_path)
    assert (found["QLinearConv"], found["QLinearAveragePool"], found["QGemm"]) == (1, 1, 1)


@pytest.mark.parametrize(("layer", "convolutions"), [("stem", 3), ("conv1", 3), ("downsample", 3)])
def test_onnx_runtime_leaves_a_kept_layer_in_float(layer, convolutions, tmp_path):
    model = written(downsample(), "onnxruntime", [layer])
    found = optimised(model, tmp_path)
    assert (found["Conv"], found["QLinearConv"], found["QLinearAdd"]) == (1, convolutions, 1)
    np.testing.assert_array_equal(run(model, BATCH, optimize=True), run(model, BATCH))


def test_onnx_runtime_would_quantise_a_kept_layer_without_the_activation_behind_it(tmp_path):
    model = written(downsample(), "onnxruntime", ["conv1"])
    for node in model.graph.node:
        if node.op_type == "LeakyRelu":
            node.op_type = "Identity"
            del node.attribute[:]
    assert optimised(model, tmp_path)["QLinearConv"] == 4
    assert (run(model, BATCH, optimize=True) != run(model, BATCH)).any()


def test_arm_gets_signed_activations_with_zero_points_of_their_own():
    model = written(basic(), "onnxruntime arm")
    stored = {item.name: item for item in model.graph.initializer}
    assert TensorProto.UINT8 not in {item.data_type for item in stored.values()}
    assert numpy_helper.to_array(stored["relu1.zero_point"]) == -128
    assert operators(model)["Relu"] == 0


def test_openvino_gets_bytes_for_what_is_positive_and_float_biases():
    model = written(downsample(), "openvino")
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    assert kinds["relu1.zero_point"] == TensorProto.UINT8
    assert kinds["downsample.zero_point"] == TensorProto.INT8
    assert kinds["conv1.bias.float"] == TensorProto.FLOAT


def test_weights_that_would_overflow_are_spared_in_the_file():
    goal = GOALS["openvino"]
    network, placement, parameters = exact(basic(), goal)
    spared, unspared = (
        write(network, replace(placement, target=replace(goal, spares_pairs=spares)), parameters)
        for spares in (True, False)
    )
    weights = [
        next(numpy_helper.to_array(item) for item in model.graph.initializer if item.name == "conv1.weight.quantized")
        for model in (spared, unspared)
    ]
    sums = [np.abs(np.sum(each.astype(int).transpose(0, 2, 3, 1).reshape(-1, 2), axis=1)).max() for each in weights]
    assert sums[0] <= 128 < sums[1]


def test_a_tensor_that_has_the_name_of_a_new_one_is_refused():
    net = Net()
    inner = net.relu(net.conv(net.stem(), "relu.quantized", 4, 4), "relu1")
    with pytest.raises(GraphError, match=r"a tensor relu\.quantized already.*rename"):
        write(*exact(net.head(net.relu(net.conv(inner, "conv2", 4, 4), "relu2")), GOALS["openvino"]))
