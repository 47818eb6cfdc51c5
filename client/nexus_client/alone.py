"""What a site reaches without a federation: the same recipe and number of steps on its own rows, no network.

It is the comparison that every table shows, and ``train --local`` for trying things out.  The round that the choosing
part of the hold-out likes best is kept, so it is a fair opponent.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from nexus_common.plan import PACKAGED_BASE, Plan

from nexus_client.judge import chosen_scores
from nexus_client.train import local_update
from nexus_client.versions import StoredAdapter
from nexus_client.workspace import Workspace

OnRound = Callable[[int, int], None]


def adapter_file(workspace: Workspace) -> Path:
    """Where a site's own adapter lies."""
    return workspace.place.state / "alone.safetensors"


def default_plan(workspace: Workspace) -> Plan:
    """The shipped recipe, for a site that takes part in no run."""
    return Plan(
        name="alone", sites=(workspace.place.site,), min_cohort=1, base_model=workspace.base_hash or PACKAGED_BASE
    )


def train_alone(workspace: Workspace, plan: Plan, on_round: OnRound = lambda *_: None) -> StoredAdapter:
    """Train ``plan.rounds`` times ``plan.local.steps`` steps and keep the best; a stored one that is current stands.

    ``on_round`` hears how many of the rounds are done.
    """
    stored = StoredAdapter.read(adapter_file(workspace))
    if stored and stored.trained_on == workspace.fingerprint and _recipe(stored.plan) == _recipe(plan):
        return stored
    layout = plan.adapter.layout
    readied = workspace.ready(layout)
    vectors = [layout.first_vector(plan.adapter.seed_bytes)]
    rng = np.random.default_rng([plan.adapter.seed, *workspace.place.site.encode()])
    for number in range(1, plan.rounds + 1):
        vector = vectors[-1]
        vectors.append(vector + local_update(layout, vector, readied.tasks, readied.states, plan.local, rng))
        on_round(number, plan.rounds)
    scores = chosen_scores(workspace, layout, vectors)
    best = plan.rounds if scores is None else int(np.argmax(scores))
    kept = StoredAdapter(plan, best, vectors[best], workspace.fingerprint)
    kept.write(adapter_file(workspace))
    return kept


def _recipe(plan: Plan) -> str:
    """What of a plan decides how a site trains alone."""
    return plan.model_dump_json(include={"rounds", "adapter", "local", "base_model"})
