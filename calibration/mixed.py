"""Mixed precision: how many of the most sensitive layers have to stay in float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from calibration.judge import Judge, Labels
from calibration.state import State


class Fewest(NamedTuple):
    """What :func:`fewest_in_float` found.

    Attributes:
        layers: How many to leave in float, from the worst on.
        measure: What must not be lost: ``accuracy`` or ``agreement``.
        notes: What the user should know.
    """

    layers: int
    measure: str
    notes: tuple[str, ...]


def fewest_in_float(
    judge: Judge,
    state: State,
    layers: Sequence[str],
    keep: frozenset[str],
    allowed: float,
    labels: Labels | None,
) -> Fewest:
    """Halve the number of layers in float until one fewer would lose more than is allowed.

    Args:
        judge: Has the images.
        state: With all layers in 8 bits that can be.
        layers: The worst first; one of them stays in 8 bits whatever is lost.
        keep: Layers that stay in float anyway.
        allowed: Percentage points that may be lost.
        labels: Class of each image; ``None``: agreement is counted.
    """
    labels, measure, notes = _counted(judge, state, labels)

    def lost(count: int) -> float:
        return judge.lost(state.without(keep | set(layers[:count])), labels)

    low, high = 0, len(layers) - 1
    if lost(0) <= allowed:
        high = 0
    elif (least := lost(high)) > allowed:
        notes = (
            *notes,
            f"with all but one layer in float, {least:.2f} points of {measure} are still lost, "
            f"{allowed:g} were allowed",
        )
        low = high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if lost(middle) <= allowed else (middle + 1, high)
    return Fewest(high, measure, notes)


def _counted(judge: Judge, state: State, labels: Labels | None) -> tuple[Labels | None, str, tuple[str, ...]]:
    """What is not to be lost. Labels of another numbering would make noise of it, and are not taken."""
    if labels is None:
        return None, "agreement", ()
    logits = judge.exact(state)
    right = float(np.mean(logits.argmax(axis=1) == labels))
    chance = 1 / logits.shape[1]
    if right > min(2 * chance, (1 + chance) / 2):
        return labels, "accuracy", ()
    note = f"the labels are not those of the model, which is right on {right:.1%} of them: agreement is counted"
    return None, "agreement", (note,)
