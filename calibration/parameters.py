"""The numbers of a quantised network: a scale per tensor, scales per channel, weights and biases.

A value that refinement makes better ones of, and that the writer turns into a file. Weights and biases are kept as
real numbers: what a weight becomes is ``clamp(round(w / scale))``, in one place, :meth:`Parameters.integers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from calibration.graph import Network
from calibration.grids import Affine, Grid
from calibration.observers import Observer
from calibration.placement import Placement, Target
from calibration.saturation import spared, spared_rows
from calibration.thresholds import Method, choose
from runtimes.errors import DataError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]

_SMALLEST = np.float32(2.0**-100)  # of a scale: the inverse is still a normal float32
# Fractions of a channel's largest weight: 2 % apart where the optimum of Gaussian and Laplacian weights lies.
_FRACTIONS = np.linspace(0.3, 1.0, 36)
# Of an INT32 bias; as much again is left to the sum that it is added to.
_LARGEST_BIAS = 2.0**30
# Wider than the largest weight: pays where many pairs would have to give way.
_WIDER = np.linspace(1.05, 2.0, 20)


@dataclass(frozen=True)
class Parameters:
    """The numbers of a quantised network.

    Attributes:
        activations: Scale and zero point by tensor.
        weights: float32, real values by initializer.
        scales: float32 ``[O]``, of each output channel, by initializer.
        biases: float32 ``[O]`` by first output of the node.
    """

    activations: Mapping[str, Affine]
    weights: Mapping[str, Float32]
    scales: Mapping[str, Float32]
    biases: Mapping[str, Float32]

    def integers(self, name: str, axis: int, target: Target) -> Int8:
        """The 8-bit weights of an initializer."""
        steps = np.rint(self.weights[name] / along(self.scales[name], self.weights[name].ndim, axis))
        steps = np.clip(steps, -target.weights.high, target.weights.high).astype(np.float32)
        return (spared(steps, axis) if target.spares_pairs else steps).astype(np.int8)


def along(values: npt.NDArray[np.floating], rank: int, axis: int) -> npt.NDArray[np.floating]:
    """``[C]`` shaped so that it goes with dimension ``axis`` of ``rank`` dimensions."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def initial(
    network: Network,
    placement: Placement,
    observers: Mapping[str, Observer],
    method: Method,
    fixed: Mapping[str, Affine],
) -> Parameters:
    """Parameters as the ranges give them: activations by ``method``, weights from their largest magnitude.

    Args:
        network: The float network.
        placement: What becomes 8 bits.
        observers: Statistics by tensor.
        method: How ranges are chosen.
        fixed: Quantisations that are known without looking, by tensor.

    Raises:
        DataError: A tensor was not observed, or a weight is not finite.
    """
    activations: dict[str, Affine] = {}
    chosen: dict[tuple[str, Grid], Affine] = {}
    for site in placement.sites.values():
        if site.source in fixed:
            activations[site.tensor] = fixed[site.source]
            continue
        if site.source not in observers:
            raise DataError(f"the ranges have no tensor {site.source}: calibrate this model again")
        key = (site.source, site.grid)
        if key not in chosen:
            chosen[key] = choose(observers[site.source], method, site.grid)
        activations[site.tensor] = chosen[key]
    weights = {each.name: np.array(network.initializers[each.name], np.float32) for each in placement.weights.values()}
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise DataError(f"the weights {name} hold NaN or infinity: check the checkpoint")
    scales = {
        each.name: largest(weights[each.name], each.axis, placement.target.weights)
        for each in placement.weights.values()
    }
    return Parameters(activations, weights, scales, biases(network, placement))


def biases(network: Network, placement: Placement) -> dict[str, Float32]:
    """The bias of every node with 8-bit weights; zeros where it has none."""
    found = {}
    for node in network.nodes:
        if node.output[0] in placement.weights:
            each = placement.weights[node.output[0]]
            channels = network.initializers[each.name].shape[each.axis]
            given = node.input[2] if len(node.input) > 2 else ""
            values = network.initializers[given].reshape(-1) if given else np.zeros(1)
            found[node.output[0]] = np.array(np.broadcast_to(values, channels), np.float32)
    return found


def with_room_for_biases(parameters: Parameters, placement: Placement) -> Parameters:
    """Weight scales with which every bias fits into the 32 bits of the accumulators, where the target wants that.

    A channel whose weights have died away (a BatchNorm with next to no gain) still has its bias, which may be 2**31
    times what its own steps reach. Wider steps cost nothing there: what they lose is beyond the bias's own precision.
    """
    if not placement.target.integer_bias:
        return parameters
    scales = dict(parameters.scales)
    for each in placement.weights.values():
        needed = np.abs(parameters.biases[each.node]) / (_LARGEST_BIAS * parameters.activations[each.data].scale)
        scales[each.name] = np.maximum(scales[each.name], needed.astype(np.float32))
    return replace(parameters, scales=scales)


def largest(weight: Float32, axis: int, grid: Grid) -> Float32:
    """Scales that clip nothing."""
    return _scales(_rows(weight, axis), grid, 1.0)


def least_error(weight: Float32, axis: int, target: Target) -> Float32:
    """Scales with the least squared error of each channel: a search over fractions of its largest magnitude.

    Args:
        weight: float32, any rank.
        axis: Of the output channels, ``O``.
        target: Its integers, and what they have to avoid.

    Returns:
        float32 ``[O]``.
    """
    rows = _rows(weight, axis)
    best = _scales(rows, target.weights, 1.0)
    channels = weight.shape[1 - axis]
    least = _errors(rows, channels, best, target)
    for fraction in _FRACTIONS[:-1] if not target.spares_pairs else [*_FRACTIONS[:-1], *_WIDER]:
        scales = _scales(rows, target.weights, float(fraction))
        found = _errors(rows, channels, scales, target)
        best, least = np.where(found < least, scales, best), np.minimum(found, least)
    return best


def _rows(weight: Float32, axis: int) -> Float32:
    """``[O, K]``, with the input channels innermost, as :mod:`calibration.saturation` pairs them."""
    moved = np.moveaxis(np.moveaxis(weight, axis, 0), 1, -1)
    return np.ascontiguousarray(moved).reshape(moved.shape[0], -1)


def _scales(rows: Float32, grid: Grid, fraction: float) -> Float32:
    peak = np.abs(rows).max(axis=1)
    # A channel of zeros has no scale of its own: any does, and 1 keeps its bias in range.
    scales = np.where(peak > 0, peak * np.float32(fraction) / np.float32(grid.high), np.float32(1))
    found: Float32 = np.maximum(scales, _SMALLEST).astype(np.float32)
    return found


def _errors(rows: Float32, channels: int, scales: Float32, target: Target) -> Float64:
    steps = np.rint(rows * (np.float32(1) / scales)[:, None])
    np.clip(steps, -target.weights.high, target.weights.high, out=steps)
    if target.spares_pairs:
        steps = spared_rows(steps, channels)
    steps *= scales[:, None]
    steps -= rows
    errors: Float64 = np.einsum("ij,ij->i", steps, steps).astype(np.float64)
    return errors
