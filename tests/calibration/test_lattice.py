"""The prologue that gives a network its pixels back: the same function, whole numbers, and when there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.graph import Network
from calibration.grids import S8, S8_ASYMMETRIC, U8, Affine
from calibration.lattice import PIXELS, on_lattice
from calibration.observers import Observer
from calibration.parameters import initial
from calibration.placement import place, target
from calibration.preprocess import PRESETS
from calibration.qdq import write
from tests.calibration.networks import SIZE, Net, bottleneck, observers_of, plain, reference, run, session, values_of

IMAGENET = replace(PRESETS["imagenet"], size=(SIZE, SIZE), resize=None, crop="none")
PLUS_MINUS = replace(IMAGENET, mean=(0.5,) * 3, std=(0.5,) * 3)
UNSCALED = replace(IMAGENET, scale=1.0, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
BARE = replace(IMAGENET, mean=(0.0,) * 3, std=(1.0,) * 3)
CONTRACTS = pytest.mark.parametrize(
    "contract", [IMAGENET, PLUS_MINUS, UNSCALED, BARE], ids=["ImageNet", "from -1 to 1", "unscaled", "from 0 to 1"]
)
GOALS = {"tensorrt": target("tensorrt"), "onnxruntime": target("onnxruntime"), "openvino": target("openvino")}


def pixels(count=3):
    """Every level from 0 to 255 in every channel; uint8 ``[count, SIZE, SIZE, 3]``."""
    values = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3))
    values[0].reshape(-1, 3)[:2] = [[0] * 3, [255] * 3]
    return values.astype(np.uint8)


def tensors(contract, shown=None):
    return np.stack([contract.apply_pixels(each) for each in (pixels() if shown is None else shown)])


def seen(batch):
    observer = Observer()
    observer.update(batch)
    return observer


def stem(**attributes):
    net = Net()
    net.relu(net.conv("input", "stem", 4, 3, **attributes), "relu")
    return net.head("relu")


def two_takers():
    net = Net()
    net.conv("input", "one", 4, 3, bias=False)
    net.conv("input", "two", 4, 3)
    return net.head(net.op("Add", "one two", "add"))


TAKERS = {
    "padded": stem,
    "strided": lambda: stem(strides=[2, 2]),
    "padded unevenly": lambda: stem(pads=[0, 1, 2, 0]),
    "not padded": lambda: stem(pads=[0] * 4),
    "without bias": lambda: stem(bias=False),
    "two": two_takers,
    "pooled": bottleneck,
}


@CONTRACTS
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("taker", TAKERS)
def test_the_float_network_computes_the_same(taker, goal, contract):
    network, batch = TAKERS[taker]().network(), tensors(contract)
    before = network.model.SerializeToString()
    found = on_lattice(network, contract, GOALS[goal], seen(batch))
    assert not found.reason
    assert found.network.sha256 == network.sha256
    onnx.checker.check_model(found.network.model, full_check=True)
    # Weights, biases and the prologue are float32, and a bias makes good up to 128 steps of every weight.
    np.testing.assert_allclose(reference(found.network, batch), reference(network, batch), rtol=0, atol=1e-5)
    assert network.model.SerializeToString() == before


@CONTRACTS
@pytest.mark.parametrize(
    ("goal", "shift", "expected"),
    [
        (target("tensorrt"), 128, Affine(1.0, 0, S8)),
        (target("onnxruntime"), 0, Affine(1.0, 0, U8)),
        (target("onnxruntime", cpu="arm"), 0, Affine(1.0, -128, S8_ASYMMETRIC)),
        (target("openvino"), 0, Affine(1.0, 0, U8)),
    ],
    ids=["tensorrt", "onnxruntime", "arm", "openvino"],
)
def test_inside_its_border_the_network_sees_the_very_pixels_and_quantising_them_loses_nothing(
    goal, shift, expected, contract
):
    shown = pixels()
    batch = tensors(contract, shown)
    found = on_lattice(stem().network(), contract, goal, seen(batch))
    assert found.quantisation == expected
    values = values_of(found.network, batch, [PIXELS])[PIXELS]
    inside = values[:, :, 1:-1, 1:-1]
    exactly = shown.transpose(0, 3, 1, 2).astype(np.float64) - shift
    np.testing.assert_allclose(inside, exactly, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(expected.rounded(inside.astype(np.float64)), exactly)
    # The border stands for the zeros that the convolution had, not for black.
    zero = np.array(contract.mean) / contract.scale - shift
    np.testing.assert_allclose(values[:, :, 0, 0], np.tile(zero, (len(batch), 1)), rtol=0, atol=1e-4)


def test_grey_pictures_have_their_own_lattice():
    net = Net()
    net.constant("weight", np.random.default_rng(0).standard_normal((4, 1, 3, 3)))
    net.op("Conv", "input weight", "stem")
    network = net.head(net.relu("stem", "relu")).network()
    network.model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    contract = replace(IMAGENET, color="L", mean=(0.45,), std=(0.225,))
    batch = tensors(contract, pixels()[..., :1])
    found = on_lattice(network, contract, GOALS["onnxruntime"], seen(batch))
    np.testing.assert_allclose(reference(found.network, batch), reference(network, batch), rtol=0, atol=1e-5)
    values = reference(found.network, batch, PIXELS)
    np.testing.assert_allclose(values[:, 0], pixels()[..., 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("goal", GOALS)
@CONTRACTS
def test_the_written_file_rounds_no_pixel(goal, contract):
    network, batch = stem(pads=[0] * 4).network(), tensors(contract)
    found = on_lattice(network, contract, GOALS[goal], seen(batch))
    assert found.quantisation is not None
    placement = place(found.network, GOALS[goal])
    assert PIXELS in placement.sites
    assert network.input not in placement.sites
    observers = observers_of(found.network, batch)
    parameters = initial(found.network, placement, observers, "minmax", {PIXELS: found.quantisation})
    model = write(found.network, placement, parameters)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(f"{PIXELS}.dequantized"))
    _, given = session(model).run(None, {"input": batch})
    shift = 128 if goal == "tensorrt" else 0
    np.testing.assert_array_equal(given, pixels().transpose(0, 3, 1, 2).astype(np.float32) - shift)
    got, expected = run(model, batch), run(plain(found.network, placement, parameters), batch)
    exactly = reference(network, batch)
    assert np.abs(got - expected).max() < 0.2 * np.abs(expected - exactly).max()


@pytest.mark.parametrize(
    ("goal", "contract", "operators"),
    [
        ("onnxruntime", IMAGENET, ["Pad", "QuantizeLinear"]),
        ("onnxruntime", PLUS_MINUS, ["Pad", "Mul", "Add", "QuantizeLinear"]),  # its means are ties
        ("openvino", IMAGENET, ["Pad", "Mul", "Add", "QuantizeLinear"]),
        ("tensorrt", IMAGENET, ["Pad", "Mul", "Add", "QuantizeLinear"]),
    ],
)
def test_onnxruntime_gets_the_prologue_as_one_quantiser_where_no_tie_forbids_it(goal, contract, operators):
    batch = tensors(contract)
    found = on_lattice(stem().network(), contract, GOALS[goal], seen(batch))
    assert found.quantisation is not None
    placement = place(found.network, GOALS[goal])
    observers = observers_of(found.network, batch)
    model = write(
        found.network, placement, initial(found.network, placement, observers, "minmax", {PIXELS: found.quantisation})
    )
    kinds = [node.op_type for node in model.graph.node]
    assert kinds[: kinds.index("QuantizeLinear") + 1] == operators


def grouped():
    net = Net()
    net.conv("input", "stem", 3, 1, group=3)
    return net.head(net.relu("stem", "relu"), 3)


def same_padding():
    net = Net()
    net.constant("weight", np.ones((4, 3, 3, 3)))
    net.op("Conv", "input weight", "stem", auto_pad="SAME_UPPER")
    return net.head("stem")


def other_taker():
    net = Net()
    net.conv("input", "stem", 3, 3)
    return net.head(net.op("Add", "stem input", "add"), 3)


def only_other_takers():
    net = Net()
    return net.head(net.op("Neg", "input", "neg"), 3)


def other_pads():
    net = Net()
    net.conv("input", "one", 4, 3)
    net.conv("input", "two", 4, 3, 1)
    return net.head(net.op("Add", "one two", "add"))


def computed_weights():
    net = Net()
    net.constant("half", np.ones((4, 3, 1, 1)))
    net.op("Conv", f"input {net.op('Add', 'half half', 'whole')}", "stem")
    return net.head("stem")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (grouped, "stem has groups, or padding that depends on the image"),
        (same_padding, "stem has groups, or padding that depends on the image"),
        (other_taker, "does not go straight into convolutions"),
        (only_other_takers, "does not go straight into convolutions"),
        (other_pads, "pad it in different ways"),
        (computed_weights, "stem has weights or a bias that are computed"),
    ],
)
def test_a_network_that_cannot_take_pixels_is_left_as_it_is_with_the_reason(make, reason):
    network = make().network()
    found = on_lattice(network, IMAGENET, GOALS["tensorrt"], seen(tensors(IMAGENET)))
    assert found.network is network
    assert found.quantisation is None
    assert reason in found.reason


def test_arrays_are_no_pixels():
    batch = tensors(IMAGENET)
    raw = replace(IMAGENET, color="raw")
    grey = replace(IMAGENET, color="L", mean=(0.5,), std=(0.5,))
    for contract in (raw, grey):
        found = on_lattice(stem().network(), contract, GOALS["tensorrt"], seen(batch))
        assert "arrays, not pixels" in found.reason
        assert found.quantisation is None


@pytest.mark.parametrize("channel", [0, 2])
@pytest.mark.parametrize("level", [-1.0, 256.0])
def test_values_that_no_pixel_has_are_told_from_those_that_are_rounded(level, channel):
    batch = tensors(IMAGENET)
    batch[0, channel, 0, 0] += 1e-5
    network = stem().network()
    assert not on_lattice(network, IMAGENET, GOALS["tensorrt"], seen(batch)).reason
    outside = (level * IMAGENET.scale - IMAGENET.mean[channel]) / IMAGENET.std[channel]
    batch[0, channel, 0, 0] = outside
    found = on_lattice(network, IMAGENET, GOALS["tensorrt"], seen(batch))
    assert found.reason == "the calibration images hold values that no 8-bit pixel has"


def test_the_taker_gets_weights_of_its_own_where_another_layer_shares_them():
    net = Net()
    net.conv("input", "stem", 3, 3)
    net.op("Conv", "stem stem.weight", "again", pads=[1, 1, 1, 1])
    network = net.head("again", 3).network()
    batch = tensors(IMAGENET)
    found = on_lattice(network, IMAGENET, GOALS["openvino"], seen(batch)).network
    assert isinstance(found, Network)
    stored = {item.name: numpy_helper.to_array(item) for item in found.model.graph.initializer}
    np.testing.assert_array_equal(stored["stem.weight"], network.initializers["stem.weight"])
    np.testing.assert_allclose(reference(found, batch), reference(network, batch), rtol=0, atol=1e-5)
