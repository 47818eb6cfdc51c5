"""From a round's mean update to the next version: a server optimiser (Reddi et al. 2021, Algorithm 2).

numpy only, float64 inside, and the state goes to disk with
every round, so a restarted server goes on with the same bits.
"""

import numpy as np
from nexus_common.errors import NexusError
from nexus_common.layout import Vector
from nexus_common.plan import ServerSettings
from numpy.typing import NDArray

State = dict[str, NDArray[np.float64]]


class FedAvg:
    """w += step * mean; keeps no state."""

    def __init__(self, settings: ServerSettings, dim: int) -> None:
        self.settings, self.dim = settings, dim

    def apply(self, weights: Vector, mean: NDArray[np.float64]) -> Vector:
        """The next version [dim] float32."""
        return (weights + self.settings.step * self.direction(mean)).astype(np.float32)

    def direction(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is added, before the step size."""
        return mean

    def state(self) -> State:
        """What a restarted server needs to go on with the same bits."""
        return {}

    def restore(self, state: State) -> None:
        """Take up a state; empty means the beginning."""
        if state and {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in self.state().items()}:
            raise NexusError(f"the optimiser's stored state {sorted(state)} does not fit {type(self).__name__}")
        for name, value in state.items():
            setattr(self, name, np.array(value, np.float64))


class FedAvgM(FedAvg):
    """m = momentum * m + mean; w += step * m."""

    def __init__(self, settings: ServerSettings, dim: int) -> None:
        super().__init__(settings, dim)
        self.velocity = np.zeros(dim)

    def direction(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """Accumulated velocity."""
        self.velocity = self.settings.momentum * self.velocity + mean
        return self.velocity

    def state(self) -> State:
        """The velocity."""
        return {"velocity": self.velocity}


class FedAdam(FedAvg):
    """m = b1 m + (1 - b1) mean; v = b2 v + (1 - b2) mean^2; w += step * m / (sqrt(v) + epsilon); no bias correction."""

    def __init__(self, settings: ServerSettings, dim: int) -> None:
        super().__init__(settings, dim)
        self.first = np.zeros(dim)
        self.second = np.full(dim, settings.epsilon**2)

    def direction(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """The adaptive direction."""
        b1, b2 = self.settings.momentum, self.settings.second_moment
        self.first = b1 * self.first + (1 - b1) * mean
        self.second = b2 * self.second + (1 - b2) * mean**2
        return self.first / (np.sqrt(self.second) + self.settings.epsilon)

    def state(self) -> State:
        """Both moments."""
        return {"first": self.first, "second": self.second}


OPTIMISERS: dict[str, type[FedAvg]] = {"fedavg": FedAvg, "fedavgm": FedAvgM, "fedadam": FedAdam}


def make_optimiser(settings: ServerSettings, dim: int) -> FedAvg:
    """The optimiser that the plan names."""
    return OPTIMISERS[settings.optimiser](settings, dim)
