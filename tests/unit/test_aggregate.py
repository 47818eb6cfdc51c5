"""The server optimisers against Reddi et al. 2021 (Algorithm 2), written out, and what a restart restores."""

import numpy as np
import pytest
from nexus_common.errors import NexusError
from nexus_common.plan import ServerSettings
from nexus_server.aggregate import OPTIMISERS, FedAvg, make_optimiser
from safetensors.numpy import load, save

DIM, ROUNDS = 5, 4
NAMES = sorted(OPTIMISERS)
SETTINGS = {"step": 0.3, "momentum": 0.8, "second_moment": 0.95, "epsilon": 1e-3}


def optimiser(name: str) -> FedAvg:
    return make_optimiser(ServerSettings(optimiser=name, **SETTINGS), DIM)


def means() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=DIM) for _ in range(ROUNDS)]


def weights_after(made: FedAvg, weights: np.ndarray, updates: list[np.ndarray]) -> np.ndarray:
    for update in updates:
        weights = made.apply(weights, update)
    return weights


def expected(name: str) -> list[float]:
    """Each weight by itself in plain Python; x_t = x_(t-1) + eta * ..., rounded to float32 as versions are."""
    eta, b1, b2, tau = (SETTINGS[key] for key in ("step", "momentum", "second_moment", "epsilon"))
    found = []
    for i in range(DIM):
        x, m, v = np.float32(i), 0.0, tau**2
        for delta in (float(mean[i]) for mean in means()):
            if name == "fedavg":
                change = delta
            elif name == "fedavgm":
                m = b1 * m + delta
                change = m
            else:
                m = b1 * m + (1 - b1) * delta
                v = b2 * v + (1 - b2) * delta**2
                change = m / (v**0.5 + tau)
            x = np.float32(float(x) + eta * change)
        found.append(float(x))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_optimiser_computes_its_formula(name: str) -> None:
    found = weights_after(optimiser(name), np.arange(DIM, dtype=np.float32), means())
    np.testing.assert_allclose(found, expected(name), rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", range(ROUNDS))
def test_a_restored_optimiser_goes_on_bit_for_bit(name: str, stop: int) -> None:
    start = np.arange(DIM, dtype=np.float32)
    before, after = optimiser(name), optimiser(name)
    half = weights_after(before, start, means()[:stop])
    after.restore(load(save(before.state())))
    np.testing.assert_array_equal(
        weights_after(after, half, means()[stop:]), weights_after(optimiser(name), start, means())
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_state_is_a_copy(name: str) -> None:
    stored = {key: value.copy() for key, value in optimiser(name).state().items()}
    made = optimiser(name)
    made.restore(stored)
    for key in stored:
        stored[key] += 1
    assert all(not np.array_equal(value, stored[key]) for key, value in made.state().items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_the_state_of_another_optimiser_is_refused(name: str, other: str) -> None:
    foreign = optimiser(other).state()
    if name == other or not foreign:
        optimiser(name).restore(foreign)
        return
    with pytest.raises(NexusError, match="does not fit"):
        optimiser(name).restore(foreign)


@pytest.mark.parametrize("shape", [(DIM - 1,), (DIM + 1,), (1, DIM), ()])
def test_a_state_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NexusError, match="'velocity'"):
        optimiser("fedavgm").restore({"velocity": np.zeros(shape)})


@pytest.mark.parametrize("name", ["__class__", "settings", "dim"])
def test_a_state_cannot_replace_anything_but_the_state(name: str) -> None:
    with pytest.raises(NexusError, match="does not fit"):
        optimiser("fedavg").restore({name: np.zeros(DIM)})


def test_half_a_state_is_refused() -> None:
    with pytest.raises(NexusError, match="does not fit FedAdam"):
        optimiser("fedadam").restore({"first": np.ones(DIM)})
