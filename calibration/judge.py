"""How near a quantised network comes to the float network, on images that are kept for that."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from calibration.simulate import Images, in_batches, numbers_of
from calibration.state import State
from runtimes.statistics import DifferenceStatistics, compare

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Judge:
    """Images, and what the float network makes of them.

    Args:
        images: float32 ``[N, C, H, W]``.
        batch: Images that are run together.
    """

    def __init__(self, images: Images, batch: int) -> None:
        self._images, self._batch = images, batch
        self._exact: Logits | None = None

    def measured(self, state: State) -> DifferenceStatistics:
        """Compare the logits; whatever the placement, the float network computes the same function every time."""
        return compare(self.exact(state), self._rough(state))

    def exact(self, state: State) -> Logits:
        """Logits of the float network, float32 ``[N, classes]``."""
        if self._exact is None:
            self._exact = in_batches(state.simulation.reference, self._images, self._batch)
        return self._exact

    def lost(self, state: State, labels: Labels | None = None) -> float:
        """Percentage points of top-1 accuracy lost to the float network; may be negative.

        Args:
            state: The quantised network.
            labels: Class of each image, int64 ``[N]``. ``None``: what the float network says is right, and what is
                lost is agreement.
        """
        decided = self.exact(state).argmax(axis=1)
        right = decided if labels is None else labels
        found = self._rough(state).argmax(axis=1)
        return 100.0 * (float(np.mean(decided == right)) - float(np.mean(found == right)))

    def _rough(self, state: State) -> Logits:
        simulation, numbers = state.simulation, numbers_of(state.placement, state.parameters)
        activations = state.parameters.activations
        return in_batches(lambda x: simulation.quantised(x, numbers, activations), self._images, self._batch)
