"""How much two stages may differ: one table, each bound beside its reason.

A bound is stated in a unit that means something for the precision: decibels of signal to noise, and steps
(ULP) of the largest output. A row is changed because its reason changed, never because a test failed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from runtimes.errors import InputError
from runtimes.statistics import DifferenceStatistics

FP16_STEP_ULP: Final = 2.0**13
"""One float16 step (10 mantissa bits) in float32 steps (23 mantissa bits), in float16's normal range."""


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the difference between a candidate and its reference; at least one is set.

    Attributes:
        min_sqnr_db: Smallest signal to noise ratio, in decibels; None: not bounded.
        min_decision_db: Smallest ratio of what decides to noise, in decibels; None: not bounded.
        max_ulp: Largest difference, in float32 steps of the largest reference magnitude; None: not bounded.
        min_top1: Smallest fraction of rows, in [0, 1], with the same largest element; None: not bounded.
        reason: Why the bounds are what they are.
    """

    min_sqnr_db: float | None
    min_decision_db: float | None
    max_ulp: float | None
    min_top1: float | None
    reason: str

    def __post_init__(self) -> None:
        if self.min_sqnr_db is None and self.min_decision_db is None and self.max_ulp is None and self.min_top1 is None:
            raise ValueError("a tolerance without a bound would pass anything")

    def judge(self, stats: DifferenceStatistics) -> tuple[bool, str]:
        """Hold statistics against the bounds; a value that equals its bound passes.

        Returns:
            ``(True, "")``, or ``(False, finding)``: which bounds were missed, what was measured and what
            was allowed. Statistics that are not finite never pass.
        """
        if not stats.finite:
            return False, f"sample {stats.worst_row} holds NaN or Inf"
        findings = []
        # "not within" rather than "beyond": a bound that is NaN must fail, not pass.
        if self.min_sqnr_db is not None and not stats.sqnr_db >= self.min_sqnr_db:
            findings.append(f"SQNR is {stats.sqnr_db:.6g} dB, at least {self.min_sqnr_db:g} dB is required")
        if self.min_decision_db is not None and not stats.decision_sqnr_db >= self.min_decision_db:
            findings.append(
                f"what tells the classes apart is only {stats.decision_sqnr_db:.6g} dB above the difference, "
                f"at least {self.min_decision_db:g} dB is required"
            )
        ulp = math.inf if stats.max_ulp is None else stats.max_ulp
        if self.max_ulp is not None and not ulp <= self.max_ulp:
            findings.append(
                f"sample {stats.worst_row} differs by {ulp:.6g} ULP of the largest output, "
                f"at most {self.max_ulp:g} is allowed"
            )
        if self.min_top1 is not None and not stats.top1_agreement >= self.min_top1:
            findings.append(
                f"top-1 agrees on {stats.top1_agreement:.6g} of the samples, at least {self.min_top1:g} is required"
            )
        return not findings, "; ".join(findings)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


_FP32_REASON = (
    "Only the order of float32 operations differs: the rounding noise of L layers of K-term dot products "
    "grows about as sqrt(L·K)·2^-24 of the signal. ResNets of up to 152 layers measure 120 to 140 dB; 100 dB "
    "is a relative error of 1e-5, which no wrong weight or attribute of consequence stays under. 512 ULP is "
    "3e-5 to 6e-5 of the largest logit: the worst single logit at 100 dB, about five standard deviations. "
    "60 dB of the deciding signal: a thousandth of what tells images apart, which no large constant in the logits can "
    "hide; networks with random weights, whose logits hardly vary, measure 101 to 121 dB."
)

_FP16_REASON = (
    "Each operation rounds to 11 significant bits, u = 2^-11: one rounding leaves 66 dB at the "
    "worst and about 75 dB on average. Independent roundings add in power; some three per layer "
    "(weights, convolution, addition) cost 10·log10(3·152) = 27 dB at 152 layers, which leaves "
    "48 dB (ResNet-18 and ResNet-152 with random weights measure 50 and 49 dB); 40 dB allows 2.5 times "
    "that amplitude. 64 float16 steps are 3 % to 6 % of the largest logit: five standard deviations "
    "of noise at 40 dB where no logit stands out."
)

_FP32 = Tolerance(100.0, 60.0, 512.0, None, "The same FP32 network through other kernels. " + _FP32_REASON)
_FP16 = Tolerance(40.0, 20.0, 64.0 * FP16_STEP_ULP, None, _FP16_REASON)
_TF32 = replace(
    _FP16,
    reason="TF32 rounds the operands of a product to the 11 significant bits of FP16 and sums in FP32: at most FP16's "
    "noise. " + _FP16_REASON,
)
_BF16 = Tolerance(
    22.0, 6.0, 64.0 * 8 * FP16_STEP_ULP, None,
    "As FP16 with 8 significant bits instead of 11: 3 bits of 6.02 dB each are 18 dB more noise. " + _FP16_REASON,
)  # fmt: skip
_WINOGRAD = replace(
    _FP32,
    min_sqnr_db=80.0,
    max_ulp=5120.0,
    reason="TensorRT may take Winograd kernels for 3x3 convolutions, whose transforms cost FP32 a decimal digit (Lavin "
    "and Gray 2016, section 5): ten times the amplitude, 20 dB, below other FP32 kernels. " + _FP32_REASON,
)
_INT8 = Tolerance(
    15.0, 6.0, None, 0.9,
    "Whether the right thing was asked for: 8 bits per tensor leave ResNets 20 to 35 dB (published and measured ones: "
    "docs/decisions/0006-int8.md), and below 15 dB the noise is a fifth of the logits and decides among classes. "
    "A tenth of the images with another class is beyond what quantisation does to a trained network.",
)  # fmt: skip

_OTHERS: Final = (
    "torch-compile",
    "onnxruntime",
    "ort-cuda",
    "ort-tensorrt",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "triton",
)
_BUILDERS: Final = ("ort-tensorrt", "tensorrt", "tensorrt-rtx", "triton")  # what a server runs may be an engine

TOLERANCES: Final[Mapping[tuple[str, str], Tolerance]] = MappingProxyType(
    {
        ("eager", "fp32"): replace(
            _FP32, reason="Batch normalisation folded into the convolutions, against the original. " + _FP32_REASON
        ),
        ("eager", "fp16"): _FP16,
        ("eager", "bf16"): _BF16,
        ("eager", "tf32"): _TF32,
        **{(name, "fp32"): _WINOGRAD if name in _BUILDERS else _FP32 for name in _OTHERS},
        **{(name, "tf32"): _TF32 for name in _OTHERS},
        **{(name, "fp16"): _FP16 for name in _OTHERS},
        **{(name, "bf16"): _BF16 for name in _OTHERS},
        **{(name, "int8"): _INT8 for name in (*_OTHERS, "int8-sim")},
    }
)
"""Bounds by (runtime, precision), against a float reference."""

_STEPS_REASON = (
    "Whether the runtime computed what the Q/DQ ask for: sums of 8-bit products are exact, and two implementations "
    "differ only where a result lies between two steps and one rounds up. That is one step of 127 in few places, "
    "10 to 30 dB below what quantisation itself costs"
)
AS_SIMULATED: Final[Mapping[bool, Tolerance]] = MappingProxyType(
    {
        True: Tolerance(
            34.0, 16.0, None, 0.95,
            f"{_STEPS_REASON}: ResNet-20 and ResNet-56 on ONNX Runtime measure 59 and 49 dB, on OpenVINO 50 and 42; it "
            "grows with depth as rounding does.",
        ),
        False: Tolerance(
            24.0, 10.0, None, 0.9,
            f"{_STEPS_REASON} where the file was made for this runtime. It was made for another: fusions then round in "
            "other places, or leave out a rounding (29 to 40 dB for ResNet-20 and ResNet-56). A wrong scale or "
            "a sum that saturates is below 24 dB.",
        ),
    }
)  # fmt: skip
"""Bounds of an INT8 file on a runtime against :class:`runtimes.int8_sim.Int8SimRuntime`, by whether it is the runtime
that the file was made for."""


_PIXEL_REASON = (
    "The model resizes by itself, and a filter in another library rounds pixels apart from Pillow's: a level of 256 in "
    "one of 500 pixels of photographs is noise 70 dB below. ResNet-18 and ResNet-50 on ONNX Runtime measure 86 and "
    "91 dB; a resize without antialias is at 23 dB."
)


def resized_apart(tolerance: Tolerance) -> Tolerance:
    """A row of the table for a model that resizes by itself, beside one whose images were resized by Pillow.

    Args:
        tolerance: The row.

    Returns:
        Its bounds where they are looser than FP16's, which an error of pixels is no larger than, and FP16's elsewhere.
    """

    def looser(own: float | None, other: float | None) -> float | None:
        return None if own is None or other is None else min(own, other)

    return replace(
        tolerance,
        min_sqnr_db=looser(tolerance.min_sqnr_db, _FP16.min_sqnr_db),
        min_decision_db=looser(tolerance.min_decision_db, _FP16.min_decision_db),
        max_ulp=None if tolerance.max_ulp is None else max(tolerance.max_ulp, _FP16.max_ulp or 0.0),
        reason=f"{_PIXEL_REASON} {tolerance.reason}",
    )


def coarser(candidate: Tolerance, reference: Tolerance) -> Tolerance:
    """The row that a pair is judged by: a candidate comes no closer to a reference than that one to the exact result.

    Args:
        candidate: Row of what is judged.
        reference: Row of what it is held against.

    Returns:
        The one with the smaller bound on SQNR, which every row of the table has.
    """
    mine, other = (math.inf if row.min_sqnr_db is None else row.min_sqnr_db for row in (candidate, reference))
    if other >= mine:
        return candidate
    return replace(reference, reason=f"The reference is the coarser of both. {reference.reason}")


MADE_FOR: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "onnxruntime": frozenset({"onnxruntime"}),
        "openvino": frozenset({"openvino"}),
        "tensorrt": frozenset({"tensorrt", "tensorrt-rtx", "ort-tensorrt"}),
    }
)
"""Target that a Q/DQ file was written for -> the runtimes that it is for. Others run it too, and round elsewhere."""


def tolerance_for(runtime: str, precision: str) -> Tolerance:
    """The row of the table for one runtime and precision.

    Args:
        runtime: Name of the runtime, for example ``"onnxruntime"``.
        precision: Numbers that the model computes with, for example ``"fp32"``.

    Raises:
        InputError: The table has no such row; the message lists those it has.
    """
    try:
        return TOLERANCES[runtime, precision]
    except KeyError:
        known = ", ".join(f"{name} {numbers}" for name, numbers in TOLERANCES)
        raise InputError(f"no tolerance is known for {runtime} {precision}: expected one of {known}") from None
