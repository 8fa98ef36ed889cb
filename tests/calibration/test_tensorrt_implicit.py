"""Q/DQ files of the target ``tensorrt`` as implicit quantisation takes them: the float network again, and its scales.

The oracle is the float network that was quantised, and what ONNX Runtime computes of either file.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from calibration.graph import Network
from calibration.implicit import scales as scales_of
from calibration.lattice import PIXELS, on_lattice
from calibration.parameters import initial
from calibration.placement import Folding, Placement, place, target
from calibration.preprocess import PRESETS
from calibration.qdq import write
from calibration.ranges import Ranges
from runtimes.errors import GraphError
from runtimes.tensorrt.implicit import Stripped, spread, strip
from tests.calibration.networks import NETWORKS, SIZE, Net, basic, images, observers_of, option_a, run, values_of

FOLDS: tuple[Folding, ...] = ("all", "free", "none")
CONTRACT = PRESETS["cifar"].with_overrides(size=(SIZE, SIZE), mean=(0.5,) * 3, std=(0.25,) * 3)
Array = npt.NDArray[Any]


def pixels(count: int = 16) -> Array:
    whole = np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE))
    return ((whole / 255 - 0.5) / 0.25).astype(np.float32)


def quantised(
    net: Net, folds: Folding, batch: Array, prologue: bool = False, keep: frozenset[str] = frozenset()
) -> tuple[Network, Placement, onnx.ModelProto]:
    network, goal = net.network(), target("tensorrt", folds=folds)
    fixed = {}
    if prologue:
        found = on_lattice(network, CONTRACT, goal, observers_of(network, batch)["input"])
        assert found.quantisation is not None
        network, fixed = found.network, {PIXELS: found.quantisation}
    placement = place(network, goal, keep)
    parameters = initial(network, placement, observers_of(network, batch), "minmax", fixed)
    return network, placement, write(network, placement, parameters)


def sqnr(reference: Array, other: Array) -> float:
    signal, noise = (np.sum(np.square(each, dtype=np.float64)) for each in (reference, reference - other))
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def rounded(stripped: Stripped) -> onnx.ModelProto:
    """The stripped network with Q/DQ by its scales behind every tensor that has one: what implicit INT8 computes."""
    model = onnx.ModelProto()
    model.CopyFrom(stripped.model)
    nodes: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}

    def pair(name: str) -> None:
        if name in stripped.scales:
            for value, suffix in ((np.float32(stripped.scales[name]), "s"), (np.int8(0), "z")):
                model.graph.initializer.append(numpy_helper.from_array(np.array(value), f"{name}|{suffix}"))
            around = [f"{name}|s", f"{name}|z"]
            nodes.append(helper.make_node("QuantizeLinear", [name, *around], [f"{name}|q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}|q", *around], [f"{name}|d"]))
            renamed[name] = f"{name}|d"

    pair("input")
    for node in list(model.graph.node):
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        relu = any(node.output[0] in other.input and other.op_type == "Relu" for other in model.graph.node)
        for name in node.output if not relu else ():
            pair(name)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("prologue", [False, True])
@pytest.mark.parametrize("folds", FOLDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_stripped_network_is_the_float_network_with_rounded_weights(
    name: str, folds: Folding, prologue: bool
) -> None:
    batch = pixels()
    network, _, file = quantised(NETWORKS[name](), folds, batch, prologue)
    before = file.SerializeToString()
    stripped = strip(file)
    onnx.checker.check_model(stripped.model, full_check=True)
    assert file.SerializeToString() == before
    # Nothing is left of folding: no Add, no Pad more than there were, and every Relu again.
    assert operators(stripped.model) == operators(network.model)
    assert [item.name for item in stripped.model.graph.output] == ["logits"]
    result = run(stripped.model, batch)
    assert sqnr(run(network.model, batch), result) > 40  # what rounding the weights costs
    assert sqnr(result, run(file, batch)) > 40  # what rounding the activations costs


@pytest.mark.parametrize("folds", FOLDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_scales_reach_as_far_as_the_tensors_do(name: str, folds: Folding) -> None:
    network, placement, file = quantised(NETWORKS[name](), folds, pixels())
    stripped = strip(file)
    found = values_of(Network(stripped.model, ""), pixels(), stripped.scales)
    for tensor in placement.sites:
        reach, most = 127 * stripped.scales[tensor], np.abs(found[tensor]).max()
        assert 0.95 < most / reach < 1.05, tensor
    # What implicit INT8 makes of it is close: folded tensors have half of the levels.
    assert sqnr(run(network.model, pixels()), run(rounded(stripped), pixels())) > 28
    float_names = {name for node in network.model.graph.node for name in node.output} | {"input"}
    assert set(stripped.scales) <= float_names


def test_a_folded_tensor_has_a_step_twice_as_wide_in_one_symmetric_scale() -> None:
    _, _, folded = quantised(basic(), "all", pixels())
    step = next(numpy_helper.to_array(item) for item in folded.graph.initializer if item.name == "relu1.scale")
    assert strip(folded).scales["relu1"] == pytest.approx(float(step) * 255 / 127, rel=1e-6)
    _, _, plain = quantised(basic(), "none", pixels())
    step = next(numpy_helper.to_array(item) for item in plain.graph.initializer if item.name == "relu1.scale")
    assert strip(plain).scales["relu1"] == pytest.approx(float(step), rel=1e-6)


@pytest.mark.parametrize("folds", FOLDS)
@pytest.mark.parametrize("layer", ["stem", "conv1", "conv2", "logits"])
def test_layers_that_were_kept_in_float_are_left_as_they_are(layer: str, folds: Folding) -> None:
    network, _, file = quantised(option_a(), folds, pixels(), keep=frozenset({layer}))
    stripped = strip(file)
    assert sqnr(run(network.model, pixels()), run(stripped.model, pixels())) > 40
    extra = operators(stripped.model) - operators(network.model)
    assert not operators(network.model) - operators(stripped.model)
    assert set(extra) <= {"Add"}


def test_an_output_behind_q_dq_keeps_its_name_and_its_scale() -> None:
    file = pair("logits_float", "logits")
    stripped = strip(file)
    assert [node.op_type for node in stripped.model.graph.node] == ["Relu", "Identity"]
    np.testing.assert_array_equal(run(stripped.model, images()), np.maximum(images(), 0))
    assert set(stripped.scales) == {"input", "logits_float", "logits"}


def pair(source: str = "r", made: str = "out", *, zero: Any = 0, dtype: Any = np.int8, other: float = 0.5) -> Any:
    """``Relu`` and a pair of Q and DQ behind it."""
    stored = {"s": np.float32(0.5), "other": np.float32(other), "z": dtype(zero)}
    nodes = [
        helper.make_node("Relu", ["input"], [source], "relu"),
        helper.make_node("QuantizeLinear", [source, "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "other", "z"], [made], "d"),
    ]
    shape = ["N", 3, SIZE, SIZE]
    return graph(nodes, stored, made, shape)


def graph(nodes: list[onnx.NodeProto], stored: dict[str, Any], made: str, shape: list[Any]) -> onnx.ModelProto:
    built = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(made, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array(value), name) for name, value in stored.items()],
    )  # fmt: skip
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (pair(zero=128, dtype=np.uint8), r"q is not symmetric INT8 \(uint8\).*--target tensorrt"),
        (pair(zero=0, dtype=np.uint8), r"q is not symmetric INT8 \(uint8\)"),
        (pair(zero=-128), r"q is not symmetric INT8 \(INT8 with the zero point -128\)"),
        (pair(other=0.25), "d has another scale"),
    ],
)
def test_what_one_symmetric_scale_cannot_say_is_refused_with_the_next_step(file: Any, told: str) -> None:
    with pytest.raises(GraphError, match=told) as caught:
        strip(file)
    assert "resnet-export quantize --target tensorrt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_target_is_refused() -> None:
    network = basic().network()
    placement = place(network, target("onnxruntime"))
    parameters = initial(network, placement, observers_of(network, images()), "minmax", {})
    with pytest.raises(GraphError, match="quantize --target tensorrt"):
        strip(write(network, placement, parameters))


def test_a_scale_for_each_channel_of_an_activation_is_refused() -> None:
    file = pair()
    for item in file.graph.initializer:
        if item.name in ("s", "other", "z"):
            item.CopyFrom(numpy_helper.from_array(np.repeat(numpy_helper.to_array(item), 3), item.name))
    with pytest.raises(GraphError, match="q has 3 scales"):
        strip(file)


def test_weights_that_the_graph_quantises_are_rounded_as_it_does() -> None:
    """Other tools store float weights, and let Q/DQ round them."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    stored = {
        "w": weight, "ws": np.full(4, 0.02, np.float32), "wz": np.zeros(4, np.int8), "s": np.float32(0.05),
        "z": np.int8(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=0),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["d", "wd"], ["out"]),
    ]
    file = graph(nodes, stored, "out", ["N", 4, SIZE, SIZE])
    stripped = strip(file)
    assert operators(stripped.model) == {"Conv": 1}
    on_steps = np.round(images() / 0.05).clip(-128, 127).astype(np.float32) * np.float32(0.05)
    np.testing.assert_allclose(run(stripped.model, on_steps), run(file, on_steps), rtol=1e-5, atol=1e-5)


def test_a_tensor_with_two_scales_gets_the_larger_and_a_note() -> None:
    stored = {"s": np.float32(0.5), "t": np.float32(0.75), "z": np.int8(0)}
    nodes = [helper.make_node("Relu", ["input"], ["r"])]
    for name in ("s", "t"):
        nodes.append(helper.make_node("QuantizeLinear", ["r", name, "z"], [f"q{name}"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{name}", name, "z"], [f"d{name}"]))
    nodes.append(helper.make_node("Add", ["ds", "dt"], ["out"]))
    stripped = strip(graph(nodes, stored, "out", ["N", 3, SIZE, SIZE]))
    assert stripped.scales["r"] == 0.75
    assert any("several scales" in note for note in stripped.notes)


def test_sums_inside_blocks_have_no_scale_in_a_file_and_it_is_told() -> None:
    _, _, file = quantised(basic(), "free", pixels())
    stripped = strip(file)
    assert "conv2" not in stripped.scales
    assert any("--ranges" in note and "FP16" in note for note in stripped.notes)


@pytest.mark.parametrize("name", NETWORKS)
def test_ranges_give_every_tensor_a_scale_that_clips_little(name: str) -> None:
    network, batch = NETWORKS[name]().network(), images(32)
    ranges = Ranges("0" * 64, CONTRACT, 32, "", observers_of(network, batch), {})
    found = spread(network.model, scales_of(ranges, "minmax"))
    taken = {each for node in network.nodes if node.op_type in ("Conv", "Gemm") for each in node.input[:1]}
    sums = {each for node in network.nodes if node.op_type == "Add" for each in (*node.input, *node.output)}
    assert taken | (sums - network.outputs - set(network.initializers)) <= set(found)
    for tensor, values in values_of(network, batch, network.observed).items():
        assert np.abs(values).max() == pytest.approx(127 * found[tensor], rel=1e-5)
    assert all(default <= found[tensor] * 1.1 for tensor, default in scales_of(ranges).items())


@pytest.mark.parametrize("pad", [0, 1])
def test_an_offset_goes_into_no_bias_that_another_reader_sees(pad: int) -> None:
    """A shifted tensor feeds a Q and a residual Add, whose padded convolution has to get the whole of the sum."""
    draw = np.random.default_rng(0)
    step = np.float32(0.05)
    shift = np.float32(128) * step
    weight = draw.standard_normal((2, 2, 1, 1)).astype(np.float32)
    values = {
        "w1": draw.standard_normal((2, 3, 1, 1)), "b1": [0.3, 0.3], "less": -shift, "s": step,
        "w2": weight, "b2": shift * weight.sum((1, 2, 3)), "w3": draw.standard_normal((2, 3, 1, 1)),
        "w4": draw.standard_normal((2, 2, 3, 3)),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["y"]),
        node("Add", ["y", "less"], ["shifted"]),
        node("QuantizeLinear", ["shifted", "s", "z"], ["r.quantized"]),
        node("DequantizeLinear", ["r.quantized", "s", "z"], ["real"]),
        node("Conv", ["real", "w2", "b2"], ["a"]),
        node("Conv", ["x", "w3"], ["other"]),
        node("Add", ["shifted", "other"], ["sum"]),
        node("Conv", ["sum", "w4"], ["b"], pads=[pad] * 4),
        node("GlobalAveragePool", ["a"], ["one"]),
        node("GlobalAveragePool", ["b"], ["two"]),
        node("Add", ["one", "two"], ["out"]),
    ]
    stored = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()]
    stored.append(numpy_helper.from_array(np.array(0, np.int8), "z"))
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 3, 6, 6])
    given = helper.make_tensor_value_info("out", TensorProto.FLOAT, [4, 2, 1, 1])
    graph = helper.make_graph(nodes, "g", [taken], [given], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    images = draw.standard_normal((4, 3, 6, 6)).astype(np.float32)

    def computed(of: onnx.ModelProto) -> Array:
        (found,) = InferenceSession(of.SerializeToString()).run(None, {"x": images})
        return np.asarray(found)

    np.testing.assert_allclose(computed(strip(model).model), computed(model), atol=0.02)  # Q/DQ rounds, and is gone
