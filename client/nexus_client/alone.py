"""What a site reaches without a federation: the same recipe and number of steps on its own rows, no network.

It is the comparison that every table shows, and ``train --local`` for trying things out.  The round that the choosing
part of the hold-out likes best is kept, so it is a fair opponent.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from nexus_common.recipe import Recipe
from nexus_common.versions import StoredAdapter

from nexus_client.judge import chosen_scores
from nexus_client.train import local_update
from nexus_client.workspace import Workspace

OnRound = Callable[[int, int], None]
JUDGED_AT_ONCE: Final = 10  # rounds whose embeddings are in memory together


def adapter_file(workspace: Workspace) -> Path:
    """Where a site's own adapter lies."""
    return workspace.place.state / "alone.safetensors"


def default_recipe(workspace: Workspace) -> Recipe:
    """The shipped recipe, for a site that takes part in no run."""
    return Recipe(base_model=workspace.base_hash)


def train_alone(workspace: Workspace, recipe: Recipe, on_round: OnRound = lambda *_: None) -> StoredAdapter:
    """Train ``rounds`` times ``local.steps`` steps and keep the best; a stored one that is current stands.

    ``on_round`` hears how many of the rounds are done.
    """
    stored = StoredAdapter.read(adapter_file(workspace))
    if stored and stored.trained_on == workspace.fingerprint and _same(stored.recipe) == _same(recipe):
        return stored
    layout = recipe.adapter.layout
    readied = workspace.ready(layout)
    vector = layout.first_vector(recipe.adapter.seed_bytes)
    rng = np.random.default_rng([recipe.adapter.seed, *workspace.place.site.encode()])
    best, best_score, waiting = (0, vector), -np.inf, [(0, vector)]
    for number in range(1, recipe.rounds + 1):
        update = local_update(layout, vector, readied.tasks, readied.states, recipe.local, rng, layer=workspace.layer)
        vector = vector + update
        waiting.append((number, vector))
        on_round(number, recipe.rounds)
        if len(waiting) < JUDGED_AT_ONCE and number < recipe.rounds:
            continue
        scores = chosen_scores(workspace, layout, [one for _, one in waiting])
        if scores is None:
            best = waiting[-1]  # nothing to choose by: the last
        elif max(scores) > best_score:
            best, best_score = waiting[int(np.argmax(scores))], max(scores)
        waiting = []
    kept = StoredAdapter(recipe, *best, workspace.fingerprint)
    kept.write(adapter_file(workspace))
    return kept


def _same(recipe: Recipe) -> str:
    """What of a recipe or plan decides how a site trains alone."""
    return recipe.model_dump_json(include=set(Recipe.model_fields))
