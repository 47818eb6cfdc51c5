"""Training for the dendrites' benchmark: epochs over STS-B; the product's rounds, pooled, federated, a site left out.

Losses, optimiser, dropout and server step are the product's; the steps are those of ``train.local_update``, to the
bit, for adapters that it does not know as well.  A federated round takes the plain mean of the sites' updates:
``masked`` runs the real protocol beside it.  The test split is judged all along and chosen on nowhere.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from nexus_client.growing import DendriteGrowth
from nexus_client.material import Task, size, texts_of
from nexus_client.train import (
    Learner,
    States,
    best_device,
    clipped,
    distillation,
    make_optimiser,
    scored_loss,
    step_loss,
)
from nexus_common.adapter import DendriticAdapter
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from nexus_common.recipe import LocalSettings
from nexus_common.versions import trained_from
from nexus_server.aggregate import make_optimiser as server_optimiser
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tests.bench import simulate
from tests.bench.data import Retrieval
from tests.bench.dendrite_arms import Arm, live
from tests.bench.dendrite_data import SETS, Similarity, embed, loaded, states_of
from tests.plans import make_plan

EPOCHS: Final = 30
MOST_EPOCHS: Final = 60  # of an arm that grows: a trial costs both of its arms
TRAIN_PARTS: Final = 12
DEVICE: Final = best_device()
Look = dict[str, float]


def epochs(arm: Arm, settings: LocalSettings, seed: int, count: int = EPOCHS) -> dict[str, Any]:
    """Passes over all of STS-B's training pairs, judged after each; an arm that grows does so until it has stopped."""
    data, states = loaded("stsb"), states_of("stsb")
    assert isinstance(data, Similarity)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    adapter = arm.adapter(seed).to(DEVICE)
    optimiser = make_optimiser(adapter, settings)
    growth = None if arm.grows is None else DendriteGrowth("dev", greater_is_better=True, place=arm.grows)
    control, schedule = SimpleNamespace(should_training_stop=False), torch.optim.lr_scheduler.LambdaLR(optimiser, _one)
    curve: list[Look] = []
    best, texts = read(adapter), texts_of([data.train])
    total = count if growth is None else MOST_EPOCHS
    while len(curve) < total and not control.should_training_stop:
        learner = Learner(adapter, states, DEVICE, settings.dropout, generator)
        order = rng.permutation(size(data.train))
        for rows in np.array_split(order, round(len(order) / settings.batch_rows)):
            loss = scored_loss(learner, data.train, rows, settings)
            _step(optimiser, loss + distillation(learner, data.train, texts, settings, rng))
        curve.append(_look(adapter, data))
        if curve[-1]["dev"] == max(look["dev"] for look in curve):
            best = read(adapter)
        if growth is not None:
            parts = [part for part in (adapter.salience, adapter.projection) if part is not None]
            growth.on_evaluate(
                None, SimpleNamespace(global_step=len(curve)), control, metrics={"dev": curve[-1]["dev"]},
                model=torch.nn.Sequential(*parts), optimizer=optimiser, lr_scheduler=schedule,
            )  # fmt: skip
    found: dict[str, Any] = {"curve": curve}
    if growth is not None:
        growth.on_train_end(model=torch.nn.Sequential(*parts), optimizer=optimiser)
        found["trials"] = [vars(trial) for trial in growth.trials]
        best = read(adapter)
    for when in ("last", "best"):
        if when == "best":
            write(adapter, best)
        found[when] = _closely(adapter, data)
    return found | {"parameters": arm.layout.dim if arm.engine == "perforatedai" else live(adapter)}


def untuned() -> dict[str, Any]:
    """The base model on STS-B, in the form of ``epochs``."""
    data = loaded("stsb")
    assert isinstance(data, Similarity)
    adapter = DendriticAdapter(Arm("untuned", "").layout).to(DEVICE)
    adapter.load_vector(adapter.layout.first_vector(b""))
    told = _closely(adapter, data)
    return {"curve": [told], "best": told, "last": told, "parameters": 0}


def _one(_: int) -> float:
    """A learning rate that stays."""
    return 1.0


def _step(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _look(adapter: DendriticAdapter, data: Similarity) -> Look:
    """What both judged splits say, x 100."""
    vectors = embed(adapter, states_of("stsb"), data.judged_texts, len(data.texts.items))
    return {part: 100 * data.judge(vectors, split=part) for part in data.parts}


def _closely(adapter: DendriticAdapter, data: Similarity) -> dict[str, Any]:
    """That, the loss over all training pairs without dropout, and general similarity."""
    states, settings = states_of("stsb"), LocalSettings()
    learner = Learner(adapter, states, DEVICE)
    with torch.inference_mode():
        parts = np.array_split(np.arange(size(data.train)), TRAIN_PARTS)
        losses = [len(part) * float(scored_loss(learner, data.train, part, settings)) for part in parts]
    general = data.general_similarity(lambda numbers: embed(adapter, states, numbers, len(data.texts.items)))
    return _look(adapter, data) | {"train": sum(losses) / size(data.train), "general": general}


def take_steps(
    adapter: DendriticAdapter, tasks: list[Task], states: States, settings: LocalSettings, rng: np.random.Generator
) -> None:
    """``settings.steps`` steps of one site, as ``train.local_update`` takes them."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    learner = Learner(adapter, states, DEVICE, settings.dropout, generator)
    optimiser = make_optimiser(adapter, settings)
    texts = texts_of(tasks)
    for _ in range(settings.steps):
        _step(optimiser, step_loss(learner, tasks, texts, settings, rng))


def read(adapter: DendriticAdapter) -> Vector:
    """All parameters as one vector; for the product's adapters in the order of their layout."""
    found: Vector = parameters_to_vector(adapter.parameters()).detach().cpu().numpy().copy()
    return found


def write(adapter: DendriticAdapter, vector: Vector) -> None:
    """The inverse of ``read``."""
    vector_to_parameters(torch.from_numpy(vector.copy()).to(DEVICE), adapter.parameters())


def trained(adapter: DendriticAdapter, begins: Vector, train: Callable[[], None], clip_norm: float) -> Vector:
    """The clipped change that ``train`` makes to an adapter which begins at a vector."""
    write(adapter, begins)
    train()
    return clipped(read(adapter) - begins, clip_norm)


def plan_of(arm: Arm, sites: list[str], seed: int) -> Plan:
    """The shipped recipe for these sites, with the arm's layout."""
    layout = arm.layout
    place = {
        "salience": layout.salience is not None,
        "salience_dendrites": layout.salience or 0,
        "projection_dendrites": layout.projection,
        "activation": layout.activation,
        "seed": seed,
    }
    before = {"local": {"distillation": 0.0}, "server": {"optimiser": "fedavg", "step": 2.0}}  # as in SETTINGS
    return make_plan(sites, name="bench", rounds=10, min_cohort=len(sites), adapter=place, **before)


def rounds(
    name: str,
    arm: Arm,
    seed: int,
    settings: LocalSettings,
    *,
    pooled: bool,
    out: str | None = None,
    elsewhere: bool = False,
) -> dict[str, Any]:
    """Ten rounds over a set's sites (without site ``out``, which is then judged alone), judged after the last."""
    data, states = loaded(name), states_of(name)
    sites = [site for site in data.sites if site != out]
    plan, adapter = plan_of(arm, sites, seed), arm.adapter(seed).to(DEVICE)
    rng = np.random.default_rng([seed, 1])
    if pooled:  # the same number of steps, each over as many rows as all sites together
        settings = settings.model_copy(update={"batch_rows": settings.batch_rows * len(sites)})
        work = [(data.pooled_tasks(None, rng), np.random.default_rng([seed]))]
    else:
        every = {site: data.tasks(site, None, rng) for site in data.sites}
        work = [(every[site], np.random.default_rng([seed, i])) for i, site in enumerate(sites)]
    vector = read(adapter)
    server = server_optimiser(plan.server, len(vector))
    for number in range(plan.rounds):
        begins = vector if pooled else trained_from(plan, number, vector)
        updates = [
            trained(adapter, begins, lambda t=t, r=r: take_steps(adapter, t, states, settings, r), settings.clip_norm)
            for t, r in work
        ]
        mean = np.mean(updates, axis=0, dtype=np.float64)
        vector = vector + updates[0] if pooled else server.apply(begins, mean)
    write(adapter, vector)
    found = embed(adapter, states, data.judged_texts, len(data.texts.items))
    judged = {"curve": [_judged(name, found, out)], "parameters": live(adapter)}
    return judged | ({"elsewhere": _elsewhere(adapter, name)} if elsewhere else {})


def _elsewhere(adapter: DendriticAdapter, name: str) -> dict[str, Look]:
    """What it does on the sets that it did not train on, general similarity among them."""
    told = {}
    for other in SETS.keys() - {name}:
        found = embed(adapter, states_of(other), loaded(other).judged_texts, len(loaded(other).texts.items))
        told[other] = _judged(other, found, None)
    return told | {"general": _closely(adapter, loaded("stsb"))["general"]}


def masked(name: str, arm: Arm, seed: int) -> dict[str, Any]:
    """The last version of the same federated run through Conductor, wire codec and secure aggregation."""
    data, frozen, rng = loaded(name), states_of(name), np.random.default_rng([seed, 1])  # one opening at a time
    every = {site: data.tasks(site, None, rng) for site in data.sites}
    padded = simulate.states_of(data.texts.items)
    vector = simulate.federated(plan_of(arm, data.sites, seed), every, padded, seed)
    adapter = arm.adapter(seed).load_vector(vector).to(DEVICE)
    found = embed(adapter, frozen, data.judged_texts, len(data.texts.items))
    return {"curve": [_judged(name, found, None)], "parameters": live(adapter)}


def base(name: str) -> dict[str, Any]:
    """The base model on a set, each site's own figure too."""
    data, layout = loaded(name), Arm("untuned", "").layout
    adapter = DendriticAdapter(layout).load_vector(layout.first_vector(b"")).to(DEVICE)
    vectors = embed(adapter, states_of(name), data.judged_texts, len(data.texts.items))
    curve = [_judged(name, vectors, None)]
    if isinstance(data, Retrieval):
        curve[0] |= {site: _judged(name, vectors, site)["test"] for site in data.sites}
    return {"curve": curve, "parameters": 0}


def _judged(name: str, vectors: np.ndarray, site: str | None) -> Look:
    sites = None if site is None else [site]
    return {split: 100 * loaded(name).judge(vectors, sites, split) for split in ("dev", "test")}
