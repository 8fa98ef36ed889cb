r"""How the difference from a reference grows from layer to layer, and which layer makes it.

Two ratios tell a layer that *makes* noise from one that only hands it on. With :math:`f_l` the layer of the judged
file, :math:`r_l` the reference's output and :math:`x_l` the tensors that the layer takes::

    accumulated_l = SQNR(r_l, j_l),              j_l = f_l(j of the layers before)   as the file runs
    own_l         = min over channels c of
                    10 · log10( max(S_c, mean S) / N_c ),    n_l = f_l(r of the layers before) − r_l

``S_c`` and ``N_c`` are the mean squares of ``r_l`` and ``n_l`` in channel ``c``. The accumulated ratio answers to all
that lies before; the own ratio does not, because the layer is given the reference's inputs: it does not fall with
depth, so that one bound serves the first layer and the hundredth. Channels are judged one by one, because one wrong
channel of 512 is lost in the mean; the mean signal stands in for weak channels, whose noise nobody downstream hears.

A layer whose own ratio leaves its bound is at fault. Noises that have no common cause add in power
(Widrow and Kollár, "Quantization Noise", 2008, chapter 4): ``d`` layers at their bound leave ``own bound −
10 · log10(d)`` of the accumulated ratio, which is the bound of that one. It is reached by sound layers only where
their errors conspire; the first such layer is told where no layer is at fault by itself.

A pair of Q/DQ has one scale for all channels, so its own ratio is that of the whole tensor. A scale that is *too
large* only costs resolution, 6 dB for twice the right one, and no fixed bound sees it. But half of a right scale would
clip, and half of a doubled one clips next to nothing: where half the scale leaves less than :data:`COARSE_DB` of the
noise on enough images, the scale is called too large.

The sums are those of :class:`runtimes.noise.ChannelNoise`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

from runtimes.noise import ChannelNoise


@dataclass(frozen=True)
class DriftBound:
    """What one layer may add by itself.

    Attributes:
        own_db: Smallest ratio of the reference's signal to the layer's own noise, in the worst channel, in decibels.
        reason: Why.
    """

    own_db: float
    reason: str

    def accumulated_db(self, depth: int) -> float:
        """Smallest accumulated ratio after ``depth`` layers, in decibels: see the module."""
        return self.own_db - 10.0 * math.log10(max(depth, 1))


BOUNDS: Final[Mapping[str, DriftBound]] = MappingProxyType(
    {
        "fp32": DriftBound(
            90.0,
            "One layer in another order of summation: single layers measure 115 to 145 dB in their worst channel, "
            "Winograd convolutions the least. 90 dB is a relative error of 3e-5, far below any wrong weight.",
        ),
        "fp16": DriftBound(
            42.0,
            "Inputs, weights and the result are rounded to 11 bits, 66 dB each at the worst: 61 dB together. A channel "
            "whose bias takes off most of its sum has up to 20 dB less signal than the terms that were rounded.",
        ),
        "int8": DriftBound(
            18.0,
            "Weights of 8 bits leave 27 to 45 dB in the worst channel; learnt ones, and biases that make good for the "
            "layers before, 23 dB. A channel that is wrong, missing or doubled leaves 6 dB or less.",
        ),
        "qdq": DriftBound(
            13.0,
            "256 levels leave 30 to 45 dB; a range that clips rare values 20 to 25 dB. A scale of a quarter, or two "
            "that differ by a factor of two, leave 6 dB or less.",
        ),
    }
)
"""Bounds by the numbers that a layer computes with."""


COARSE_DB: Final = 5.2
"""How much better half of a scale must be for the scale to be too large, in decibels; of a doubled one it is 5.3 to
6.0 dB better, of a fitted one 0 to 20 dB worse."""
COARSE_IMAGES: Final = 16
"""Images before which nothing is said of that: few do not reach the ends of a range that was chosen from many."""


@dataclass(frozen=True)
class LayerDrift:
    """One layer of the judged file beside the reference.

    Attributes:
        layer: Its name: the module path, or for a pair of Q/DQ the name of its ``QuantizeLinear``.
        op: Its ONNX operator, or that of the reference where the file lacks the layer.
        depth: Layers on the longest way from the input to it, itself included; 0 for the input.
        sqnr_db: Accumulated ratio, within ±300; −300 where a side is not finite or the shapes differ.
        mean_abs: Mean absolute difference as the file runs, in units of the layer; None where it is not finite.
        max_abs: Largest absolute difference; None where it is not finite.
        rms: Root mean square of the reference.
        bound_db: Smallest accumulated ratio allowed.
        own_db: The layer's own ratio, in its worst channel, within ±300.
        own_bound_db: Smallest own ratio allowed.
        channel: The worst channel.
        passed: Whether both ratios are within their bounds.
        finding: What is wrong; None for a layer that passed.
    """

    layer: str
    op: str
    depth: int
    sqnr_db: float
    mean_abs: float | None
    max_abs: float | None
    rms: float
    bound_db: float
    own_db: float
    own_bound_db: float
    channel: int
    passed: bool
    finding: str | None

    @property
    def at_fault(self) -> bool:
        """Whether the layer's own noise is out of bounds."""
        return not self.own_db >= self.own_bound_db


@dataclass(frozen=True)
class Drift:
    """All layers of a judged file that the reference has too, in the order of computation.

    Attributes:
        runtime: What ran the probed copies.
        file: The judged file, or a name for one in memory.
        layers: One row each.
        probed: A sentence on how the values were had.
    """

    runtime: str
    file: str
    layers: tuple[LayerDrift, ...]
    probed: str

    @property
    def first(self) -> str | None:
        """The first layer at fault; where there is none, the first that has drifted too far; else None."""
        failed = [row for row in self.layers if not row.passed]
        own = [row for row in failed if row.at_fault]
        return (own or failed)[0].layer if failed else None

    @property
    def passed(self) -> bool:
        """Whether every layer is within its bounds."""
        return self.first is None

    def to_json(self) -> dict[str, Any]:
        """The document, as plain JSON values."""
        return {**asdict(self), "layers": [asdict(row) for row in self.layers], "first": self.first}


def layer_drift(
    layer: str,
    op: str,
    depth: int,
    *,
    accumulated: ChannelNoise,
    own: ChannelNoise,
    bound: DriftBound,
    whole: DriftBound,
    finer_db: float | None = None,
) -> LayerDrift:
    """The row of one layer.

    Args:
        layer: Its name.
        op: Its operator.
        depth: Layers from the input to it.
        accumulated: Differences as the file runs.
        own: Differences where the layer is given the reference's inputs.
        bound: What it may add.
        whole: What a layer of the file may add at the most.
        finer_db: Own ratio of a pair of Q/DQ with half its scale; None where that says nothing.
    """
    own_db, channel = own.worst()
    own_bound_db = bound.own_db
    if op == "QuantizeLinear":
        own_db = own.total_db()
        own_bound_db = max(own_bound_db, finer_db - COARSE_DB) if finer_db is not None else own_bound_db
    sqnr_db, bound_db = accumulated.total_db(), whole.accumulated_db(depth)
    finding = None
    if not own_db >= own_bound_db:
        reason = own.problem or f"its own noise is {-own_db:+.1f} dB of the signal"
        finding = f"{layer} itself: {reason}; at most {-own_bound_db:+.1f} dB is allowed"
        if own_bound_db > bound.own_db and own_db >= bound.own_db:
            finding = f"{layer} itself: its scale is about twice what the values need"
    elif not sqnr_db >= bound_db:
        reason = accumulated.problem or f"{sqnr_db:.1f} dB are left, at least {bound_db:.1f} dB are required"
        finding = f"{layer} after {depth} layers: {reason}"
    return LayerDrift(
        layer=layer,
        op=op,
        depth=depth,
        sqnr_db=sqnr_db,
        mean_abs=accumulated.mean_abs,
        max_abs=accumulated.max_abs,
        rms=own.rms,
        bound_db=bound_db,
        own_db=own_db,
        own_bound_db=own_bound_db,
        channel=channel,
        passed=finding is None,
        finding=finding,
    )
