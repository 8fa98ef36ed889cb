"""Placements as readable tables, one for each kind of block, and what is left in float or refused."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
from onnx import TensorProto, helper

from calibration.grids import S7_NARROW, S8, S8_ASYMMETRIC, S8_NARROW, S8_SHIFTED, U8
from calibration.placement import CPUS, TARGETS, place, target
from runtimes.errors import GraphError, InputError
from tests.calibration.networks import NETWORKS, Net, basic, bottleneck, downsample, flattened, option_a

GRIDS = {S8: "s8", U8: "u8", S8_SHIFTED: "s8+128", S8_ASYMMETRIC: "s8 any"}


def sites(net, goal, keep=()):
    """``tensor grid role`` of every tensor that becomes 8 bits."""
    placed = place(net.network(), goal, frozenset(keep))
    return [f"{site.tensor} {GRIDS[site.grid]} {site.role}" for site in placed.sites.values()]


def table(net):
    """A row for each tensor that some target quantises, in order of computation; a column for each target."""
    network = net.network()
    placed = [place(network, target(name)).sites for name in TARGETS]
    rows = []
    for tensor in [network.input, *(name for node in network.nodes for name in node.output)]:
        cells = [f"{GRIDS[each[tensor].grid]} {each[tensor].role}" if tensor in each else "-" for each in placed]
        if set(cells) != {"-"}:
            rows.append(f"{tensor:<12}{cells[0]:<16}{cells[1]:<16}{cells[2]}")
    return "\n".join(rows)


#: Columns: tensorrt, onnxruntime, openvino. "s8+128": stored less 128 steps, so that all 256 levels are positive.
GOLDEN = {
    "basic": """
        input       s8 input        u8 input        s8 input
        relu        s8 input        u8 input        u8 input
        relu1       s8 input        u8 input        u8 input
        conv2       -               u8 result       -
        relu2       -               u8 result       -
        pool        s8+128 input    u8 result       u8 input
        flat        -               u8 result       -
    """,
    "bottleneck": """
        input       s8 input        u8 input        s8 input
        relu        s8+128 input    u8 result       u8 input
        maxpool     -               u8 result       -
        relu1       s8 input        u8 input        u8 input
        relu2       s8+128 input    u8 input        u8 input
        conv3       -               u8 result       -
        relu3       -               u8 result       -
        pool        s8+128 input    u8 result       u8 input
        flat        -               u8 result       -
    """,
    "downsample": """
        input       s8 input        u8 input        s8 input
        relu        s8 input        u8 input        u8 input
        relu1       s8 input        u8 input        u8 input
        conv2       -               u8 result       -
        downsample  s8 shortcut     u8 result       s8 shortcut
        relu2       -               u8 result       -
        pool        s8+128 input    u8 result       u8 input
        flat        -               u8 result       -
    """,
    "projection first": """
        input       s8 input        u8 input        s8 input
        relu        s8 input        u8 input        u8 input
        relu1       s8 input        u8 input        u8 input
        conv2       -               u8 result       -
        downsample  s8 shortcut     u8 result       s8 shortcut
        relu2       -               u8 result       -
        pool        s8+128 input    u8 result       u8 input
        flat        -               u8 result       -
    """,
    "option A": """
        input       s8 input        u8 input        s8 input
        relu        s8 input        u8 input        u8 input
        relu1       s8 input        u8 input        u8 input
        conv2       -               u8 result       -
        slice       -               u8 result       -
        pad         -               u8 result       -
        relu2       -               u8 result       -
        pool        s8+128 input    u8 result       u8 input
        flat        -               u8 result       -
    """,
    "SE": """
        input       s8 input        u8 input        s8 input
        relu        s8 input        u8 input        u8 input
        conv1       -               u8 result       -
        squeezed    s8 input        u8 result       s8 input
        relu1       s8+128 input    u8 input        u8 input
        gate        -               u8 result       -
        mul         -               u8 result       -
        relu2       -               u8 result       -
        pool        s8+128 input    u8 result       u8 input
        flat        -               u8 result       -
    """,
    "pre-activation": """
        input       s8 input        u8 input        s8 input
        stem        s8 shortcut     u8 result       s8 shortcut
        relu1       s8 input        u8 input        u8 input
        conv1       -               u8 result       -
        add1        s8 shortcut     u8 result       s8 shortcut
        relu2       s8 input        u8 input        u8 input
        conv2       -               u8 result       -
        relu3       -               u8 result       -
        pool        s8+128 input    u8 result       u8 input
        flat        -               u8 result       -
    """,
    "grouped": """
        input       s8 input        u8 input        s8 input
        relu        s8+128 input    u8 input        u8 input
        relu1       s8 input        u8 input        u8 input
        relu2       s8+128 input    u8 input        u8 input
        relu3       -               u8 result       -
        pool        s8+128 input    u8 result       u8 input
        flat        -               u8 result       -
    """,
    "flattened": """
        input       s8 input        u8 input        s8 input
        relu        -               u8 result       -
        small       s8 input        u8 result       u8 input
        flat        -               u8 result       -
    """,
    "matmul": """
        input       s8 input        u8 input        s8 input
        relu        -               u8 result       -
        small       s8 input        u8 result       u8 input
        flat        -               u8 result       -
        product     -               u8 result       -
    """,
}


def test_every_network_has_its_table():
    assert set(GOLDEN) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_kind_of_block_is_placed_as_its_table_says(name):
    assert table(NETWORKS[name]()) == textwrap.dedent(GOLDEN[name]).strip()


@pytest.mark.parametrize("goal", TARGETS)
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (basic, "stem:0 conv1:0 conv2:0 logits:0"),
        (downsample, "stem:0 conv1:0 conv2:0 downsample:0 logits:0"),
        (NETWORKS["grouped"], "stem:0 conv1:0 conv2:0 conv3:0 logits:0"),
        (flattened, "stem:0 logits:1"),
        (NETWORKS["matmul"], "stem:0 product:1"),
    ],
    ids=["basic", "downsample", "grouped", "gemm", "matmul"],
)
def test_weights_have_one_scale_for_each_output_channel(make, expected, goal):
    network = make().network()
    placed = place(network, target(goal))
    assert " ".join(f"{name}:{each.axis}" for name, each in placed.weights.items()) == expected
    for name, each in placed.weights.items():
        assert [each.node, each.data, each.name] == [name, *network.producers[name].input[:2]]
    assert not placed.left


@pytest.mark.parametrize(
    ("tensor", "source"), [("slice", "relu"), ("pad", "relu"), ("flat", "pool"), ("conv2", "conv2")]
)
def test_a_site_has_the_range_of_the_tensor_that_it_was_cut_from(tensor, source):
    assert place(option_a().network(), target("onnxruntime")).sites[tensor].source == source


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        ("none", "input:s8 relu:s8 relu1:s8 relu2:s8 pool:s8"),
        ("free", "input:s8 relu:s8+128 relu1:s8 relu2:s8+128 pool:s8+128"),
        ("all", "input:s8 relu:s8+128 relu1:s8+128 relu2:s8+128 pool:s8+128"),
    ],
)
def test_zero_points_are_folded_over_paddings_only_where_asked(folds, expected):
    placed = place(bottleneck().network(), target("tensorrt", folds=folds))
    assert " ".join(f"{name}:{GRIDS[site.grid]}" for name, site in placed.sites.items()) == expected


def test_a_zero_point_is_not_folded_where_a_consumer_needs_the_real_zero():
    net = Net()
    net.op("Sigmoid", net.stem(), "gate")
    net.relu(net.conv("relu", "conv1", 4, 4, 1), "relu1")
    net.op("Mul", "relu1 gate", "mul")
    assert sites(net.head("mul"), target("tensorrt", folds="all")) == [
        "input s8 input",
        "relu s8 input",
        "pool s8 input",
    ]


def test_a_zero_point_is_not_folded_into_a_sum_that_is_an_output():
    net = Net()
    net.conv(net.stem(), "conv1", 4, 4)
    net.op("Add", "conv1 relu", "logits")
    placed = place(net.network(rank=4), target("tensorrt", folds="all"))
    assert placed.sites["relu"].grid == S8


def test_a_zero_point_is_not_folded_before_a_layer_without_bias():
    net = Net()
    net.constant("fc.weight", np.ones((4, 5)))
    net.op("GlobalAveragePool", net.stem(), "pool")
    net.op("Flatten", "pool", "flat")
    net.op("MatMul", "flat fc.weight", "logits")
    assert sites(net, target("tensorrt", folds="all")) == ["input s8 input", "pool s8 input"]


def test_a_layer_to_keep_is_left_and_what_only_it_took_is_not_quantised():
    placed = place(basic().network(), target("tensorrt"), frozenset({"conv2"}))
    assert dict(placed.left) == {"conv2": "it is to stay in float"}
    assert list(placed.weights) == ["stem", "conv1", "logits"]
    assert list(placed.sites) == ["input", "relu", "pool"]


def test_an_addition_is_quantised_as_long_as_one_convolution_before_it_is():
    one = sites(downsample(), target("onnxruntime"), ["conv2"])
    both = sites(downsample(), target("onnxruntime"), ["conv2", "downsample"])
    assert {"conv2 u8 branch", "downsample u8 result"} <= set(one)
    assert not any(row.startswith(("conv2", "downsample")) for row in both)


def test_an_addition_takes_integers_on_both_sides_and_a_convolution_in_its_data_only():
    network = basic().network()
    placed = place(network, target("onnxruntime"))
    add, conv = network.producers["add"], network.producers["conv1"]
    assert [placed.reads_integers(add, position) for position in (0, 1)] == [True, True]
    assert [placed.reads_integers(conv, position) for position in (0, 1, 2)] == [True, False, False]
    assert not placed.reads_integers(network.producers["relu"], 0)
    on_tensorrt = place(network, target("tensorrt"))
    assert [on_tensorrt.reads_integers(add, position) for position in (0, 1)] == [False, True]


def computed_weights(net):
    net.op("Mul", "w w", "product")
    net.op("Conv", "relu product", "odd")


def computed_bias(net):
    net.op("GlobalAveragePool", "relu", "pooled")
    net.constant("fc", np.ones((4, 4)))
    net.op("Gemm", f"{net.op('Flatten', 'pooled', 'features')} fc features", "odd")


def batched(net):
    net.constant("w3", np.ones((1, 8, 8)))
    net.op("MatMul", "relu w3", "odd")


def weights_times_data(net):
    net.constant("fc", np.ones((8, 8)))
    net.op("MatMul", "fc relu", "odd")


def gemm(**attributes):
    def add(net):
        net.op("GlobalAveragePool", "relu", "pooled")
        net.op("Flatten", "pooled", "features")
        net.constant("fc", np.ones((4, 4)))
        net.op("Gemm", "features fc", "odd", **attributes)

    return add


def bias_of_rows(net):
    net.op("GlobalAveragePool", "relu", "pooled")
    net.op("Flatten", "pooled", "features")
    net.constant("fc", np.ones((4, 4)))
    net.constant("rows", np.ones((3, 4)))
    net.op("Gemm", "features fc rows", "odd")


@pytest.mark.parametrize(
    ("add", "reason"),
    [
        (computed_weights, "computed"),
        (computed_bias, "computed"),
        (batched, "3 dimensions, not 2"),
        (weights_times_data, "its data does not come from the input"),
        (gemm(alpha=2.0), "scales its product"),
        (gemm(beta=0.5), "scales its product"),
        (gemm(transA=1), "scales its product or transposes its data"),
        (bias_of_rows, "more than one value for each channel"),
        (lambda net: net.op("Conv", "relu w", "odd", auto_pad="SAME_UPPER"), "depends on the image"),
        (lambda net: net.op("ConvTranspose", "relu w", "odd"), "ConvTranspose has no 8-bit form"),
    ],
    ids=["weights", "bias", "batched", "swapped", "alpha", "beta", "transA", "rows", "auto_pad", "transposed"],
)
def test_a_layer_that_cannot_be_quantised_is_left_with_the_reason(add, reason):
    net = Net()
    net.constant("w", np.ones((4, 4, 3, 3)))
    net.stem()
    add(net)
    net.op("Neg", "odd", "logits")
    placed = place(net.network(rank=4), target("onnxruntime"))
    assert list(placed.left) == ["odd"]
    assert reason in placed.left["odd"]
    assert list(placed.weights) == ["stem"]


def test_a_convolution_without_padding_to_the_image_is_taken_whatever_it_calls_it():
    net = Net()
    net.conv(net.stem(), "conv1", 4, 4, pads=[0] * 4, auto_pad="VALID")
    assert "conv1" in place(net.head("conv1").network(), target("tensorrt")).weights


def test_what_an_output_of_the_network_feeds_stays_in_float():
    net = basic()
    network = net.network()
    network.model.graph.output.append(helper.make_tensor_value_info("relu1", TensorProto.FLOAT, None))
    placed = place(network, target("onnxruntime"))
    assert "output of the network" in placed.left["conv2"]
    assert "relu1" not in placed.sites


@pytest.mark.parametrize("goal", TARGETS)
def test_a_network_without_layers_has_an_empty_placement(goal):
    net = Net()
    net.op("Sigmoid", "input", "logits")
    placed = place(net.network(rank=4), target(goal))
    assert not placed.weights
    assert not placed.sites


def test_what_only_a_sigmoid_reads_is_not_rounded():
    net = Net()
    net.op("Sigmoid", net.conv(net.stem(), "conv1", 4, 4), "gate")
    assert "conv1" not in place(net.head("gate").network(), target("onnxruntime")).sites


def test_an_opset_without_scales_per_channel_is_refused():
    assert place(basic().network(opset=13), target("tensorrt")).weights
    with pytest.raises(GraphError, match=r"has opset 12.*need 13 or newer"):
        place(basic().network(opset=12), target("tensorrt"))


def test_an_unknown_target_is_refused_with_those_that_there_are():
    with pytest.raises(
        InputError, match=r"received the target 'tflite', expected one of tensorrt, onnxruntime, openvino"
    ):
        target("tflite")


def test_an_unknown_processor_is_refused_with_those_that_there_are():
    with pytest.raises(InputError, match=r"received the processor 'avx512', expected one of any, vnni, avx2, arm"):
        target("onnxruntime", cpu="avx512")


@pytest.mark.parametrize(
    ("name", "cpu"), [("tensorrt", "avx2"), ("tensorrt", "vnni"), ("tensorrt", "arm"), ("openvino", "arm")]
)
def test_a_processor_that_a_target_does_not_know_is_refused(name, cpu):
    with pytest.raises(InputError, match=f"{cpu} cannot be chosen for {name}"):
        target(name, cpu=cpu)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_folding_is_for_the_target_without_zero_points(name):
    with pytest.raises(InputError, match=f"{name} has zero points of its own"):
        target(name, folds="all")


@pytest.mark.parametrize(
    ("cpu", "signed", "weights", "spares"),
    [
        ("any", U8, S8_NARROW, True),
        ("vnni", U8, S8_NARROW, False),
        ("avx2", U8, S7_NARROW, False),
        ("arm", S8_ASYMMETRIC, S8_NARROW, False),
    ],
)
def test_a_processor_decides_over_integers_and_overflow(cpu, signed, weights, spares):
    goal = target("onnxruntime", cpu=cpu)
    assert (goal.signed, goal.positive, goal.weights, goal.spares_pairs) == (signed, signed, weights, spares)


def test_every_processor_is_tried_here():
    assert CPUS == ("any", "vnni", "avx2", "arm")
