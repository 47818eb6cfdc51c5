"""From an opened sum to the next version: the server's optimiser, and whether the adapter grows."""

import logging
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from nexus_common.disk import LEAST_FREE_BYTES, shortage
from nexus_common.errors import NexusError
from nexus_common.growth import next_stage
from nexus_common.layout import Vector
from nexus_common.stages import moved
from nexus_common.tail import values
from nexus_common.versions import trained_from

from nexus_server.aggregate import State, make_optimiser
from nexus_server.lineage import line
from nexus_server.masked import Sum
from nexus_server.records import Run
from nexus_server.registry import Registry

ROUND_BYTES_A_VALUE: Final = 32  # on disk, at most: a masked sum, the version, the optimiser's state, and slack
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Next:
    """A version's vector in the form ``stage``, and what the optimiser keeps for the round after it."""

    vector: Vector
    optimiser: State
    stage: int


def next_version(registry: Registry, run: Run, found: Sum) -> Next | None:
    """What a sum makes of the newest version; None where that is not finite, which every site would refuse for ever."""
    plan, form = run.plan, run.form
    optimiser = make_optimiser(plan.server, form.dim)
    optimiser.restore(registry.optimiser_state(run))
    begins = trained_from(plan, run.round, registry.vector(plan.name, run.round))
    after = optimiser.apply(begins, found.mean)
    if not np.isfinite(after).all():
        return None
    stage = _next_stage(registry, run, found)
    if stage == run.stage:
        return Next(after, optimiser.state(), stage)
    return Next(moved(after, form, plan.stages[stage], plan.adapter.seed_bytes), {}, stage)


def require_space(registry: Registry, values: int) -> None:
    """NexusError before anything is spent on, or logged of, a version that could not be kept."""
    need = max(LEAST_FREE_BYTES, ROUND_BYTES_A_VALUE * values)
    if (lacking := shortage(registry.folder, need)) is not None:
        raise NexusError(lacking)


def _next_stage(registry: Registry, run: Run, found: Sum) -> int:
    """The number of the form that the new version is kept in: a trial may begin here, or be decided."""
    plan, form, points = run.plan, run.form, line(registry, run)
    if not points or points[-1].number != run.round:
        return run.stage  # rolled back or withdrawn meanwhile: this round is void
    told = values(found.reported)
    points[-1] = replace(points[-1], reports=told, by=tuple(found.cohort))
    stage = next_stage(plan, points, plan.rounds - run.done - 1)
    if stage is None:
        return run.stage
    new = plan.stages[stage]
    if new.is_trial:
        log.info("run %s: a trial begins after round %d: %s", plan.name, run.done + 1, ", ".join(new.names))
    else:
        winner = form.names[form.arms.index(new.arms[0])]
        scores = ", ".join(f"{name} {one.get('score')}" for name, one in zip(form.names, told, strict=True))
        log.info("run %s: the trial ends after round %d, %s goes on; %s", plan.name, run.done + 1, winner, scores)
    return stage
