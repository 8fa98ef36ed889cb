"""Better parameters from a few images: biases that cancel a shift, scales and roundings that the output asks for.

Each step takes parameters and gives new ones; whether they are better is measured by the caller, on other images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from calibration.parameters import Parameters, least_error
from calibration.placement import Placement
from calibration.simulate import Images, Numbers, Simulation, numbers_of, quantised_weights

Progress = Callable[[int, int], None]

# Of the learning rates: an Adam step moves a weight by a sixtieth of its grid, an activation's scale by a fifth of a
# per cent, a weight's scale and, in units of what its layer gives, a bias by a twentieth of one. Chosen on CIFAR
# ResNets of 20 and 56 layers, for schedules of 150 to 650 steps.
_WEIGHT_RATE: Final = 0.015
_SCALE_RATE: Final = 0.002
_WEIGHT_SCALE_RATE: Final = 0.0005
_BIAS_RATE: Final = 0.0005
# Of the running mean of all parameters, over some twenty steps. Weights near the middle between two integers flip to
# and fro; a mean has them where they mostly were, and was up to 1 dB better than the step that it was taken at.
_MEMORY: Final = 0.95
# The second half of a schedule is looked at so often.
_LOOKS: Final = 4
# Images are shifted by up to a sixteenth of their size, and mirrored: the float network says what is right for these as
# well, and some hundred images alone are learned by heart.
_SHIFT: Final = 16


def with_least_error(parameters: Parameters, placement: Placement) -> Parameters:
    """Weight scales with the least squared error of each output channel."""
    scales = {
        each.name: least_error(parameters.weights[each.name], each.axis, placement.target)
        for each in placement.weights.values()
    }
    return replace(parameters, scales=scales)


def with_corrected_biases(
    simulation: Simulation, parameters: Parameters, images: Images, progress: Progress | None = None
) -> Parameters:
    """Take the mean error of every output channel off its bias, layer by layer, each after those before it.

    Empirical bias correction of M. Nagel et al. (2019), section 4.2, with quantised predecessors: what is left of an
    earlier layer's shift is seen, and corrected, by the later one.

    Args:
        simulation: The network.
        parameters: Where to start.
        images: float32 ``[N, C, H, W]``; all of them go through the network together.
        progress: Hears of layers done and layers in all.
    """
    numbers = numbers_of(simulation.placement, parameters)
    biases = dict(parameters.biases)
    layers = len(simulation.placement.weights)
    for done, pair in enumerate(simulation.pairs(torch.from_numpy(images), numbers, parameters.activations), 1):
        name = pair.node.output[0]
        if pair.node.op_type != "MatMul":  # has no bias
            others = [dim for dim in range(pair.exact.dim()) if dim != 1]
            shift = (pair.exact - pair.rough).to(torch.float64).mean(dim=others)
            biases[name] = (biases[name] + shift.numpy()).astype(np.float32)
            pair.rough = pair.rough + shift.to(torch.float32).reshape(-1, *[1] * (pair.rough.dim() - 2))
        if progress:
            progress(done, layers)
    return replace(parameters, biases=biases)


@dataclass(frozen=True)
class Schedule:
    """How long to learn.

    Attributes:
        steps: Optimiser steps.
        batch: Images in a step.
    """

    steps: int
    batch: int


def learned(
    simulation: Simulation,
    parameters: Parameters,
    images: Images,
    schedule: Schedule,
    *,
    fixed: frozenset[str] = frozenset(),
    seed: int = 0,
    judge: Callable[[Parameters], float] | None = None,
    progress: Progress | None = None,
) -> Parameters:
    """Scales, roundings and biases with which the whole network's output is nearest to the float network's.

    All of them are learned together by gradient descent on the squared error of the logits: activation scales as in
    S. Esser et al., "Learned Step Size Quantization" (2019); weights, and with them their roundings, through the
    straight-through estimator, moving a few steps of their grid at most. No labels are needed: the float network is
    the teacher, as in Y. Li et al., "BRECQ" (2021), with the network as the one block. Clipping is thereby chosen by
    what it does to the output and not to the tensor.

    Args:
        simulation: The network.
        parameters: Where to start.
        images: float32 ``[N, C, H, W]``.
        schedule: How long.
        fixed: Sources whose scale must stay.
        seed: Of the order of images.
        judge: How good parameters are; the best of some from the second half of the schedule is taken. ``None``: the
            last.
        progress: Hears of steps done and steps in all.
    """
    student = _Student(simulation, parameters, images[: schedule.batch], fixed)
    optimiser = torch.optim.Adam(student.groups(), betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimiser.param_groups]
    generator = torch.Generator().manual_seed(seed)
    order = torch.zeros(0, dtype=torch.int64)
    looks = _looks(schedule.steps)
    best, best_worth = parameters, -math.inf
    for step in range(schedule.steps):
        if len(order) < schedule.batch:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        picked, order = order[: schedule.batch], order[schedule.batch :]
        batch = _varied(torch.from_numpy(images[picked.numpy()]), step, generator)
        exact = simulation.reference(batch)
        rough = simulation.quantised(batch, student.numbers(), parameters.activations)
        loss = torch.square(rough - exact).sum() / torch.square(exact).sum().clamp_min(1e-12)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        optimiser.step()
        student.remember(step)
        if progress:
            progress(step + 1, schedule.steps)
        if judge and step + 1 in looks:
            # Judged at once: eight sets of a large network's weights would be gigabytes.
            for found in (student.parameters(), student.mean_parameters()):
                worth = judge(found)
                if worth > best_worth:  # NaN is not
                    best, best_worth = found, worth
    return best if judge else student.mean_parameters()


def _looks(steps: int) -> list[int]:
    return [steps - steps * look // (2 * _LOOKS) for look in range(_LOOKS)]


def _varied(batch: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """Images ``[N, C, H, W]``, every other time mirrored, and shifted with what falls out reflected at the edge."""
    if step % 2:
        batch = batch.flip(3)
    height, width = batch.shape[2:]
    down, across = height // _SHIFT, width // _SHIFT
    top, left = (int(torch.randint(0, 2 * reach + 1, (), generator=generator)) for reach in (down, across))
    padded = torch.nn.functional.pad(batch, (across, across, down, down), mode="reflect")
    return padded[:, :, top : top + height, left : left + width].contiguous()


class _Student:
    """The parameters as offsets from where they started, in units of what a step of each is."""

    def __init__(self, simulation: Simulation, parameters: Parameters, images: Images, fixed: frozenset[str]) -> None:
        self._placement, self._start = simulation.placement, parameters
        sources = {site.source for site in self._placement.sites.values()}
        self._steps = {name: _zeros(()) for name in sorted(sources)}
        self._frozen = fixed
        named = {each.name: each for each in self._placement.weights.values()}
        self._weights = {name: _zeros(parameters.weights[name].shape) for name in named}
        self._scales = {name: _zeros(parameters.scales[name].shape) for name in named}
        self._biases = {name: _zeros(values.shape) for name, values in parameters.biases.items()}
        self._units = _output_sizes(simulation, images)
        self._means = [value.detach().clone() for value in self._all()]

    def _all(self) -> list[Tensor]:
        parts = (self._steps, self._weights, self._scales, self._biases)
        return [value for part in parts for value in part.values()]

    def remember(self, step: int) -> None:
        """Take the parameters after a step into their running mean."""
        memory = min(_MEMORY, (step + 1) / (step + 10))  # at first, over what there is
        with torch.no_grad():
            for mean, value in zip(self._means, self._all(), strict=True):
                mean.lerp_(value, 1 - memory)

    def mean_parameters(self) -> Parameters:
        """What the running mean of the parameters stands for."""
        own = [value.detach().clone() for value in self._all()]
        self._set(self._means)
        try:
            return self.parameters()
        finally:
            self._set(own)

    def _set(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for value, new in zip(self._all(), values, strict=True):
                value.copy_(new)

    def groups(self) -> list[dict[str, object]]:
        steps = [value for name, value in self._steps.items() if name not in self._frozen]
        return [
            {"params": steps, "lr": _SCALE_RATE},
            {"params": list(self._weights.values()), "lr": _WEIGHT_RATE},
            {"params": list(self._scales.values()), "lr": _WEIGHT_SCALE_RATE},
            {"params": list(self._biases.values()), "lr": _BIAS_RATE},
        ]

    def numbers(self) -> Numbers:
        steps = {
            site.tensor: self._steps[site.source].exp() * self._start.activations[site.tensor].scale
            for site in self._placement.sites.values()
        }
        weights = {}
        for each in self._placement.weights.values():
            real, scales = self._real(each.name, each.axis)
            weights[each.node] = quantised_weights(real, scales, each.axis, self._placement.target)
        return Numbers(steps, weights, {name: self._bias(name) for name in self._biases})

    def parameters(self) -> Parameters:
        with torch.no_grad():
            numbers = self.numbers()
            weights, scales = {}, {}
            for each in self._placement.weights.values():
                real, steps = self._real(each.name, each.axis)
                weights[each.name], scales[each.name] = real.numpy(), steps.numpy()
            activations = {
                name: replace(quantisation, scale=float(numbers.steps[name].numpy()))
                if self._placement.sites[name].source not in self._frozen
                else quantisation
                for name, quantisation in self._start.activations.items()
            }
            biases = {name: value.numpy().copy() for name, value in numbers.biases.items()}
        return Parameters(activations, weights, scales, biases)

    def _real(self, name: str, axis: int) -> tuple[Tensor, Tensor]:
        start = torch.from_numpy(self._start.scales[name])
        shape = [1] * self._weights[name].dim()
        shape[axis] = -1
        real = torch.from_numpy(self._start.weights[name]) + start.reshape(shape) * self._weights[name]
        return real, start * self._scales[name].exp()

    def _bias(self, name: str) -> Tensor:
        return torch.from_numpy(self._start.biases[name]) + self._units[name] * self._biases[name]


def _zeros(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, requires_grad=True)


def _output_sizes(simulation: Simulation, images: Images) -> Mapping[str, float]:
    """Root mean square of what each node with weights gives."""
    with torch.no_grad():
        traced = simulation.traced(torch.from_numpy(images))
    return {
        name: float(torch.square(traced[name]).mean().sqrt().clamp_min(1e-12)) for name in simulation.placement.weights
    }
