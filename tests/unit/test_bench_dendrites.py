"""The dendrites' benchmark: its arms are what they are called, its steps the product's, its intervals right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nexus_client.material import ScoredTask, Task
from nexus_client.privacy import epsilon_of
from nexus_client.train import local_update
from nexus_common.layout import WIDTH
from nexus_common.recipe import LocalSettings
from scipy import stats

from tests.bench import dendrite_jobs
from tests.bench.dendrite_arms import ARMS, RANKS
from tests.bench.dendrite_figures import apart, chosen, difference, half_width, reached, side
from tests.bench.dendrite_jobs import Job
from tests.bench.dendrite_noise import DELTA, SAMPLING, STEPS, noise_for
from tests.bench.dendrite_training import read, take_steps, trained
from tests.unit.test_train import RandomStates, pairs

NATIVE = [arm for arm in ARMS.values() if arm.engine == "native"]
SETTINGS = LocalSettings(steps=4, batch_rows=5)


def tasks(kind: str) -> list[Task]:
    if kind == "ranking":
        return [pairs()[1]]
    first, second = np.arange(8), np.arange(8, 16)
    return [ScoredTask(first, second, np.linspace(0, 1, 8, dtype=np.float32))]


@pytest.mark.parametrize("arm", NATIVE, ids=lambda arm: arm.name)
def test_every_arm_begins_as_the_base_model(arm) -> None:
    states, numbers = RandomStates(20), np.arange(20)
    adapter = arm.adapter(3)
    with torch.inference_mode():
        given = states.tokens(numbers) if adapter.salience is not None else (states.pooled(numbers),)
        torch.testing.assert_close(adapter(*given), states.pooled(numbers), atol=1e-6, rtol=0)


def test_controls_have_the_dendrites_number_of_parameters_exactly() -> None:
    count = {name: arm.parameters for name, arm in ARMS.items() if arm.engine == "native"}
    assert count["1 dendrite"] == 2 * (WIDTH + 1) * WIDTH + WIDTH
    for name in ("two-layer linear", "linear twin", "1 dendrite, awake", "linear twin, awake"):
        assert count[name] == count["1 dendrite"]
    assert count["salience + linear twin"] == count["salience + 1 dendrite"] == count["1 dendrite"] + WIDTH
    assert (
        count["salience dendrite + linear"] == count["salience twin + linear"] == count["salience + linear"] + WIDTH + 1
    )
    assert count["salience"] == WIDTH
    for rank in RANKS:
        assert count[f"rank {rank}"] == count[f"rank {rank}, tanh"] == 2 * rank * WIDTH


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        ("two-layer linear", True),
        ("linear twin", True),
        ("linear twin, awake", True),
        ("rank 8", True),
        ("1 dendrite", False),
        ("1 dendrite, awake", False),
        ("rank 8, tanh", False),
    ],
)
def test_linear_controls_stay_linear_in_training_and_dendrites_do_not(name: str, linear: bool) -> None:
    adapter, settings = ARMS[name].adapter(1), SETTINGS.model_copy(update={"learning_rate": 0.1})
    take_steps(adapter, tasks("ranking"), RandomStates(20), settings, np.random.default_rng(0))
    x, y = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f = adapter.double().projection.layer
    with torch.inference_mode():
        bend = float((f(x + y) - f(x) - f(y) + f(0 * x)).abs().max())
    assert bend < 1e-9 if linear else bend > 0.1


@pytest.mark.parametrize("kind", ["ranking", "scored"])
@pytest.mark.parametrize("name", ["linear", "1 dendrite", "2 dendrites", "salience dendrite + linear"])
def test_steps_are_those_of_the_product(name: str, kind: str) -> None:
    arm = ARMS[name]
    begins = arm.layout.first_vector((7).to_bytes(8, "little"))
    expected = local_update(arm.layout, begins, tasks(kind), RandomStates(20), SETTINGS, np.random.default_rng(5))
    adapter, rng = arm.adapter(7), np.random.default_rng(5)
    np.testing.assert_array_equal(read(adapter), begins)
    found = trained(adapter, begins, lambda: take_steps(adapter, tasks(kind), RandomStates(20), SETTINGS, rng), 10.0)
    np.testing.assert_array_equal(found, expected)


def test_intervals_are_students() -> None:
    values = [1.0, 2.0, 4.0, 5.0, 9.0]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert half_width(values) == pytest.approx((high - low) / 2)
    assert difference(values) == f"**{np.mean(values):+.2f} ({low:+.2f} to {high:+.2f})**"
    assert difference([-1.0, 1.5]).startswith("+0.25 (")
    assert [side([1.0, 1.1]), side([-1.0, -1.1]), side([-1.0, 1.5]), side([3.0])] == [1, -1, 0, 0]


def test_differences_pair_the_seeds_that_both_have() -> None:
    first, second = {0: {"x": 5.0}, 1: {"x": 7.0}, 2: {"x": 0.0}}, {1: {"x": 6.5}, 0: {"x": 1.0}}
    assert apart(first, second, lambda result: result["x"]) == [4.0, 0.5]


def test_the_choice_is_made_on_dev_among_candidates_with_all_seeds() -> None:
    def seeds(*dev: float) -> dict[int, dict[str, float]]:
        return {seed: {"dev": value, "test": -value} for seed, value in enumerate(dev)}

    arms = {arm.name: seeds(1, 2) for arm in ARMS.values() if arm.candidate and arm.name in dendrite_jobs.CORE}
    arms |= {"1 dendrite": seeds(1, 3), "2 dendrites": seeds(9), "linear twin": seeds(9, 9), "linear": seeds(1, 2, 99)}
    assert chosen(arms, lambda result: result["dev"]) == "1 dendrite"
    assert chosen({}, lambda result: result["dev"]) is None


def test_the_first_epoch_at_the_goal_counts() -> None:
    result = {"curve": [{"dev": 1.0}, {"dev": 3.0}, {"dev": 2.0}, {"dev": 4.0}]}
    assert [reached(result, 2.0), reached(result, 3.5), reached(result, 5.0)] == [2, 4, None]


def test_a_job_is_done_once_and_again_when_its_description_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dendrite_jobs, "FOLDER", tmp_path)
    monkeypatch.setattr(dendrite_jobs, "recorded", dict)
    monkeypatch.setattr(dendrite_jobs, "measured", lambda job: {"curve": [{"dev": 1.0}], "parameters": job.seed})
    job, other = Job("shipped", "stsb", "1 dendrite", 3), Job("shipped", "stsb", "1 dendrite, sigmoid", 3)
    assert job.result() is None
    dendrite_jobs.run(job, "abc")
    assert job.result() is not None
    assert other.result() is None
    assert [path.name for path in tmp_path.iterdir()] == [job.file.name], "written whole, nothing left beside it"
    told = json.loads(job.file.read_text())
    told["job"]["settings"]["dropout"] = 0.1
    job.file.write_text(json.dumps(told))
    assert job.result() is None


def test_jobs_have_files_of_their_own() -> None:
    parts = [f"{epsilon} {rate}" for epsilon in dendrite_jobs.EPSILONS for rate in dendrite_jobs.RATES]
    every = [Job("noise", "stsb", arm, seed, part) for arm in ARMS for seed in range(2) for part in parts]
    every += [Job(kind, name, arm, 0) for kind in ("pooled", "shipped") for name in ("stsb", "medquad") for arm in ARMS]
    assert len({job.file for job in every}) == len(every)


def test_the_noise_is_what_epsilon_asks_for() -> None:
    noise = noise_for(3.0)
    told = [epsilon_of(n, SAMPLING, STEPS, DELTA) for n in (noise, noise / 1.01)]
    assert told[0] <= 3.0 < told[1]
    assert noise_for(float("inf")) == 0.0
