"""Which layers lose most, against quantising one layer at a time and running the file."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from calibration.graph import Network
from calibration.parameters import Parameters
from calibration.placement import Placement
from calibration.qdq import write
from calibration.sensitivity import Sensitivity, sensitivities
from calibration.simulate import Images, Simulation
from tests.calibration.test_refine import LAYERS, coarse, images, network, noise, one_thread, outputs, start

__all__ = ["one_thread"]  # a fixture that every test here uses


@pytest.fixture(scope="module")
def net() -> Network:
    return network()


def alone(net: Network, placement: Placement, parameters: Parameters, layer: str) -> tuple[Placement, Parameters]:
    """One layer in 8 bits, its data and its weights; everything else in float."""
    weight = placement.weights[layer]
    site = placement.sites[net.source(net.producers[layer].input[0])]
    others = {name: "it is to stay in float" for name in placement.weights if name != layer}
    return (
        replace(placement, sites={site.tensor: site}, weights={layer: weight}, left=others),
        replace(parameters, activations={site.tensor: parameters.activations[site.tensor]}),
    )


def brute(net: Network, placement: Placement, parameters: Parameters, x: Images) -> dict[str, float]:
    return {layer: noise(net, write(net, *alone(net, placement, parameters, layer)), x) for layer in LAYERS}


@pytest.mark.parametrize("worst", ["w0", "w1", "w2", "fc"])
def test_each_layer_is_as_harmful_as_quantising_it_alone_shows(net: Network, worst: str) -> None:
    x = images(32)
    placement, parameters = start(net, x)
    parameters = coarse(parameters, worst, factor=5.0)
    rows = sensitivities(Simulation(net, placement), parameters, x, 8)
    measured = brute(net, placement, parameters, x)
    (exact,) = outputs(net.model, x, "logits")
    signal = float(np.square(exact.astype(np.float64)).sum())
    for row in rows:
        estimate = signal / 10 ** (row.sqnr_db / 10)
        assert measured[row.layer] / 2 < estimate < 2 * measured[row.layer], row
    assert rows[0].layer == max(measured, key=measured.__getitem__)
    for first, second in pairwise(rows):  # in order, where the two are clearly different
        assert measured[first.layer] > measured[second.layer] / 2


def test_shares_add_up_and_the_worst_is_first(net: Network) -> None:
    x = images(16)
    placement, parameters = start(net, x)
    rows = sensitivities(Simulation(net, placement), parameters, x, 8)
    assert {row.layer for row in rows} == set(LAYERS)
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert [row.share for row in rows] == sorted((row.share for row in rows), reverse=True)
    assert [row.sqnr_db for row in rows] == sorted(row.sqnr_db for row in rows)
    assert rows[0].to_json() == {
        "layer": rows[0].layer, "share": rows[0].share, "sqnr_db": rows[0].sqnr_db, "kept": False,
    }  # fmt: skip


def test_the_estimate_does_not_depend_on_how_images_are_cut_into_batches(net: Network) -> None:
    """Signs are drawn batch by batch, so the numbers differ, but only as much as the estimate is uncertain."""
    x = images(30)
    placement, parameters = start(net, x)
    simulation = Simulation(net, placement)
    one, other = (
        {row.layer: row.share for row in sensitivities(simulation, parameters, x, batch)} for batch in (30, 7)
    )
    assert all(0.6 < one[name] / other[name] < 1.6 for name in one)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(net: Network) -> None:
    x = images(16)
    placement, parameters = start(net, x)
    simulation = Simulation(net, placement)
    torch.manual_seed(1)
    rows = sensitivities(simulation, parameters, x, 8, seed=5)
    torch.manual_seed(2)
    assert rows == sensitivities(simulation, parameters, x, 8, seed=5)
    assert rows != sensitivities(simulation, parameters, x, 8, seed=6)


def test_a_layer_without_error_does_no_damage_and_the_shares_stay_finite(net: Network) -> None:
    """Weights and data that are on the grids already; all others are left out."""
    x = np.zeros((4, 3, 8, 8), np.float32)
    silent = network(b0=np.zeros(8, np.float32), b1=np.zeros(8, np.float32), b2=np.zeros(8, np.float32))
    placement, parameters = start(silent, x)
    rows = sensitivities(Simulation(silent, placement), parameters, x, 4)
    assert [(row.share, row.sqnr_db) for row in rows] == [(0.0, 300.0)] * 4
    assert all(isinstance(row, Sensitivity) for row in rows)


@pytest.mark.parametrize("blocks", [1, 5])
def test_the_work_is_two_passes_forward_and_eight_backward_whatever_the_number_of_layers(
    monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    deep = network(blocks=blocks)
    x = images(8)
    placement, parameters = start(deep, x)
    simulation = Simulation(deep, placement)
    ran: list[str] = []
    for name, inner in (("traced", simulation.traced), ("errors", simulation.errors)):
        monkeypatch.setattr(simulation, name, _counted(inner, ran, name))
    monkeypatch.setattr(simulation, "_functions", [_counted(each, ran, "node") for each in simulation._functions])
    monkeypatch.setattr(torch.autograd, "grad", _counted(torch.autograd.grad, ran, "backward"))
    rows = sensitivities(simulation, parameters, x, 8)
    assert len(rows) == 2 * blocks + 2
    assert (ran.count("traced"), ran.count("errors"), ran.count("backward")) == (1, 1, 8)
    assert ran.count("node") == len(deep.nodes) + len(rows)


def _counted(inner, heard, name):
    def outer(*given, **named):
        heard.append(name)
        return inner(*given, **named)

    return outer
