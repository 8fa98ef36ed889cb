"""The simulation against the plain oracle and against the file that is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from calibration.graph import Network
from calibration.grids import S8, S8_SHIFTED, U8, Affine
from calibration.parameters import initial
from calibration.placement import place, target
from calibration.qdq import write
from calibration.simulate import (
    Simulation,
    fake_quantised,
    in_batches,
    numbers_of,
    quantised_weights,
    rounded,
)
from runtimes.errors import GraphError
from tests.calibration.networks import (
    NETWORKS,
    Net,
    basic,
    bottleneck,
    downsample,
    exact,
    images,
    observers_of,
    plain,
    run,
    values_of,
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


def quantised(network, placement, parameters, batch=BATCH):
    numbers = numbers_of(placement, parameters)
    with torch.no_grad():
        found = Simulation(network, placement).quantised(torch.from_numpy(batch), numbers, parameters.activations)
    return found.numpy()


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_simulation_is_the_file_in_every_bit(name, goal):
    network, placement, parameters = exact(NETWORKS[name](), GOALS[goal])
    found = quantised(network, placement, parameters)
    expected = run(write(network, placement, parameters), BATCH)
    if name == "SE":  # two libraries, two sigmoids
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("layer", ["conv1", "downsample", "logits"])
def test_a_kept_layer_is_simulated_as_it_is_written(layer, goal):
    network, placement, parameters = exact(downsample(), GOALS[goal], frozenset({layer}))
    np.testing.assert_allclose(
        quantised(network, placement, parameters), run(write(network, placement, parameters), BATCH), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("goal", GOALS)
def test_scales_that_are_no_powers_of_two_change_ties_only(goal):
    network = bottleneck().network()
    placement = place(network, GOALS[goal])
    parameters = initial(network, placement, observers_of(network, images()), "minmax", {})
    found, expected = quantised(network, placement, parameters), run(write(network, placement, parameters), BATCH)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected - run(network.model, BATCH)).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_network_is_simulated_as_onnx_runtime_computes_it(name):
    network = NETWORKS[name]().network()
    simulation = Simulation(network, place(network, GOALS["tensorrt free"]))
    expected = run(network.model, BATCH)
    np.testing.assert_allclose(simulation.reference(torch.from_numpy(BATCH)).numpy(), expected, rtol=1e-4, atol=1e-5)
    traced = simulation.traced(torch.from_numpy(BATCH))
    for tensor, value in values_of(network, BATCH, network.observed).items():
        np.testing.assert_allclose(traced[tensor].numpy(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "quantisation", [Affine(0.5, 0, S8), Affine(0.5, 3, U8), Affine(0.25, -128, S8_SHIFTED)], ids=str
)
def test_fake_quantisation_keeps_what_the_grid_keeps(quantisation):
    values = np.linspace(-200, 200, 3201)  # ties among them
    found = fake_quantised(torch.from_numpy(values), torch.tensor(quantisation.scale), quantisation)
    np.testing.assert_array_equal(found.numpy(), quantisation.rounded(values))


def test_gradients_pass_a_rounding_as_if_it_were_not_there():
    values = torch.tensor([0.2, 0.5, -1.7], requires_grad=True)
    result = rounded(values)
    (result * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert result.tolist() == [0.0, 0.0, -2.0]
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("value", "to_value", "to_step"),
    [
        (0.3, 1.0, 1 - 0.6),  # inside: rounded less exact
        (1.6, 1.0, 3 - 3.2),
        (90.0, 0.0, 127.0),  # clipped: the end of the grid
        (-90.0, 0.0, -128.0),
    ],
)
def test_the_gradient_of_a_step_is_that_of_learned_step_sizes(value, to_value, to_step):
    values, step = torch.tensor(value, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    fake_quantised(values, step, Affine(0.5, 0, S8)).backward()
    assert values.grad is not None
    assert step.grad is not None
    assert values.grad.item() == pytest.approx(to_value)
    assert step.grad.item() == pytest.approx(to_step, abs=1e-5)


@pytest.mark.parametrize("goal", GOALS)
def test_weights_with_gradients_are_those_of_the_file(goal):
    _, placement, parameters = exact(NETWORKS["matmul"](), GOALS[goal])
    numbers = numbers_of(placement, parameters)
    for each in placement.weights.values():
        weight = torch.from_numpy(parameters.weights[each.name]).requires_grad_()
        found = quantised_weights(weight, torch.from_numpy(parameters.scales[each.name]), each.axis, placement.target)
        np.testing.assert_array_equal(found.detach().numpy(), numbers.weights[each.node].numpy())
        found.sum().backward()
        assert weight.grad is not None
        assert 0 < weight.grad.mean() <= 1


def test_two_networks_side_by_side_end_where_each_ends_alone():
    network, placement, parameters = exact(basic(), GOALS["onnxruntime"])
    simulation, batch = Simulation(network, placement), torch.from_numpy(BATCH)
    pairs = list(simulation.pairs(batch, numbers_of(placement, parameters), parameters.activations))
    assert [pair.node.output[0] for pair in pairs] == list(placement.weights)
    np.testing.assert_array_equal(pairs[-1].exact.numpy(), simulation.reference(batch).numpy())
    np.testing.assert_array_equal(pairs[-1].rough.numpy(), quantised(network, placement, parameters))


def test_what_replaces_an_output_goes_on_in_the_quantised_network():
    network, placement, parameters = exact(basic(), GOALS["tensorrt none"])
    simulation, batch = Simulation(network, placement), torch.from_numpy(BATCH)
    for pair in simulation.pairs(batch, numbers_of(placement, parameters), parameters.activations):
        if pair.node.output[0] == "stem":
            pair.rough = torch.zeros_like(pair.rough)
    silent = values_of(network, BATCH, ["conv1"])["conv1"]
    assert np.unique(silent[:, 0]).size > 1
    # No light came through: all images look alike.
    np.testing.assert_array_equal(pair.rough.numpy(), np.broadcast_to(pair.rough[:1].numpy(), pair.rough.shape))
    assert (pair.exact[0] != pair.exact[1]).any()


@pytest.mark.parametrize("goal", ["tensorrt free", "onnxruntime", "openvino"])
@pytest.mark.parametrize("make", [bottleneck, basic], ids=["pooled", "basic"])
def test_the_error_of_a_layer_is_what_quantising_it_alone_does(make, goal):
    network, placement, parameters = exact(make(), GOALS[goal])
    simulation, batch = Simulation(network, placement), torch.from_numpy(BATCH)
    with torch.no_grad():
        traced = simulation.traced(batch)
    found = simulation.errors(traced, numbers_of(placement, parameters), parameters.activations)
    assert list(found) == list(placement.weights)
    values = {name: value.numpy() for name, value in traced.items()}
    for name, node in ((name, network.producers[name]) for name in placement.weights):
        site = network.source(node.input[0])
        data = parameters.activations[site].rounded(values[node.input[0]].astype(np.float64)).astype(np.float32)
        weight = numbers_of(placement, parameters).weights[name].numpy()
        expected = alone(node, data, weight, parameters.biases[name]) - values[name]
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=0, atol=1e-5)


def alone(node, data, weight, bias):
    """One node by ONNX Runtime."""
    net = Net()
    for name, value in (("w", weight), ("b", bias)):
        net.constant(name, value)
    net.nodes = [helper.make_node(node.op_type, ["input", "w", "b"], ["logits"])]
    net.nodes[0].attribute.extend(node.attribute)
    network = net.network(rank=data.ndim)
    dims = network.model.graph.input[0].type.tensor_type.shape
    dims.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, list(data.shape)).tensor_type.shape)
    return run(network.model, data)


def test_the_first_output_is_the_one_that_is_simulated():
    network = basic().network()
    for name in ("relu2", "pool", "conv2", "add"):
        network.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4))
    network = Network(network.model, network.sha256)
    simulation = Simulation(network, place(network, GOALS["openvino"]))
    assert simulation.output == "logits"
    assert simulation.reference(torch.from_numpy(BATCH)).shape == (4, 5)


def test_an_operator_that_is_not_simulated_is_named():
    net = Net()
    net.op("Erf", net.stem(), "odd")
    network = net.head("odd").network()
    with pytest.raises(GraphError, match="the model has Erf, which cannot be simulated"):
        Simulation(network, place(network, GOALS["tensorrt free"]))


@pytest.mark.parametrize("batch", [1, 3, 4, 50])
def test_batches_give_what_one_pass_gives_and_progress_counts_images(batch):
    network, placement, parameters = exact(basic(), GOALS["tensorrt free"])
    simulation, numbers = Simulation(network, placement), numbers_of(placement, parameters)
    heard: list[int] = []
    found = in_batches(
        lambda part: simulation.quantised(part, numbers, parameters.activations), BATCH, batch, heard.append
    )
    np.testing.assert_array_equal(found, run(plain(network, placement, parameters), BATCH))
    assert heard == [min(end, 4) for end in range(batch, 4 + batch, batch)]
