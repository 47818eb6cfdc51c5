"""What a site reaches without a federation: the same recipe and number of steps on its own rows, no network.

It is the comparison that every table shows, and ``train --local`` for trying things out.  The adapter grows by the same
rules as in a federation.  The round that the choosing part of the hold-out likes best is kept, so it is a fair
opponent.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from nexus_common.disk import write_durably
from nexus_common.growth import Point, next_stage
from nexus_common.layout import Layout, Vector
from nexus_common.recipe import Recipe
from nexus_common.stages import Stage, moved
from nexus_common.versions import StoredAdapter

from nexus_client.held_out import HeldOut
from nexus_client.judge import chosen_scores
from nexus_client.train import local_update
from nexus_client.workspace import Readied, Workspace

OnRound = Callable[[int, int], None]
JUDGED_AT_ONCE: Final = 10  # rounds whose embeddings are in memory together


def default_recipe(workspace: Workspace) -> Recipe:
    """The shipped recipe, for a site that takes part in no run."""
    return Recipe(base_model=workspace.base_hash)


def train_alone(workspace: Workspace, recipe: Recipe, on_round: OnRound = lambda *_: None) -> StoredAdapter:
    """Train ``rounds`` times ``local.steps`` steps and keep the best; a stored one that is current stands.

    ``on_round`` hears how many of the rounds are done, and may raise to put the others off: they follow the next time.
    """
    stored = StoredAdapter.read(workspace.place.alone_file)
    if stored and stored.trained_on == workspace.fingerprint and _same(stored.recipe) == _same(recipe):
        return stored
    training = _PUT_OFF.pop(workspace, None)
    if training is None or _same(training.recipe) != _same(recipe):
        training = _Training(workspace, recipe)
    training.prepare(workspace)
    training.judge(workspace)  # what it was put off before
    while not training.done:
        training.round()
        try:
            on_round(len(training.line), recipe.rounds)
        except BaseException:
            _PUT_OFF[workspace] = training
            raise
        training.judge(workspace)
    number, layout, vector = training.best
    kept = StoredAdapter(recipe, number, vector, layout, workspace.fingerprint)
    write_durably(workspace.place.alone_line_file, json.dumps([asdict(point) for point in training.line]).encode())
    kept.write(workspace.place.alone_file)
    return kept


class _Training:
    """The rounds of a site that trains alone."""

    def __init__(self, workspace: Workspace, recipe: Recipe) -> None:
        self.recipe, self.line = recipe, list[Point]()
        self._layer, self._stage = workspace.layer, 0
        self._vector = recipe.adapter.layout.first_vector(recipe.adapter.seed_bytes)
        self._rng = np.random.default_rng([recipe.adapter.seed, *workspace.place.site.encode()])
        self.best, self._best_score, self._waiting = self.newest, -np.inf, [self.newest]

    def prepare(self, workspace: Workspace) -> None:
        """Have what it trains on in the cache, which may have been needed for something else meanwhile."""
        self._readied: Readied = workspace.ready(self.recipe)
        self._held_out = HeldOut(self.recipe, self._readied.held_out, self._readied.states)

    @property
    def done(self) -> bool:
        """Whether all rounds are trained and judged."""
        return len(self.line) == self.recipe.rounds and not self._waiting

    def judge(self, workspace: Workspace) -> None:
        """Keep the best of the rounds that wait for it, once there are enough of them or no more come."""
        if len(self._waiting) < JUDGED_AT_ONCE and len(self.line) < self.recipe.rounds:
            return
        scores = chosen_scores(workspace, [(layout, vector) for _, layout, vector in self._waiting])
        if scores is None:
            self.best = self._waiting[-1]  # nothing to choose by: the last
        elif max(scores) > self._best_score:
            self.best, self._best_score = self._waiting[int(np.argmax(scores))], max(scores)
        self._waiting = []

    @property
    def newest(self) -> tuple[int, Layout, Vector]:
        """Round, layout and vector of what is for use now; in a trial that is the control."""
        form = self._form
        return len(self.line), form.arms[0], form.control(self._vector)

    @property
    def _form(self) -> Stage:
        return self.recipe.stages[self._stage]

    def round(self) -> None:
        """Train each arm for a round, on the same batches; then the adapter may grow, or a trial be decided."""
        form, seed = self._form, int(self._rng.integers(2**63))
        arms = list(zip(form.arms, form.split(self._vector), strict=True))
        trained = [self._trained(layout, vector, seed) for layout, vector in arms]
        self.line.append(Point(len(self.line), self._stage, tuple(told for _, told in trained)))
        self._vector = np.concatenate([vector for vector, _ in trained])
        stage = next_stage(self.recipe, self.line, self.recipe.rounds - len(self.line))
        if stage is not None:
            new = self.recipe.stages[stage]
            self._vector = moved(self._vector, form, new, self.recipe.adapter.seed_bytes)
            self._stage = stage
        self._waiting.append(self.newest)

    def _trained(self, layout: Layout, vector: Vector, seed: int) -> tuple[Vector, Mapping[str, float]]:
        told, losses = self._held_out.report(layout, vector), list[float]()
        update = local_update(
            layout,
            vector,
            self._readied.tasks,
            self._readied.states,
            self.recipe.local,
            np.random.default_rng(seed),
            lambda _, loss: losses.append(loss),
            self._layer,
        )
        return vector + update, told | {"train_loss": float(np.mean(losses))}


_PUT_OFF: Final = WeakKeyDictionary[Workspace, _Training]()
"""What was begun and not finished, by the site's text that it was begun on."""


def _same(recipe: Recipe) -> str:
    """What of a recipe or plan decides how a site trains alone."""
    return recipe.model_dump_json(include=set(Recipe.model_fields))
