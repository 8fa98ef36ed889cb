"""What is asked of :func:`calibration.quantise.quantise`, and what it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import onnx

from calibration.parameters import Parameters
from calibration.placement import Placement, Target
from calibration.sensitivity import Sensitivity
from calibration.thresholds import Method

Effort = Literal["fast", "balanced", "best"]
EFFORTS: Final[tuple[Effort, ...]] = get_args(Effort)


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        target: The runtime.
        method: How ranges are chosen from their statistics.
        effort: ``fast`` needs no images; ``balanced`` corrects biases; ``best`` learns.
        keep: Names of layers to leave in float.
        keep_worst: So many of the most sensitive layers are left in float.
        max_drop: Percentage points of accuracy, or without labels of agreement, that may be lost; layers are left in
            float until it holds.
        seed: Of everything random.
    """

    target: Target
    method: Method = "mse"
    effort: Effort = "balanced"
    keep: frozenset[str] = frozenset()
    keep_worst: int = 0
    max_drop: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """A step of refinement and what it gained on the images held back.

    Attributes:
        name: What was done.
        before_db: SQNR of the logits before, in decibels.
        after_db: And after.
        applied: Whether it was kept.
        seconds: It took.
        note: What else there is to say.
    """

    name: str
    before_db: float | None
    after_db: float | None
    applied: bool
    seconds: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Quantised:
    """A quantised model, and how it came about.

    Attributes:
        model: The Q/DQ model.
        placement: What of it is 8 bits.
        parameters: Its numbers.
        steps: Refinement.
        sensitivity: Layers, the worst first; empty where there were no images.
        notes: What the user should know.
        effort: What was done: ``fast`` also where the network cannot be simulated.
    """

    model: onnx.ModelProto
    placement: Placement
    parameters: Parameters
    steps: tuple[Step, ...]
    sensitivity: tuple[Sensitivity, ...]
    notes: tuple[str, ...]
    effort: Effort


class Listener:
    """Hears of the work; this one keeps quiet."""

    def started(self, name: str) -> None:
        """A step begins."""

    def progress(self, done: int, total: int) -> None:
        """So much of the step is done."""

    def finished(self, step: Step) -> None:
        """A step has ended."""
