"""What a site reaches without a federation: the same recipe and number of steps on its own rows, no network.

It is the comparison that every table shows, and ``train --local`` for trying things out.  The round that the choosing
part of the hold-out likes best is kept, so it is a fair opponent.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from nexus_common.plan import PACKAGED_BASE, Plan

from nexus_client.judge import chosen_score
from nexus_client.train import local_update
from nexus_client.versions import StoredAdapter
from nexus_client.workspace import Workspace

OnRound = Callable[[int, int, float | None], None]


def adapter_file(workspace: Workspace) -> Path:
    """Where a site's own adapter lies."""
    return workspace.place.state / "alone.safetensors"


def default_plan(workspace: Workspace) -> Plan:
    """The shipped recipe, for a site that takes part in no run."""
    return Plan(name="alone", sites=(workspace.place.site,), min_cohort=1, base_model=workspace.base_hash or PACKAGED_BASE)


def train_alone(workspace: Workspace, plan: Plan, on_round: OnRound = lambda *_: None) -> StoredAdapter:
    """Train ``plan.rounds`` times ``plan.local.steps`` steps and store the best round; the stored one where it is current.

    ``on_round`` hears round, rounds, and the choosing part's score (None where that part is empty).
    """
    stored = StoredAdapter.read(adapter_file(workspace))
    if stored and stored.trained_on == workspace.fingerprint and _recipe(stored.plan) == _recipe(plan):
        return stored
    layout = plan.adapter.layout
    readied = workspace.ready(layout)
    vector = layout.first_vector(plan.adapter.seed_bytes)
    best, best_score = StoredAdapter(plan, 0, vector, workspace.fingerprint), chosen_score(workspace, layout, vector)
    rng = np.random.default_rng([plan.adapter.seed, *workspace.place.site.encode()])
    for number in range(1, plan.rounds + 1):
        vector = vector + local_update(layout, vector, readied.tasks, readied.states, plan.local, rng)
        score = chosen_score(workspace, layout, vector)
        if score is None or best_score is None or score >= best_score:
            best, best_score = StoredAdapter(plan, number, vector, workspace.fingerprint), score
        on_round(number, plan.rounds, score)
    best.write(adapter_file(workspace))
    return best


def _recipe(plan: Plan) -> str:
    """What of a plan decides how a site trains alone."""
    return plan.model_dump_json(include={"rounds", "adapter", "local", "base_model"})
