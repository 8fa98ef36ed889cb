"""A quantised network on its way: the float network, what of it becomes 8 bits, and the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from calibration.graph import Network
from calibration.parameters import Parameters
from calibration.placement import Placement, place
from calibration.simulate import Simulation


@dataclass(frozen=True)
class State:
    """A network, a placement and parameters that belong together.

    Attributes:
        network: The float network.
        placement: What of it becomes 8 bits.
        parameters: With which numbers.
    """

    network: Network
    placement: Placement
    parameters: Parameters

    @cached_property
    def simulation(self) -> Simulation:
        """The network as its file will compute it.

        Raises:
            GraphError: It has an operator that is not simulated.
        """
        return Simulation(self.network, self.placement)

    def without(self, layers: Iterable[str]) -> State:
        """The same numbers where exactly these layers stay in float."""
        placement = place(self.network, self.placement.target, frozenset(layers))
        # What a layer had in 8 bits is not what it has in float; sites that only it needed are gone.
        weights = {each.name for each in placement.weights.values()}
        own = self.parameters
        return State(
            self.network,
            placement,
            Parameters(
                {name: own.activations[name] for name in placement.sites},
                {name: value for name, value in own.weights.items() if name in weights},
                {name: value for name, value in own.scales.items() if name in weights},
                {name: value for name, value in own.biases.items() if name in placement.weights},
            ),
        )
