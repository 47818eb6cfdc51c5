"""Training for the search: the product's losses, optimiser and server step over any ``Model``, and what ideas add."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from nexus_client.material import Ids, RankingTask, Task, size, texts_of
from nexus_client.train import Learner, clipped, distillation, make_optimiser, task_loss
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from nexus_common.recipe import LocalSettings
from nexus_common.versions import trained_from
from nexus_server.aggregate import make_optimiser as server_optimiser
from torch import Tensor, nn

from tests.bench.dendrite_training import read, write
from tests.bench.search_cascade import correlate
from tests.bench.search_ideas import Idea, Pulls
from tests.bench.search_models import Model, Pupil
from tests.bench.search_states import SearchStates, loaded
from tests.plans import make_plan

MINED: Final = 10  # negatives a question
SKIPPED: Final = 2  # nearest passages that may well be right although nobody marked them so
RELATED: Final = 64  # texts a step whose cosines are held
CPU: Final = torch.device("cpu")
Fixed = list[Tensor]


@dataclass
class Site:
    """Its tasks and its random numbers, which go on from round to round."""

    tasks: list[Task]
    rng: np.random.Generator


def plan_of(idea: Idea, sites: list[str], seed: int) -> Plan:
    """The shipped recipe with what the idea changes."""
    return make_plan(
        [site.replace("_", "-") for site in sites], name="bench", rounds=idea.rounds, min_cohort=len(sites),
        adapter={"seed": seed}, local=dict(idea.local), server=dict(idea.server),
    )  # fmt: skip


def trained(idea: Idea, name: str, states: SearchStates, seed: int, *, pooled: bool, out: str | None = None) -> Model:
    """The model after all rounds over a set's sites, without site ``out``."""
    data, rng = loaded(name), np.random.default_rng([seed, 1])
    names = [site for site in data.sites if site != out]
    plan, model = plan_of(idea, names, seed), idea.model(seed.to_bytes(8, "little"))
    settings = plan.local
    if pooled:  # the same number of steps, each over as many rows as all sites together
        settings = settings.model_copy(update={"batch_rows": settings.batch_rows * len(names)})
        sites = [Site(data.pooled_tasks(None, rng), np.random.default_rng([seed]))]
    else:
        tasks = {site: data.tasks(site, None, rng) for site in data.sites}
        sites = [Site(tasks[site], np.random.default_rng([seed, i])) for i, site in enumerate(names)]
    for site in sites:
        site.tasks = [_prepared(idea, task, states) for task in site.tasks]
    birth, vector = _parameters(model), read(model)
    server, versions = server_optimiser(plan.server, len(vector)), list[Vector]()
    for number in range(plan.rounds):
        if idea.cascade and number == plan.rounds // 2:
            write(model, vector)
            pupils = [Pupil(model, states, CPU, 0.0) for _ in sites]  # type: ignore[arg-type]
            correlate(model, [(p, partial(_drawn, s), s.rng) for p, s in zip(pupils, sites, strict=True)], settings)
            vector = read(model)
        begins = vector if pooled else trained_from(plan, number, vector)
        held = 0
        if idea.held is not None and number >= idea.held and model.salience is not None:
            model.salience.requires_grad_(requires_grad=False)
            held = sum(one.numel() for one in model.salience.parameters())  # they come first
        updates = [update(idea, model, begins, birth, site, states, settings) for site in sites]
        mean = np.mean(updates, axis=0, dtype=np.float64)
        vector = vector + updates[0] if pooled else server.apply(begins, mean)
        vector[:held] = begins[:held]  # the server's momentum would go on
        versions.append(vector)
    write(model, np.mean(versions[-idea.averaged :], axis=0, dtype=np.float64).astype(np.float32))
    return model


def update(
    idea: Idea, model: Model, begins: Vector, birth: Fixed, site: Site, states: SearchStates, settings: LocalSettings
) -> Vector:
    """The clipped change of one site's steps."""
    write(model, begins)
    generator = torch.Generator().manual_seed(int(site.rng.integers(2**63)))
    learner = Pupil(model, states, CPU, settings.dropout, generator)  # type: ignore[arg-type]
    optimiser, texts, start = make_optimiser(model, settings), texts_of(site.tasks), _parameters(model)
    rates = [group["lr"] for group in optimiser.param_groups]
    for step in range(settings.steps):
        task = _drawn(site)
        distilled = idea.scored or isinstance(task, RankingTask)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / settings.steps) if idea.falling else rate

        def loss(task: Task = task, rng: np.random.Generator = site.rng, *, distilled: bool = distilled) -> Tensor:
            found = task_loss(learner, task, settings, rng)
            found = found + distillation(learner, task, texts, settings, rng) if distilled else found
            return found + _pulled(idea.pulls, learner, task, texts, settings, rng, birth, start)

        optimiser.zero_grad()
        _gradient(loss, model, site.rng, generator, idea.sharpness)
        optimiser.step()
    return clipped(read(model) - begins, settings.clip_norm)


def _gradient(
    loss: Callable[[], Tensor], model: nn.Module, rng: np.random.Generator, generator: torch.Generator, radius: float
) -> None:
    """Of a step's loss; with ``radius`` at the worst point so far away (SAM), on the same rows and masks."""
    if not radius:
        loss().backward()  # type: ignore[no-untyped-call]
        return
    state, masks = copy.deepcopy(rng.bit_generator.state), generator.get_state()
    loss().backward()  # type: ignore[no-untyped-call]
    with _moved(model, radius):
        rng.bit_generator.state = state
        generator.set_state(masks)
        model.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]


@contextmanager
def _moved(model: nn.Module, radius: float) -> Iterator[None]:
    """Along the gradient, and back."""
    live = [one for one in model.parameters() if one.grad is not None]
    slopes = [one.grad.detach().clone() for one in live if one.grad is not None]
    norm = torch.stack([slope.norm() for slope in slopes]).norm().clamp_min(1e-12)
    before = [one.detach().clone() for one in live]
    with torch.no_grad():
        for one, slope in zip(live, slopes, strict=True):
            one.add_(slope, alpha=float(radius / norm))
    yield
    with torch.no_grad():
        for one, old in zip(live, before, strict=True):
            one.copy_(old)


def _pulled(
    pulls: Pulls, learner: Pupil, task: Task, texts: Ids, settings: LocalSettings, rng: np.random.Generator,
    birth: Fixed, start: Fixed,
) -> Tensor | float:  # fmt: skip
    """What an idea adds to the loss."""
    model, found = learner.adapter, 0.0 * torch.zeros(())
    for weight, fixed in ((pulls.birth, birth), (pulls.version, start)):
        if weight:
            apart = [(one - old).square().sum() for one, old in zip(model.parameters(), fixed, strict=True)]
            found = found + weight * torch.stack(apart).sum()
    if pulls.further:
        found = found + pulls.further * model.further.square().sum()  # type: ignore[union-attr,operator]
    if pulls.relations:
        found = found + pulls.relations * relations(learner, texts, rng)
    if pulls.back and isinstance(task, RankingTask):
        found = found + pulls.back * back(learner, task, settings, rng)
    return found


def relations(learner: Pupil, texts: Ids, rng: np.random.Generator) -> Tensor:
    """Mean squared change of the cosines between some of these texts."""
    numbers = rng.choice(texts, min(RELATED, len(texts)), replace=False)
    found, base = learner.without_dropout().embed(numbers), learner.states.pooled(numbers)
    return (found @ found.T - base @ base.T).square().mean()


def back(learner: Learner, task: RankingTask, settings: LocalSettings, rng: np.random.Generator) -> Tensor:
    """InfoNCE over passages, each with one of its questions, among the batch's questions."""
    rows = rng.choice(len(task.queries), min(settings.batch_rows, len(task.queries)), replace=False)
    places = [rng.choice(task.positives[row]) for row in rows]
    right = np.array([[place in task.positives[row] for row in rows] for place in places])
    both = learner.embed(np.concatenate([task.queries[rows], task.passages[places]]))
    logits = both[len(rows) :] @ both[: len(rows)].T / settings.temperature
    also = torch.from_numpy(right & ~np.eye(len(rows), dtype=bool))
    return nn.functional.cross_entropy(logits.masked_fill(also, -torch.inf), torch.arange(len(rows)))


def _drawn(site: Site) -> Task:
    odds = np.array([size(task) for task in site.tasks], float)
    return site.tasks[int(site.rng.choice(len(site.tasks), p=odds / odds.sum()))]


def _prepared(idea: Idea, task: Task, states: SearchStates) -> Task:
    """A task with the negatives of the idea."""
    if not isinstance(task, RankingTask) or not idea.rows:
        return task
    if idea.rows == "bank":
        return replace(task, passages=np.concatenate([task.passages, states.bank[: len(task.passages)]]))
    near = (states.pooled(task.queries) @ states.pooled(task.passages).T).argsort(dim=-1, descending=True).numpy()
    wrong = [
        np.setdiff1d(row[: MINED + SKIPPED + len(right)], right, assume_unique=True)[SKIPPED:]
        for row, right in zip(near, task.positives, strict=True)
    ]
    return replace(task, negatives=wrong)


def _parameters(model: nn.Module) -> Fixed:
    return [one.detach().clone() for one in model.parameters()]


def embed(model: Model, states: SearchStates, numbers: Ids, total: int, at_once: int = 512) -> np.ndarray:
    """Embeddings [total, 384] of the texts with these numbers; the other rows stay 0."""
    out = np.zeros((total, 384), np.float32)
    pupil = Pupil(model, states, CPU)  # type: ignore[arg-type]
    with torch.inference_mode():
        for part in np.array_split(numbers, max(1, len(numbers) // at_once)):
            out[part] = pupil.embed(part).numpy()
    return out
