"""The search's harness: models begin as the base model, shipped steps are the product's, ideas do as they are told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nexus_client.material import Task
from nexus_client.train import local_update
from nexus_common.layout import WIDTH, Layout
from nexus_common.plan import ServerSettings
from nexus_common.recipe import LocalSettings

from tests.bench import search, search_jobs
from tests.bench.search_cascade import correlate
from tests.bench.search_ideas import IDEAS, SHIPPED, Idea, Pulls
from tests.bench.search_jobs import Job
from tests.bench.search_models import Pupil, dendritic, shipped
from tests.bench.search_states import KINDS, POSITIONS
from tests.bench.search_training import CPU, Site, read, relations, update
from tests.unit.test_bench_dendrites import tasks
from tests.unit.test_train import RandomStates

SETTINGS = LocalSettings(steps=4, batch_rows=5)
SEED = (7).to_bytes(8, "little")


class Whole(RandomStates):
    """All that the search reads of a text, made up."""

    bank = np.arange(16, 20)

    def features(self, which: str, numbers: np.ndarray) -> torch.Tensor | None:
        count = {"": 0, "kinds": KINDS, "positions": POSITIONS}[which]
        return torch.arange(len(self.tokens(numbers)[0])) % count if count else None

    def layers(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.cat([self.pooled(numbers)] * 2, dim=-1)


def site(kind: str = "ranking", seed: int = 5) -> Site:
    found: list[Task] = tasks(kind)
    return Site(found, np.random.default_rng(seed))


@pytest.mark.parametrize("idea", IDEAS.values(), ids=lambda idea: idea.name)
def test_every_idea_begins_as_the_base_model(idea: Idea) -> None:
    states, numbers = Whole(20), np.arange(20)
    with torch.inference_mode():
        found = Pupil(idea.model(SEED), states, CPU).embed(numbers)
    torch.testing.assert_close(found, states.pooled(numbers), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["ranking", "scored"])
@pytest.mark.parametrize("name", [SHIPPED, "projection alone"])
def test_steps_are_those_of_the_product(name: str, kind: str) -> None:
    layout = Layout(0, 0) if name == SHIPPED else Layout()
    expected = local_update(
        layout, layout.first_vector(SEED), tasks(kind), RandomStates(20), SETTINGS, np.random.default_rng(5)
    )
    model = IDEAS[name].model(SEED)
    begins = read(model)
    birth = [one.detach().clone() for one in model.parameters()]
    found = update(IDEAS[name], model, begins, birth, site(kind), Whole(20), SETTINGS)
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-8)  # parameters stand in another order


def moved(idea: Idea) -> float:
    """How far one site's steps go."""
    model = idea.model(SEED)
    birth = [one.detach().clone() for one in model.parameters()]
    return float(np.linalg.norm(update(idea, model, read(model), birth, site(), Whole(20), SETTINGS)))


@pytest.mark.parametrize("pulls", [Pulls(birth=10.0), Pulls(version=10.0)])
def test_a_pull_keeps_the_model_near(pulls: Pulls) -> None:
    assert moved(Idea("pulled", "", pulls=pulls)) < 0.9 * moved(IDEAS[SHIPPED])


def test_sharpness_takes_the_gradient_elsewhere_and_comes_back() -> None:
    near, far = moved(Idea("near", "", sharpness=1e-7)), moved(Idea("far", "", sharpness=1.0))
    assert near == pytest.approx(moved(IDEAS[SHIPPED]), rel=1e-2)
    assert abs(far - near) > 1e-3


def test_relations_are_kept_at_birth_and_under_any_turn() -> None:
    states, model, numbers = Whole(20), shipped(SEED), np.arange(20)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)))[0]
    for weight, kept in ((torch.eye(WIDTH), True), (turn, True), (torch.diag(torch.linspace(0, 1, WIDTH)), False)):
        with torch.no_grad():
            model.projection.weight.copy_(weight)
            lost = float(relations(Pupil(model, states, CPU), numbers, np.random.default_rng(0)))
        assert (lost < 1e-9) == kept


def test_a_candidate_follows_the_error_before_it_is_wired_in() -> None:
    states, model = Whole(20), dendritic(SEED)
    before = Pupil(model, states, CPU).embed(np.arange(20)).detach()
    weight = model.projection.dendrites[0].weight.detach().clone()
    rng = np.random.default_rng(0)
    correlate(model, [(Pupil(model, states, CPU), lambda: tasks("ranking")[0], rng)], SETTINGS)
    assert float((model.projection.dendrites[0].weight - weight).norm().detach()) > 1e-3
    torch.testing.assert_close(Pupil(model, states, CPU).embed(np.arange(20)).detach(), before)
    assert all(one.requires_grad for one in model.parameters())


def test_a_job_is_done_once_and_again_when_the_idea_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_jobs, "FOLDER", tmp_path)
    monkeypatch.setattr(search_jobs, "recorded", dict)
    monkeypatch.setattr(search_jobs, "sites_of", lambda _: ["a", "b", "c"])
    monkeypatch.setattr(search, "measured", lambda job: {"dev": 1.0, "seed": job.seed})
    job = Job("federated", "stsb", SHIPPED, 3)
    assert job.result() is None
    search.run(job, "abc")
    assert job.result() is not None
    assert [path.name for path in tmp_path.iterdir()] == [job.file.name], "written whole, nothing left beside it"
    told = json.loads(job.file.read_text())
    told["job"]["server"]["step"] = 9.0
    job.file.write_text(json.dumps(told))
    assert job.result() is None


def test_jobs_have_files_of_their_own() -> None:
    every = [
        Job(kind, name, idea, 0) for kind in ("pooled", "federated") for name in ("stsb", "askcfpb") for idea in IDEAS
    ]
    assert len({job.file for job in every}) == len(every)


def test_a_result_is_of_all_settings_the_recipes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_jobs, "sites_of", lambda _: ["a", "b", "c"])
    told = Job("federated", "stsb", "temperature 0.1", 0).described
    assert told["local"] == LocalSettings(temperature=0.1).model_dump()
    assert told["server"] == ServerSettings().model_dump()
    assert told["rounds"] == 10
