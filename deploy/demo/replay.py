"""A round once more at the finished demo's sites, to show what an attack finds in its messages.

It writes nothing, and touches no site's key or protocol record: its rounds are masked with keys of their own.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from nexus_client.held_out import HeldOut
from nexus_client.site import SiteHome
from nexus_client.train import local_update
from nexus_client.workspace import Workspace
from nexus_common import tail
from nexus_common.plan import Plan
from nexus_common.versions import StoredAdapter
from reidentify import attack, masked_round, rows_of


def attacked(homes: Path, site: str) -> dict[str, Any]:
    """Of ``site``'s questions: found from its plain update, from what it sends, and from the sum over all sites.

    All sites train from the version they hold and on their own rows, as in a round; their agents must have ended.
    """
    first, version = _opened(homes, site)
    plan, dim = version.plan, version.plan.adapter.layout.dim
    vectors = [_vector(*(_opened(homes, name) if name != site else (first, version)), plan) for name in plan.names]
    number, (protocol,) = plan.names.index(site), plan.protocol_plans
    sent, mean = masked_round(protocol, vectors)
    both, pick = (first.material.train, first.material.choose + first.material.judge), np.random.default_rng(0)
    members, others = (rows_of(first, tasks) for tasks in both)
    few = min(len(members), len(others))
    members, others = pick.permutation(members)[:few], pick.permutation(others)[:few]
    seen = [one[:dim] for one in (vectors[number], sent[number], mean)]
    found = attack(plan.adapter.layout, version.vector, seen, members, others, plan.local.temperature)
    named = zip(("plain_update", "sent", "sum"), found, strict=True)
    return {"site": site, "sites": len(vectors)} | {name: asdict(one) for name, one in named}


def _opened(homes: Path, site: str) -> tuple[Workspace, StoredAdapter]:
    place = SiteHome.of(homes, site)
    version = StoredAdapter.read(place.federated_file)
    if version is None:
        raise FileNotFoundError(place.federated_file)
    return Workspace(place, place.settings()), version


def _vector(workspace: Workspace, version: StoredAdapter, plan: Plan) -> np.ndarray:
    """What the site would mask: the update that ``SiteRounds`` makes of this version, and the figures behind it."""
    layout, limit = version.layout, plan.aggregation.range
    readied, rng = workspace.ready(plan), np.random.default_rng()
    update = local_update(layout, version.vector, readied.tasks, readied.states, plan.local, rng)
    figures = HeldOut(plan, readied.held_out, readied.states).report(version.layout, version.vector)
    return np.concatenate([update, tail.encode(plan.aggregation.figures, figures, limit)]).astype(np.float64)
