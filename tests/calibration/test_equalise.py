"""Equalisation changes ranges and nothing else: against the network itself in float64."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibration.equalise import equalised
from calibration.graph import Network
from tests.calibration.networks import (
    NETWORKS,
    Net,
    basic,
    bottleneck,
    downsample,
    flattened,
    images,
    observers_of,
    option_a,
    reference,
    run,
    values_of,
)

BATCH = images(3, seed=4)


def uneven(net, seed=0, spread=1.0):
    """Scale every weight's output channels by random factors: what is there to be evened out."""
    random = np.random.default_rng(seed)
    for item in net.constants:
        if item.name.endswith(".weight"):
            values = numpy_helper.to_array(item)
            factors = np.exp(spread * random.standard_normal(len(values))).reshape(-1, *[1] * (values.ndim - 1))
            item.CopyFrom(numpy_helper.from_array((values * factors).astype(np.float32), item.name))
    return net


def equal_functions(network, other):
    expected = reference(network, BATCH)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(reference(other, BATCH), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def changed(network, other):
    """Names of the constants that are not the same any more."""
    before, after = network.initializers, other.initializers
    assert set(before) == set(after)
    return {name for name in before if not np.array_equal(before[name], after[name])}


def peaks(network, tensor):
    """Largest magnitude of each channel."""
    return np.abs(values_of(network, BATCH, [tensor])[tensor]).max(axis=(0, 2, 3))


def random_network(random):
    """A stem, stages of random blocks with every kind of shortcut, and a classifier."""
    net = Net(seed=random.randrange(1000))
    width, name = 4, net.stem()
    for block in range(random.randint(1, 3)):
        label, kind = f"b{block}", random.choice(["identity", "projection", "option A", "grouped", "plain"])
        made = width * 2 if kind == "option A" else width
        inner = net.relu(net.conv(name, f"{label}.conv1", made, width, random.choice([1, 3])), f"{label}.relu1")
        if kind == "grouped":
            inner = net.conv(inner, f"{label}.grouped", made, made // 2, group=2)
            inner = net.op("LeakyRelu", inner, f"{label}.leaky")
        net.conv(inner, f"{label}.conv2", made, made, bias=random.choice([True, False]))
        shortcut = name
        if kind == "projection":
            shortcut = net.conv(name, f"{label}.down", made, width, 1)
        if kind == "option A":
            front = random.randint(0, width)
            net.constant(f"{label}.pads", [0, front, 0, 0, 0, width - front, 0, 0], np.int64)
            shortcut = net.op("Pad", f"{name} {label}.pads", f"{label}.pad")
        if kind == "plain":
            name = f"{label}.conv2"
        else:
            net.op("Add", random.choice([f"{label}.conv2 {shortcut}", f"{shortcut} {label}.conv2"]), f"{label}.add")
            name = net.relu(f"{label}.add", f"{label}.relu2") if random.random() < 0.7 else f"{label}.add"
        width = made
    if random.random() < 0.3:
        return net.head(name, width)
    net.op("MaxPool", name, "small", kernel_shape=[4, 4], strides=[4, 4])
    net.gemm(net.op("Flatten", "small", "flat"), width * 4, transB=random.choice([0, 1]))
    return net


@settings(deadline=None, max_examples=40)
@given(st.randoms(use_true_random=False), st.sampled_from([0.3, 1.0]))
def test_a_random_residual_network_computes_the_same(random, strength):
    network = uneven(random_network(random), random.randrange(1000)).network()
    found, count = equalised(network, observers_of(network, BATCH), strength)
    equal_functions(network, found)
    assert count
    assert changed(network, found)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_block_computes_the_same(name):
    network = uneven(NETWORKS[name]()).network()
    before = network.model.SerializeToString()
    found, count = equalised(network, observers_of(network, BATCH), 1.0)
    equal_functions(network, found)
    onnx.checker.check_model(found.model)
    assert found.sha256 == network.sha256
    assert network.model.SerializeToString() == before
    assert (count > 0) is bool(changed(network, found))
    assert count or name == "pre-activation"


@pytest.mark.parametrize("name", NETWORKS)
def test_strength_0_changes_nothing(name):
    network = uneven(NETWORKS[name]()).network()
    found, count = equalised(network, observers_of(network, BATCH), 0.0)
    assert count == 0
    assert found is network


@pytest.mark.parametrize(
    ("make", "tensors"),
    [
        (basic, ["relu1"]),
        (bottleneck, ["relu1", "relu2"]),
        (downsample, ["relu", "relu1"]),
        (option_a, ["relu1"]),
        (NETWORKS["grouped"], ["relu", "relu1", "relu2", "relu3"]),
    ],
    ids=["basic", "bottleneck", "downsample", "option A", "grouped"],
)
def test_channels_between_two_layers_become_equally_large(make, tensors):
    network = uneven(make(), spread=0.5).network()
    found, _ = equalised(network, observers_of(network, BATCH), 1.0)
    for tensor in tensors:
        before, after = peaks(network, tensor), peaks(found, tensor)
        there = before > 0.01 * before.max()  # others are beyond the largest factor
        assert before.max() > 1.3 * before[there].min()
        assert there.sum() > 2
        np.testing.assert_allclose(after[there], after.max(), rtol=1e-4)


def test_half_the_strength_takes_the_root_of_the_difference():
    network = uneven(basic()).network()
    found, _ = equalised(network, observers_of(network, BATCH), 0.5)
    before, after = peaks(network, "relu1"), peaks(found, "relu1")
    np.testing.assert_allclose(after.max() / after.min(), np.sqrt(before.max() / before.min()), rtol=1e-4)


def test_along_a_residual_stage_a_channel_has_one_factor():
    network = uneven(basic()).network()
    found, _ = equalised(network, observers_of(network, BATCH), 1.0)
    before, after = (values_of(each, BATCH, ["relu", "conv2", "relu2"]) for each in (network, found))
    factors = after["relu"].max(axis=(0, 2, 3)) / before["relu"].max(axis=(0, 2, 3))
    assert np.ptp(factors) > 0.1
    for name in ("conv2", "relu2"):
        np.testing.assert_allclose(after[name], before[name] * factors.reshape(1, -1, 1, 1), rtol=1e-3, atol=1e-5)
    # The largest of the three is what was evened out.
    largest = np.max([np.abs(after[name]).max(axis=(0, 2, 3)) for name in after if name != "input"], axis=0)
    np.testing.assert_allclose(largest, largest[0], rtol=1e-4)


def test_option_a_ties_a_channel_to_the_one_that_it_is_padded_to():
    network = uneven(option_a()).network()
    found, _ = equalised(network, observers_of(network, BATCH), 1.0)
    before, after = (values_of(each, BATCH, ["relu", "pad", "conv2"]) for each in (network, found))
    factors = after["relu"].max(axis=(0, 2, 3)) / before["relu"].max(axis=(0, 2, 3))
    np.testing.assert_allclose(after["pad"][:, 2:6], before["pad"][:, 2:6] * factors.reshape(1, -1, 1, 1), rtol=1e-4)
    ratio = np.abs(after["conv2"]).max(axis=(0, 2, 3)) / np.abs(before["conv2"]).max(axis=(0, 2, 3))
    np.testing.assert_allclose(ratio[2:6], factors, rtol=1e-4)


def test_a_channel_of_a_map_has_one_factor_for_all_its_pixels_in_a_classifier():
    network = uneven(flattened()).network()
    found, count = equalised(network, observers_of(network, BATCH), 1.0)
    factors = (found.initializers["fc.weight"] / network.initializers["fc.weight"]).reshape(4, 4, 5)  # [C,HW,classes]
    assert count >= 3
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1], factors.shape), rtol=1e-5)


def test_a_channel_that_is_hardly_ever_there_is_not_blown_up_without_end():
    net = basic()
    for item in net.constants:
        if item.name.startswith("conv1."):
            values = numpy_helper.to_array(item).copy()
            values[1] *= 1e-6
            item.CopyFrom(numpy_helper.from_array(values, item.name))
    network = net.network()
    found, _ = equalised(network, observers_of(network, BATCH), 1.0)
    factors = found.initializers["conv1.weight"] / network.initializers["conv1.weight"]  # [O, I, kh, kw]
    taken = found.initializers["stem.weight"][:, 0, 0, 0] / network.initializers["stem.weight"][:, 0, 0, 0]
    np.testing.assert_allclose(factors[1, :, 0, 0] * taken, 32, rtol=1e-5)


def test_a_dead_channel_is_left_alone():
    net = basic()
    for item in net.constants:
        if item.name == "conv1.bias":
            item.CopyFrom(numpy_helper.from_array(np.array([0.1, -99.0, 0.1, 0.1], np.float32), item.name))
    network = net.network()
    found, _ = equalised(network, observers_of(network, BATCH), 1.0)
    assert found.initializers["conv1.bias"][1] == -99.0
    equal_functions(network, found)


def between(kind, *, sources="conv1", **attributes):
    """Stem, conv1, an operator that is not homogeneous, conv2, head."""
    net = Net()
    net.conv(net.stem(), "conv1", 4, 4)
    net.constant("low", 0.0)
    net.constant("high", 6.0)
    net.constant("slopes", np.full((4, 1, 1), 0.25))
    net.constant("some", np.ones((1, 4, 1, 1)))
    net.op(kind, sources, "odd", **attributes)
    return net.head(net.conv("odd", "conv2", 4, 4))


@pytest.mark.parametrize(
    ("kind", "sources", "attributes"),
    [
        ("Sigmoid", "conv1", {}),
        ("Clip", "conv1 low high", {}),
        ("Add", "conv1 some", {}),
        ("Mul", "conv1 relu", {}),
        ("Softmax", "conv1", {"axis": 1}),
        ("Transpose", "conv1", {"perm": [0, 1, 3, 2]}),
    ],
)
def test_no_factor_goes_through_what_is_not_known_to_let_it(kind, sources, attributes):
    network = uneven(between(kind, sources=sources, **attributes)).network()
    found, count = equalised(network, observers_of(network, BATCH), 1.0)
    equal_functions(network, found)
    # The stem's output is free, unless the operator takes it too, and so is conv2's; what the operator takes is not,
    # and what it gives is not either: conv2 has one factor for all of its inputs.
    before = set() if "relu" in sources else {"stem.weight", "stem.bias", "conv1.weight"}
    assert changed(network, found) == before | {"conv2.weight", "conv2.bias", "fc.weight"}
    ratios = found.initializers["conv2.weight"] / network.initializers["conv2.weight"]
    np.testing.assert_allclose(ratios, np.broadcast_to(ratios[:, :1, :1, :1], ratios.shape), rtol=1e-5)
    assert count <= 8


def test_neither_the_input_nor_the_output_gets_factors():
    network = uneven(basic()).network()
    observers = observers_of(network, BATCH)
    observers["logits"] = observers["pool"]
    found, _ = equalised(network, observers, 1.0)
    assert "fc.bias" not in changed(network, found)
    equal_functions(network, found)


def test_a_tensor_that_is_an_output_too_keeps_its_values():
    network = uneven(basic()).network()
    network.model.graph.output.append(helper.make_tensor_value_info("relu1", TensorProto.FLOAT, [None] * 4))
    network = Network(network.model, network.sha256)
    found, _ = equalised(network, observers_of(basic().network(), BATCH), 1.0)
    np.testing.assert_allclose(reference(found, BATCH, "relu1"), reference(network, BATCH, "relu1"), rtol=0, atol=1e-5)
    equal_functions(network, found)


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_layers_that_share_constants_keep_them(what):
    net = Net()
    inner = net.relu(net.conv(net.stem(), "conv1", 4, 4), "relu1")
    net.conv(inner, "conv2", 4, 4)
    shared = net.nodes[-1].input
    shared[1 if what == "weight" else 2] = f"conv1.{what}"
    net.constants = [item for item in net.constants if item.name != f"conv2.{what}"]
    network = uneven(net.head(net.relu("conv2", "relu2"))).network()
    found, _ = equalised(network, observers_of(network, BATCH), 1.0)
    equal_functions(network, found)
    assert not any(name.startswith(("conv1", "conv2")) for name in changed(network, found))


def test_a_classifier_whose_bias_is_computed_keeps_its_output():
    net = Net()
    net.op("GlobalAveragePool", net.stem(), "pool")
    net.op("Flatten", "pool", "flat")
    net.constant("one.weight", np.eye(4) * 2)
    net.constant("two.weight", np.random.default_rng(0).standard_normal((4, 5)))
    net.op("Gemm", "flat one.weight flat", "hidden")
    net.op("Gemm", f"{net.relu('hidden', 'positive')} two.weight", "logits")
    network = net.network()
    observers = observers_of(network, BATCH)
    equal_functions(network, equalised(network, observers, 1.0)[0])


def over_columns():
    """A product with the last dimension of pictures that have as many columns as channels, between convolutions."""
    net = Net()
    net.constant("columns.weight", np.random.default_rng(0).standard_normal((8, 8)))
    net.op("MatMul", f"{net.stem(8)} columns.weight", "product")
    return net.head(net.conv("product", "conv2", 4, 8))


def test_columns_of_a_picture_are_not_taken_for_channels():
    network = uneven(over_columns()).network()
    found, _ = equalised(network, observers_of(network, BATCH), 1.0)
    equal_functions(network, found)
    assert not {"stem.weight", "columns.weight"} & changed(network, found)


def padded(mode="constant", fill=None, pads=(0, 2, 0, 0, 0, 2, 0, 0), axes=None):
    net = Net()
    net.constant("pads", pads, np.int64)
    if fill is not None:
        net.constant("fill", fill)
    if axes:
        net.constant("axes", axes, np.int64)
    sources = [net.stem(), "pads", "fill" if fill is not None else "", *(["axes"] if axes else [])]
    net.nodes.append(helper.make_node("Pad", sources, ["wide"], mode=mode))
    return net.head(net.conv("wide", "conv2", 4, 8))


@pytest.mark.parametrize(
    ("options", "tied"),
    [
        ({}, True),
        ({"fill": 0.0}, True),
        ({"fill": 1.0}, False),
        ({"mode": "reflect"}, False),
        ({"axes": [0, 2, 1, 3], "pads": (0, 0, 2, 0, 0, 0, 2, 0)}, False),
    ],
    ids=["zeros", "zeros by name", "ones", "copies of channels", "other axes"],
)
def test_only_zeros_around_whole_channels_let_a_factor_through(options, tied):
    network = uneven(padded(**options)).network(opset=18)
    found, count = equalised(network, observers_of(network, BATCH), 1.0)
    expected = run(network.model, BATCH)
    np.testing.assert_allclose(run(found.model, BATCH), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert ("stem.weight" in changed(network, found)) is tied
    assert (count > 4) is tied


def test_constants_that_are_nodes_are_changed_too():
    net = uneven(basic())
    stored = {item.name: item for item in net.constants}
    net.constants = [item for item in net.constants if item.name != "conv1.weight"]
    net.nodes.insert(0, helper.make_node("Constant", [], ["conv1.weight"], value=stored["conv1.weight"]))
    network = net.network()
    found, _ = equalised(network, observers_of(network, BATCH), 1.0)
    equal_functions(network, found)
    assert "conv1.weight" in changed(network, found)
    assert Counter(node.op_type for node in found.nodes) == Counter(node.op_type for node in network.nodes)


def test_tensors_that_were_not_observed_do_not_matter():
    network = uneven(basic()).network()
    observers = observers_of(network, BATCH)
    found, count = equalised(network, {"relu1": observers["relu1"]}, 1.0)
    assert 0 < count <= len(peaks(network, "relu1"))
    assert changed(network, found) == {"conv1.weight", "conv1.bias", "conv2.weight"}
    equal_functions(network, found)
    assert equalised(network, {}, 1.0) == (network, 0)
