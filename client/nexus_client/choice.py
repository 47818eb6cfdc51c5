"""Which of its models a site uses: base, alone, federated or personal, by the choosing part of its hold-out.

The best mean wins among those that the rule of ``acceptance.py`` takes in the base model's place; without any, or with
nothing to choose by, the base model stays.  Nothing here ever sees the judging part.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from nexus_common import wire
from nexus_common.layout import Layout, Vector
from nexus_common.versions import StoredAdapter, vector_hash

from nexus_client.acceptance import compare
from nexus_client.alone import default_recipe, train_alone
from nexus_client.evaluate import Floats
from nexus_client.judge import row_scores
from nexus_client.personal import OnStep, candidates
from nexus_client.shelf import BASE, Kind, Shelf, name_of
from nexus_client.workspace import Workspace

THE_BASE = "the base model"
NOTHING = "there is no question to choose by, so the base model stays in use until a person says otherwise"


@dataclass(frozen=True)
class Best:
    """What is chosen of named models, and why."""

    name: str
    reason: str


def best_of(scores: Mapping[str, Floats], max_loss: float) -> Best:
    """The choice among models, by their scores of the same rows; ``base`` is among them and wins ties."""
    base = scores[BASE]
    if not len(base):
        return Best(BASE, NOTHING)
    judged = {name: compare(rows, base, max_loss) for name, rows in scores.items() if name != BASE}
    taken = [BASE, *(name for name, one in judged.items() if one.accepted)]
    best = max(taken, key=lambda name: float(scores[name].mean()))  # the first of equals
    if best != BASE:
        return Best(best, judged[best].against(THE_BASE))
    why = {name: one.against(THE_BASE) for name, one in judged.items()}
    return Best(BASE, "; ".join(f"{name}: {reason}" for name, reason in why.items()) or "there is no other model yet")


def choose(workspace: Workspace, max_loss: float, on_step: OnStep = lambda *_: None) -> dict[Kind, StoredAdapter]:
    """Make what is missing of a site's models, choose, and put all on the shelf; the newest of each kind.

    What was trained is trained again only where the version or the rows have changed.  ``on_step`` hears each training
    step and may raise to put it off.
    """
    shelf, received = Shelf(workspace.place), StoredAdapter.read(workspace.place.federated_file)
    models, rivals = dict[Kind, StoredAdapter](), list[tuple[Layout, Vector]]()
    federated = newest(shelf, "federated", workspace.base_hash)
    if federated:
        models["federated"] = federated
    if workspace.material.train:
        recipe = received.recipe if received else default_recipe(workspace)
        models["alone"] = alone = train_alone(workspace, recipe, lambda done, _: on_step(done, 0.0))
        if federated:
            made_of = _made_of(workspace, federated, alone)
            known = newest(shelf, "personal", workspace.base_hash)
            if known and known.trained_on == made_of:
                rivals = [(known.layout, known.vector)]
            else:
                readied, site = workspace.ready(federated.recipe), workspace.place.site
                rivals = list(candidates(site, readied, federated, alone, on_step, workspace.layer))
    tasks = workspace.material.choose
    adapters = [(one.layout, one.vector) for one in models.values()]
    base, *found = row_scores(workspace, tasks, [None, *adapters, *rivals])
    scores, of_rivals = dict(zip(models, found, strict=False)), found[len(models) :]
    if federated and rivals:
        at = int(np.argmax([rows.mean() for rows in of_rivals])) if len(base) else 0
        layout, vector = rivals[at]
        models["personal"] = StoredAdapter(federated.plan, federated.number, vector, layout, made_of)
        scores["personal"] = of_rivals[at]
    for kind, rows in scores.items():
        judged = compare(rows, base, max_loss)
        shelf.put(models[kind], kind, accepted=judged.accepted, reason=judged.against(THE_BASE))
    best = best_of({BASE: base} | {name_of(models[kind], kind): rows for kind, rows in scores.items()}, max_loss)
    shelf.choose(best.name, best.reason, made_for(workspace, federated))
    return models


def newest(shelf: Shelf, kind: Kind, base_hash: str) -> StoredAdapter | None:
    """The newest model of a kind over this base model."""
    held = [one.name for one in shelf.models.held if one.kind == kind]
    found = shelf.load(held[-1]) if held else None
    return found if found and found.recipe.base_model == base_hash else None


def made_for(workspace: Workspace, federated: StoredAdapter | None) -> str:
    """What a choice rests on: it is made again only where that has changed."""
    version = "" if federated is None else federated.plan.hash.hex() + _hash(federated)
    return hashlib.sha256(f"{workspace.fingerprint} {version}".encode()).hexdigest()


def _made_of(workspace: Workspace, *adapters: StoredAdapter) -> str:
    parts = (workspace.fingerprint, *map(_hash, adapters))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _hash(adapter: StoredAdapter) -> str:
    return vector_hash(wire.pack(adapter.vector))
