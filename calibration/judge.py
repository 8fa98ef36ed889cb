"""How near a quantised network comes to the float network, on images that are kept for that."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from calibration.simulate import Images, in_batches, numbers_of
from calibration.state import State
from runtimes.statistics import DifferenceStatistics, compare


class Judge:
    """Images, and what the float network makes of them.

    Args:
        images: float32 ``[N, C, H, W]``.
        batch: Images that are run together.
    """

    def __init__(self, images: Images, batch: int) -> None:
        self._images, self._batch = images, batch
        self._exact: npt.NDArray[np.float32] | None = None

    def measured(self, state: State) -> DifferenceStatistics:
        """Compare the logits; whatever the placement, the float network computes the same function every time."""
        simulation, numbers = state.simulation, numbers_of(state.placement, state.parameters)
        if self._exact is None:
            self._exact = in_batches(simulation.reference, self._images, self._batch)
        activations = state.parameters.activations
        return compare(
            self._exact, in_batches(lambda x: simulation.quantised(x, numbers, activations), self._images, self._batch)
        )
