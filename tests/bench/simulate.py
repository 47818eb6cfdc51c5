"""Training for benchmarks: the product's own round logic, local steps and cache, with all sites in one process."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from nexus_client.cache import Cache
from nexus_client.embed import CachedStates, Encoder, default_base
from nexus_client.material import Task
from nexus_client.train import States, local_update
from nexus_common.adapter import DendriticAdapter
from nexus_common.audit import AuditLog
from nexus_common.base_model import base_hash
from nexus_common.layout import WIDTH, Layout, Vector
from nexus_common.plan import Plan
from nexus_common.recipe import Recipe
from nexus_common.versions import trained_from
from nexus_server.aggregate import make_optimiser
from nexus_server.conductor import Conductor
from nexus_server.records import FINISHED
from nexus_server.registry import Registry

from tests.federation.sim import SimGrid, SimSite

CACHE = Path(__file__).resolve().parents[2] / ".bench" / "cache"
EMBED_TEXTS = 128


def encode(texts: Sequence[str], progress: Callable[[int, int], None] = lambda *_: None) -> None:
    """Every text through the frozen encoder once, with its token states, into ``.bench/cache``."""
    folder = default_base()
    Encoder(folder, Cache(CACHE / base_hash(folder)[:16])).fill(texts, tokens=texts, progress=progress)


def states_of(texts: Sequence[str]) -> CachedStates:
    """What ``encode`` left, as the trainer reads it."""
    return CachedStates(Cache(CACHE / base_hash(default_base())[:16]), texts)


class TrainingSite(SimSite):
    """A simulated site that does the real local steps on its own tasks."""

    def __init__(self, name: str, plan: Plan, tasks: Sequence[Task], states: States, seed: Sequence[int]) -> None:
        super().__init__(name, plan)
        self.tasks, self.states, self.rng = tasks, states, np.random.default_rng(seed)

    def update(self, vector: Vector) -> Vector:
        """The change that training makes."""
        return local_update(self.plan.adapter.layout, vector, self.tasks, self.states, self.plan.local, self.rng)


def federated(plan: Plan, tasks: dict[str, list[Task]], states: States, seed: int) -> Vector:
    """The last version of a run over these sites: Conductor, wire codec, signatures, registry, all but the network."""
    sites = {n: TrainingSite(n, plan, tasks[n], states, [seed, i]) for i, n in enumerate(plan.names)}
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder))
        audit = AuditLog(Path(folder) / "audit.jsonl")
        registry.propose(plan)
        registry.create_run(plan, plan.adapter.layout.first_vector(plan.adapter.seed_bytes))
        grid = SimGrid(dict(sites))
        conductor = Conductor(registry, grid.exchange(audit), lambda: {n: s.identity for n, s in sites.items()}, audit)
        while (run := registry.run(plan.name)) is not None and run.state != FINISHED:
            conductor.turn()
        try:
            return registry.vector(plan.name, plan.rounds)
        finally:
            registry.close()


def unmasked(plan: Plan, tasks: dict[str, list[Task]], states: States, seed: int) -> Vector:
    """The control of ``federated``: the same steps of the same sites, their mean taken plainly, in float64."""
    sites = [TrainingSite(n, plan, tasks[n], states, [seed, i]) for i, n in enumerate(plan.names)]
    optimiser = make_optimiser(plan.server, plan.adapter.layout.dim)
    vector = plan.adapter.layout.first_vector(plan.adapter.seed_bytes)
    for number in range(plan.rounds):
        begins = trained_from(plan, number, vector)
        vector = optimiser.apply(begins, np.mean([site.update(begins) for site in sites], axis=0, dtype=np.float64))
    return vector


def alone(plan: Recipe, tasks: list[Task], states: States, seed: Sequence[int]) -> Vector:
    """As many rounds and steps on these rows, without a federation."""
    layout, rng = plan.adapter.layout, np.random.default_rng(seed)
    vector = layout.first_vector(plan.adapter.seed_bytes)
    for _ in range(plan.rounds):
        vector = vector + local_update(layout, vector, tasks, states, plan.local, rng)
    return vector


@torch.inference_mode()
def embed(layout: Layout, vector: Vector, states: States, numbers: np.ndarray, total: int) -> np.ndarray:
    """Embeddings [total, 384] of the texts with these numbers; the other rows stay 0."""
    adapter, out = DendriticAdapter(layout).load_vector(vector).eval(), np.zeros((total, WIDTH), np.float32)
    for part in np.array_split(numbers, max(1, len(numbers) // EMBED_TEXTS)):
        found = adapter(states.pooled(part)) if layout.salience is None else adapter(*states.tokens(part))
        out[part] = found.numpy()
    return out
