"""The network as its quantised file will compute it, in PyTorch: for refinement, which needs gradients.

Every tensor of the placement is quantised where it is made, and read in that form by the operators that take integers.
The arithmetic between is float32, so this agrees with the file up to rounding ties; what the file itself gives is
measured afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from calibration.graph import Network
from calibration.grids import Affine
from calibration.parameters import Parameters, along, with_room_for_biases
from calibration.placement import Placement, Target
from calibration.saturation import spared
from runtimes.errors import GraphError
from runtimes.operators import compiled, unknown_operators
from runtimes.values import constants, last_uses

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Numbers:
    """What a run computes with; tensors, so that gradients can reach them.

    Attributes:
        steps: Scale of each activation, a scalar, by tensor.
        weights: Already quantised and back in real values, by the first output of the node.
        biases: By the first output of the node.
    """

    steps: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]


def rounded(values: Tensor) -> Tensor:
    """The nearest whole numbers; gradients pass as if nothing had happened (the straight-through estimator)."""
    return (torch.round(values) - values).detach() + values


def fake_quantised(values: Tensor, step: Tensor, quantisation: Affine) -> Tensor:
    """What remains of ``values`` after quantising and dequantising with the scale ``step``.

    Gradients with respect to ``step`` are those of S. Esser et al., "Learned Step Size Quantization" (2019),
    equation 3.
    """
    grid, zero = quantisation.grid, quantisation.zero_point
    return rounded(torch.clamp(values / step, grid.low - zero, grid.high - zero)) * step


def quantised_weights(weight: Tensor, scales: Tensor, axis: int, target: Target) -> Tensor:
    """Weights on the target's grid, in real values; ``scales`` is ``[O]``. Gradients as in :func:`fake_quantised`."""
    shape = [1] * weight.dim()
    shape[axis] = -1
    steps = scales.reshape(shape)
    clamped = torch.clamp(weight / steps, -target.weights.high, target.weights.high)
    whole = torch.round(clamped).detach()
    if target.spares_pairs:
        whole = torch.from_numpy(spared(whole.numpy(), axis))
    return ((whole - clamped).detach() + clamped) * steps


class Simulation:
    """A network and a placement, ready to run.

    Args:
        network: The float network.
        placement: What becomes 8 bits.

    Raises:
        GraphError: The network has an operator that is not simulated.
    """

    def __init__(self, network: Network, placement: Placement) -> None:
        unknown = unknown_operators(network.model)
        if unknown:
            raise GraphError(f"the model has {', '.join(unknown)}, which cannot be simulated")
        self.network, self.placement = network, placement
        self._constants = constants(network.model)
        self._nodes = [node for node in network.nodes if node.op_type != "Constant"]
        self._functions = [compiled(node) for node in self._nodes]
        self.output = network.model.graph.output[0].name
        self._gone = last_uses(self._nodes, [self.output, *self._constants])

    def reference(self, images: Tensor) -> Tensor:
        """Logits of the float network, ``[N, classes]``."""
        with torch.no_grad():
            return self._run(images, None, {})

    def quantised(self, images: Tensor, numbers: Numbers, activations: Mapping[str, Affine]) -> Tensor:
        """Logits of the quantised network, ``[N, classes]``."""
        return self._run(images, numbers, activations)

    def pairs(self, images: Tensor, numbers: Numbers, activations: Mapping[str, Affine]) -> Iterator[Pair]:
        """Run both networks side by side, node by node, and stop after each node that has 8-bit weights.

        What the listener puts into :attr:`Pair.rough` takes the place of the quantised output before it goes on.
        """
        exact: dict[str, Tensor] = {**self._constants, self.network.input: images}
        rough: dict[str, Tensor] = dict(exact)
        self._quantise(self.network.input, rough, numbers, activations)
        for node, function, gone in zip(self._nodes, self._functions, self._gone, strict=True):
            name = node.output[0]
            with torch.no_grad():
                exact[name] = function([exact[each] if each else None for each in node.input])
                rough[name] = function(self._inputs(node, rough, numbers))
            if name in self.placement.weights:
                pair = Pair(node, exact[name], rough[name])
                yield pair
                rough[name] = pair.rough
            self._quantise(name, rough, numbers, activations)
            for each in gone:
                for values in (exact, rough):
                    values.pop(each, None)
                rough.pop(_form(each), None)

    def traced(self, images: Tensor) -> dict[str, Tensor]:
        """Every tensor of the float network."""
        values: dict[str, Tensor] = {**self._constants, self.network.input: images}
        for node, function in zip(self._nodes, self._functions, strict=True):
            values[node.output[0]] = function([values[each] if each else None for each in node.input])
        return values

    def errors(
        self, exact: Mapping[str, Tensor], numbers: Numbers, activations: Mapping[str, Affine]
    ) -> dict[str, Tensor]:
        """How far each node with 8-bit weights is off, where everything before it is exact.

        Args:
            exact: Every tensor of the float network, from :meth:`traced`.
            numbers: Of the quantised network.
            activations: Of the quantised network.
        """
        found = {}
        with torch.no_grad():
            for node, function in zip(self._nodes, self._functions, strict=True):
                name = node.output[0]
                if name in self.placement.weights:
                    values = dict(exact)
                    data = node.input[0]
                    self._quantise(data, values, numbers, activations)
                    site = self.network.source(data)
                    if data not in self.placement.sites and site in self.placement.sites:
                        # Q/DQ is before the pools or reshapes, which move the integers as they are.
                        values[data] = fake_quantised(values[data], numbers.steps[site], activations[site])
                    found[name] = function(self._inputs(node, values, numbers)) - exact[name]
        return found

    def _run(self, images: Tensor, numbers: Numbers | None, activations: Mapping[str, Affine]) -> Tensor:
        values: dict[str, Tensor] = {**self._constants, self.network.input: images}
        if numbers is not None:
            self._quantise(self.network.input, values, numbers, activations)
        for node, function, gone in zip(self._nodes, self._functions, self._gone, strict=True):
            values[node.output[0]] = function(self._inputs(node, values, numbers))
            if numbers is not None:
                self._quantise(node.output[0], values, numbers, activations)
            for each in gone:
                values.pop(each, None)
                values.pop(_form(each), None)
        return values[self.output]

    def _quantise(
        self, name: str, values: dict[str, Tensor], numbers: Numbers, activations: Mapping[str, Affine]
    ) -> None:
        if name in self.placement.sites:
            values[_form(name)] = fake_quantised(values[name], numbers.steps[name], activations[name])

    def _inputs(
        self, node: onnx.NodeProto, values: Mapping[str, Tensor], numbers: Numbers | None
    ) -> list[Tensor | None]:
        found: list[Tensor | None] = [values[each] if each else None for each in node.input]
        if numbers is None:
            return found
        for position in range(len(found)):
            if self.placement.reads_integers(node, position):
                found[position] = values[_form(node.input[position])]
        name = node.output[0]
        if name in self.placement.weights:
            found[1] = numbers.weights[name]
            found[2:] = [numbers.biases[name]] if node.op_type != "MatMul" else []
        return found


class Pair:
    """A node's output in both networks.

    Attributes:
        node: The node.
        exact: Its output in the float network.
        rough: In the quantised one; may be replaced.
    """

    def __init__(self, node: onnx.NodeProto, exact: Tensor, rough: Tensor) -> None:
        self.node, self.exact, self.rough = node, exact, rough


def _form(name: str) -> str:
    """Key of a tensor's 8-bit form among the values; no ONNX name holds a NUL."""
    return f"{name}\0"


def numbers_of(placement: Placement, parameters: Parameters) -> Numbers:
    """Parameters as tensors without gradients."""
    weights = {}
    parameters = with_room_for_biases(parameters, placement)
    for each in placement.weights.values():
        steps = parameters.integers(each.name, each.axis, placement.target).astype(np.float32)
        scales = along(parameters.scales[each.name], steps.ndim, each.axis)
        weights[each.node] = torch.from_numpy((steps * scales).astype(np.float32))
    return Numbers(
        {name: torch.tensor(quantisation.scale) for name, quantisation in parameters.activations.items()},
        weights,
        {name: torch.from_numpy(values.copy()) for name, values in parameters.biases.items()},
    )


def in_batches(
    function: Callable[[Tensor], Tensor], images: Images, batch: int, progress: Callable[[int], None] | None = None
) -> npt.NDArray[np.float32]:
    """Logits of all images, ``[N, classes]``."""
    found: Sequence[npt.NDArray[np.float32]] = []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            found = [*found, function(torch.from_numpy(images[start : start + batch])).numpy()]
            if progress:
                progress(min(start + batch, len(images)))
    return np.concatenate(found)
