"""How a quantised file stores a value: less a constant, or channel by channel times a factor.

For TensorRT, values that cannot be negative may be stored less ``o = 128 * scale``, and the constants go into biases
(:mod:`calibration.qdq`); cross-layer equalisation multiplies channels by ``e > 0`` where they are made and divides them
where they are taken (:mod:`calibration.equalise`)::

    stored[c] = e[c] * real[c] - o

Neither is written down in the file, and neither is an error. A pair of Q/DQ is stored with ``o`` or without: what fits
the reference better is taken, which are hundreds of steps apart. Through sums and pools the constants follow from
there, and for an equalised file ``e`` is fitted to the first images. Both are only looked for in files whose metadata
say that they can be there, and a fault is none of the two: a shift of another size, or of one channel, stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from calibration.graph import Network
from exporter.drift.match import Point
from runtimes.base import Array

_LEVELS: Final = 128.0
# They give values less a constant for values less that constant.
_PASSING: Final = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Squeeze",
     "Unsqueeze", "Identity", "Slice", "Pad", "LeakyRelu"}
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Form:
    """How the values of one tensor are stored.

    Attributes:
        offset: ``o``.
        gains: ``e``, ``[C]``; None: 1 for all.
    """

    offset: float = 0.0
    gains: npt.NDArray[np.float64] | None = None

    def real(self, stored: Array) -> Array:
        """Stored values as the reference has them."""
        if not self.offset and self.gains is None:
            return stored
        return (stored.astype(np.float64) + self.offset) / _along(self.gains, stored)

    def stored(self, real: Array) -> Array:
        """Values of the reference as the file stores them."""
        if not self.offset and self.gains is None:
            return real
        result: Array = real.astype(np.float64) * _along(self.gains, real) - self.offset
        return result


PLAIN: Final = Form()


def forms(
    network: Network, points: tuple[Point, ...], judged: Mapping[str, Array], exact: Mapping[str, Array],
    quantisation: Mapping[str, Any],
) -> dict[str, Form]:  # fmt: skip
    """How each compared tensor is stored.

    Args:
        network: The judged file.
        points: What is compared.
        judged: Values by tensor, of some images.
        exact: Values by layer of the reference, of the same images.
        quantisation: What the file's metadata say of how it was quantised; empty for another file.

    Returns:
        By tensor; those that are stored plainly have no entry.
    """
    found: dict[str, Form] = {}
    if quantisation.get("target") == "tensorrt" and quantisation.get("fold_zero_point") != "none":
        found = _Offsets(network, points, judged, exact).forms()
    if quantisation.get("effort") == "best":
        for point in points:
            offset = found.get(point.tensor, PLAIN).offset
            gains = _gains(judged[point.tensor], exact[point.key], offset)
            if gains is not None and point.tensor not in (network.input, *network.outputs):
                found[point.tensor] = Form(offset, gains)
    return found


def with_half_the_scale(network: Network, point: Point, form: Form, real: Array) -> Array:
    """What a pair of Q/DQ would give with half of its scale, in real values.

    Args:
        network: The judged file.
        point: The pair, of one scale.
        form: How it stores.
        real: Values of the reference.
    """
    node = network.producers[point.tensor]
    zero = network.initializers.get(node.input[2] if len(node.input) > 2 else "", np.zeros(1, np.uint8))
    low = 0.0 if form.offset else (-_LEVELS if zero.dtype == np.int8 else 0.0) - float(zero.reshape(-1)[0])
    step = float(network.initializers[node.input[1]].reshape(-1)[0]) / 2
    gains = _along(form.gains, real)
    whole = np.clip(np.rint(real.astype(np.float64) * gains / step), low, low + 2 * _LEVELS - 1)
    finer: Array = whole * step / gains
    return finer


def _along(gains: npt.NDArray[np.float64] | None, values: Array) -> npt.NDArray[np.float64] | float:
    return 1.0 if gains is None else gains.reshape(-1, *[1] * (values.ndim - 2))


def _gains(judged: Array, exact: Array, offset: float) -> npt.NDArray[np.float64] | None:
    """Least squares, channel by channel; 1 where a channel is silent or its factor would not be positive."""
    if judged.shape != exact.shape or judged.ndim < 2:
        return None
    axes = tuple(axis for axis in range(judged.ndim) if axis != 1)
    wide = exact.astype(np.float64)
    power = np.square(wide).sum(axis=axes)
    product = (wide * (judged.astype(np.float64) + offset)).sum(axis=axes)
    fitted = np.divide(product, power, out=np.ones_like(power), where=power > 0)
    return np.where(np.isfinite(fitted) & (fitted > 0), fitted, 1.0)


class _Offsets:
    def __init__(
        self, network: Network, points: tuple[Point, ...], judged: Mapping[str, Array], exact: Mapping[str, Array]
    ) -> None:
        self._network = network
        self._points = points
        self._judged, self._exact = judged, exact
        self._sites = {p.tensor: self._of_site(p) for p in points if p.op == "QuantizeLinear"}

    def forms(self) -> dict[str, Form]:
        offsets = {point.tensor: self._before(point.tensor) for point in self._points}
        offsets |= {p.tensor: self._measured(p, offsets[p.tensor]) for p in self._points if offsets[p.tensor]}
        return {tensor: Form(offset) for tensor, offset in offsets.items() if offset}

    def _measured(self, point: Point, expected: float) -> float:
        """The constant that a convolution really has in its bias, where that is one number, and not ``expected``.

        Then it is the scale behind that is wrong, and not this convolution.
        """
        stored, real = self._judged[point.tensor], self._exact[point.key]
        if point.op != "Conv" or stored.shape != real.shape:
            return expected
        error = real.astype(np.float64) - stored
        found = float(error.mean())
        return found if 10.0 * np.square(error - found).sum() < np.square(error - expected).sum() else expected

    def _of_site(self, point: Point) -> float:
        scale = self._network.initializers.get(self._network.producers[point.tensor].input[1])
        stored, real = self._judged[point.tensor], self._exact[point.key]
        if scale is None or scale.size != 1 or stored.shape != real.shape:
            return 0.0
        offset = _LEVELS * float(scale.reshape(()))
        error = real.astype(np.float64) - stored
        return offset if np.square(error - offset).sum() < np.square(error).sum() else 0.0

    def _before(self, tensor: str) -> float:
        """Offset of a tensor, from what made it; a convolution's, from what takes it."""
        node = self._network.producers.get(tensor)
        if tensor in self._sites:
            return self._sites[tensor]
        if node is None:
            return 0.0
        if node.op_type in _PASSING:
            return self._before(node.input[0])
        if node.op_type == "Add":
            return self._before_sum(node)
        return self._behind(tensor) if node.op_type == "Conv" else 0.0

    def _before_sum(self, node: onnx.NodeProto) -> float:
        constant = self._constant(node)
        if constant is None:
            return sum(map(self._before, node.input))
        return self._before(next(filter(self._network.is_activation, node.input))) - constant

    def _behind(self, tensor: str) -> float:
        """The constant that a convolution's bias has taken in: what the next site wants, less the other sides'."""
        for node in self._network.consumers.get(tensor, ()):
            result = node.output[0]
            if node.op_type == "QuantizeLinear":
                readers = self._network.consumers.get(result, ())
                return next((self._sites.get(each.output[0], 0.0) for each in readers), 0.0)
            if node.op_type in _PASSING:
                return self._behind(result)
            if node.op_type == "Add":
                constant = self._constant(node)
                if constant is not None:
                    return self._behind(result) + constant
                other = node.input[1] if node.input[0] == tensor else node.input[0]
                if not self._takes_bias(other):
                    return self._behind(result) - self._before(other)
                # Of two convolutions the first takes the constant.
                return self._behind(result) if node.input[0] == tensor else 0.0
        return 0.0

    def _takes_bias(self, tensor: str) -> bool:
        node = self._network.producers.get(tensor)
        return node is not None and node.op_type == "Conv" and len(self._network.consumers.get(tensor, ())) == 1

    def _constant(self, node: onnx.NodeProto) -> float | None:
        """What an addition adds, where it adds one number."""
        values = [self._network.initializers[name] for name in node.input if name in self._network.initializers]
        return float(values[0].reshape(-1)[0]) if values and values[0].size == 1 else None


def pixels_as_input(network: Network, contract: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The quantised pixels of :mod:`calibration.lattice` and how they become the input again, by the contract.

    Args:
        network: The judged file.
        contract: Its preprocessing, from the metadata: the file's own constants may be what is wrong.

    Returns:
        Name of the tensor, and ``zero``, ``scale``, ``mean``, ``std``, ``pads``; None without a prologue or a contract.
    """
    quantiser = next((n for n in network.nodes if n.output[0] == "input.pixels.quantized"), None)
    if quantiser is None or not {"scale", "mean", "std"} <= contract.keys():
        return None
    reader = network.consumers[quantiser.output[0]][0]
    zero = network.initializers[reader.input[2]]
    pad = next((n for n in network.nodes if n.output[0] == "input.padded"), None)
    pads = network.initializers[pad.input[1]].tolist() if pad is not None else [0] * 8
    shift = _LEVELS if zero.dtype == np.int8 and not zero.any() else 0.0
    return reader.output[0], {"zero": shift, "pads": pads, **{key: contract[key] for key in ("scale", "mean", "std")}}


def input_of(pixels: Array, how: Mapping[str, Any]) -> Array:
    """``[N, C, h, w]`` pixels less their zero, padded -> the input ``[N, C, H, W]`` that they stand for."""
    top, left, bottom, right = (int(how["pads"][place]) for place in (2, 3, 6, 7))
    inner = pixels[:, :, top : pixels.shape[2] - bottom, left : pixels.shape[3] - right].astype(np.float64)
    mean, std = (np.array(how[key], np.float64).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    result: Array = ((inner + how["zero"]) * how["scale"] - mean) / std
    return result
