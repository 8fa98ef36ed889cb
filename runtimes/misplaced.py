"""Whether outputs are right, but of other images: what a race, a stale buffer or a wrong index makes of a batch.

Such outputs differ from the reference by as much as its rows differ from each other. Where those are alike, as the
logits of untrained networks are, a bound on the difference alone may let them pass.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

_MOST_ROWS: Final = 2048  # beyond them distances of all pairs take seconds
# Rows in another order are told from noise by how much better they fit there: 20 dB.
_BETTER: Final = 100.0


def misplaced(
    expected: npt.NDArray[Any], outputs: npt.NDArray[Any], images: npt.NDArray[Any], batch: int
) -> str | None:
    """What is wrong with the order of the rows.

    Args:
        expected: ``[N, classes]`` of the reference, finite.
        outputs: ``[N, classes]`` of what is judged.
        images: ``[N, C, H, W]`` that both were run on.
        batch: Images per run.

    Returns:
        A finding; None where each row is its own image's, as far as can be told: always for one image, equal images,
        and outputs that are not finite.
    """
    if len(outputs) < 2 or not np.isfinite(outputs).all():
        return None
    if _repeats(expected, outputs, images):
        return "gives the same logits for different images"
    if len(outputs) > batch and _fits(expected[:-batch], outputs[batch:], expected[batch:]):
        return "gives the logits of the run before: its buffer is read too early"
    if len(outputs) <= _MOST_ROWS and _in_another_order(expected, outputs):
        return "rows are those of the reference in another order"
    return None


def _repeats(expected: npt.NDArray[Any], outputs: npt.NDArray[Any], images: npt.NDArray[Any]) -> bool:
    """Rows that are the same to the last bit, for images that are not and that the reference tells apart."""
    if (outputs != outputs[:1]).any():
        return False
    return bool((images != images[:1]).any() and (expected != expected[:1]).any())


def _fits(other: npt.NDArray[Any], outputs: npt.NDArray[Any], own: npt.NDArray[Any]) -> bool:
    """Whether outputs are far nearer to other rows than to those they should be."""
    return _energy(outputs, own) > _BETTER * _energy(outputs, other)


def _in_another_order(expected: npt.NDArray[Any], outputs: npt.NDArray[Any]) -> bool:
    wide, rows = expected.astype(np.float64), np.arange(len(outputs))
    nearest = np.empty(len(rows), np.int64)
    for row, output in enumerate(outputs.astype(np.float64)):
        distances = np.square(wide - output).sum(axis=1)
        best = int(distances.argmin())
        nearest[row] = row if distances[row] <= distances[best] else best
    moved = (nearest != rows).any() and (np.sort(nearest) == rows).all()
    return bool(moved) and _fits(expected[nearest], outputs, expected)


def _energy(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
    return float(np.square(left.astype(np.float64) - right.astype(np.float64)).sum())
