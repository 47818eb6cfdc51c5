"""Which of its models a site uses: base, alone, federated or personal, by the choosing part of its hold-out.

The best mean wins among those that the rule of ``acceptance.py`` takes in the base model's place; without any, or with
nothing to choose by, the base model stays.  Nothing here ever sees the judging part.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from nexus_common.layout import Layout, Vector
from nexus_common.versions import StoredAdapter

from nexus_client.acceptance import RARE_LOSS, THE_BASE, compare
from nexus_client.alone import default_recipe, train_alone
from nexus_client.evaluate import Floats
from nexus_client.judge import row_scores
from nexus_client.model_list import BASE, Gone, Kind
from nexus_client.personal import TRIED, OnStep, candidates
from nexus_client.shelf import Shelf, digest_of, name_of
from nexus_client.taken import birth_hash
from nexus_client.workspace import Workspace

NOTHING = "there is no question to choose by, so the base model stays in use until a person says otherwise"


@dataclass(frozen=True)
class Best:
    """What is chosen of named models, and why."""

    name: str
    reason: str


def best_of(scores: Mapping[str, Floats], max_loss: float, picked_of: int = 1) -> Best:
    """The choice among models, by their scores of the same rows; ``base`` is among them and wins ties.

    ``picked_of`` says how many there were by these rows in all, if more than here.
    """
    base = scores[BASE]
    if not len(base):
        return Best(BASE, NOTHING)
    rivals = {name: rows for name, rows in scores.items() if name != BASE}
    tried = max(picked_of, len(rivals), 1)
    judged = {name: compare(rows, base, max_loss, RARE_LOSS, tried) for name, rows in rivals.items()}
    taken = [BASE, *(name for name, one in judged.items() if one.accepted)]
    best = max(taken, key=lambda name: float(scores[name].mean()))  # the first of equals
    if best != BASE:
        return Best(best, judged[best].against(THE_BASE))
    why = {name: one.against(THE_BASE) for name, one in judged.items()}
    return Best(BASE, "; ".join(f"{name}: {reason}" for name, reason in why.items()) or "there is no other model yet")


def choose(workspace: Workspace, max_loss: float, on_step: OnStep = lambda *_: None) -> dict[Kind, StoredAdapter]:
    """Make what is missing of a site's models, choose, and put what is new on the shelf; the newest of each kind.

    What is chosen now stays a candidate, and personal models are made of the newest version that the hold-out took:
    one that it refused drives nothing good away.  What was trained is trained again only where version or rows have
    changed.  ``on_step`` hears each training step and each batch of texts, and may raise to put it off.
    """
    shelf, received = Shelf(workspace.place), StoredAdapter.read(workspace.place.federated_file)
    federated = newest(shelf, "federated", workspace.base_hash)
    taken = newest(shelf, "federated", workspace.base_hash, accepted=True) or federated
    names = _candidates(shelf, {digest_of(version) for version in (federated, taken) if version}, workspace.base_hash)
    rivals = list[tuple[Layout, Vector]]()
    models: dict[Kind, StoredAdapter] = {"federated": federated} if federated else {}
    if workspace.material.train:
        of_base = received is not None and received.recipe.base_model == workspace.base_hash
        recipe = received.recipe if received and of_base else default_recipe(workspace)
        models["alone"] = alone = train_alone(workspace, recipe, lambda done, _: on_step(done, 0.0))
        names[name_of(alone, "alone")] = alone
        if taken:
            made_of = _made_of(workspace, taken, alone)
            known = newest(shelf, "personal", workspace.base_hash)
            if known and known.trained_on == made_of:
                rivals = [(known.layout, known.vector)]
            else:
                readied, site = workspace.ready(taken.recipe, on_step), workspace.place.site
                rivals = list(candidates(site, readied, taken, alone, on_step, workspace.layer))
    adapters = [(one.layout, one.vector) for one in names.values()]
    base, *found_scores = row_scores(workspace, workspace.choosing_part, [None, *adapters, *rivals], on_step)
    scores, of_rivals = dict(zip(names, found_scores, strict=False)), found_scores[len(names) :]
    if taken and rivals:
        at = int(np.argmax([rows.mean() for rows in of_rivals])) if len(base) else 0
        layout, vector = rivals[at]
        personal = StoredAdapter(taken.plan, taken.number, vector, layout, made_of)
        models["personal"] = names[name_of(personal, "personal")] = personal
        scores[name_of(personal, "personal")] = of_rivals[at]
    try:
        for kind in ("alone", "personal"):
            if (made := models.get(kind)) is not None and shelf.models.like(digest_of(made), kind) is None:
                of, picked_of = (taken, TRIED) if kind == "personal" else (None, 1)
                judged = compare(scores[name_of(made, kind)], base, max_loss, RARE_LOSS, picked_of)
                shelf.put(made, kind, accepted=judged.accepted, reason=judged.against(THE_BASE), made_of=of)
        best = best_of({BASE: base} | scores, max_loss, len(scores) + (TRIED - 1 if "personal" in models else 0))
        held_best = shelf.models.named(best.name)
        if held_best and not held_best.accepted:  # refused by the small part of the hold-out alone
            shelf.accept(best.name, best.reason)
        if (newer := StoredAdapter.read(workspace.place.federated_file)) is not None:
            call_back(shelf, newer)
        shelf.choose(best.name, best.reason, made_for(workspace, federated, max_loss))
    except Gone:  # the server has taken it back while all were compared
        return choose(workspace, max_loss, on_step)
    return models


def _candidates(shelf: Shelf, digests: set[str], base_hash: str) -> dict[str, StoredAdapter]:
    """By name: what is chosen now, and the held models of these numbers, over this base model."""
    models = shelf.models
    names = [held.name for held in models.held if held.name == models.chosen or held.digest in digests]
    loaded = {name: shelf.load(name) for name in names}
    return {name: found for name, found in loaded.items() if found and found.recipe.base_model == base_hash}


def call_back(shelf: Shelf, version: StoredAdapter) -> None:
    """Take out of use what the server has taken out of use by sending an earlier version of the same run."""
    born = version.digest == birth_hash(version.plan)
    shelf.call_back(version.plan, -1 if born and version.number == 0 else version.number)


def newest(shelf: Shelf, kind: Kind, base_hash: str, *, accepted: bool = False) -> StoredAdapter | None:
    """The newest model of a kind over this base model, or the newest that the hold-out took."""
    held = [one.name for one in shelf.models.held if one.kind == kind and (one.accepted or not accepted)]
    found = shelf.load(held[-1]) if held else None
    return found if found and found.recipe.base_model == base_hash else None


def made_for(workspace: Workspace, federated: StoredAdapter | None, max_loss: float) -> str:
    """What a choice rests on: it is made again only where that has changed."""
    version = "" if federated is None else federated.plan.hash.hex() + federated.digest
    return hashlib.sha256(f"{workspace.fingerprint} {version} {max_loss!r}".encode()).hexdigest()


def _made_of(workspace: Workspace, *adapters: StoredAdapter) -> str:
    parts = (workspace.fingerprint, *(one.digest for one in adapters))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
