"""Which layers lose most by INT8, all from one pass forward and a few backward.

With one layer quantised and the others in float, its output is off by ``d``, and to first order the logits are off by
``J d``, where ``J`` is their derivative by that output. For a random vector ``v`` of signs, ``E[(v J d)**2]`` is
``|J d|**2`` (M. Hutchinson, 1989), and one backward pass of ``v`` times the logits gives ``v J`` for every layer at
once. So the cost does not depend on the number of layers, and no model is rebuilt.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch

from calibration.parameters import Parameters
from calibration.simulate import Images, Simulation, numbers_of

# Relative error of a layer's damage from so many probes and 32 images: a few per cent, far less than layers differ.
_PROBES: Final = 8


@dataclass(frozen=True)
class Sensitivity:
    """What one layer alone does to the logits.

    Attributes:
        layer: Module path of the layer.
        share: Of the damage of all layers, from 0 to 1.
        sqnr_db: Of the logits if this layer alone were quantised, in decibels.
        kept: Whether it is left in float.
    """

    layer: str
    share: float
    sqnr_db: float
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


def sensitivities(
    simulation: Simulation, parameters: Parameters, images: Images, batch: int, seed: int = 0
) -> tuple[Sensitivity, ...]:
    """Every layer with 8-bit weights, the worst first.

    Args:
        simulation: The network.
        parameters: Of its quantised form.
        images: float32 ``[N, C, H, W]``.
        batch: Images that go through the network, and back, together.
        seed: Of the probes.
    """
    damage = dict.fromkeys(simulation.placement.weights, 0.0)
    signal = 0.0
    generator = torch.Generator().manual_seed(seed)
    numbers = numbers_of(simulation.placement, parameters)
    for start in range(0, len(images), batch):
        inputs = torch.from_numpy(images[start : start + batch]).requires_grad_()
        exact = simulation.traced(inputs)
        logits = exact[simulation.output]
        signal += float(torch.square(logits.detach()).sum(dtype=torch.float64))
        outputs = [exact[name] for name in damage]
        errors = simulation.errors(exact, numbers, parameters.activations)
        for _ in range(_PROBES):
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2.0 - 1.0
            slopes = torch.autograd.grad(logits, outputs, signs, retain_graph=True, allow_unused=True)
            for name, slope in zip(damage, slopes, strict=True):
                if slope is not None:
                    moved = (slope * errors[name]).flatten(1).sum(dim=1, dtype=torch.float64)  # [N]
                    damage[name] += float(torch.square(moved).sum()) / _PROBES
    total = sum(damage.values()) or 1.0
    rows = [Sensitivity(name, value / total, _decibels(signal, value)) for name, value in damage.items()]
    return tuple(sorted(rows, key=lambda row: -row.share))


def _decibels(signal: float, noise: float) -> float:
    if noise <= 0.0:
        return 300.0
    return 10.0 * math.log10(max(signal, 1e-300) / noise)
