"""Which versions a site takes for one of an approved plan: the right first one, and nothing that rounds cannot lead to.

A server that lies chooses the weights.  Enormous ones make arithmetic overflow, or saturate a gate, for some texts and
not for others; none of that is within what the rounds of a plan can add up to.
"""

import math
from typing import Final

import numpy as np
from nexus_common import wire
from nexus_common.errors import Refusal
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from nexus_common.stages import Stage, grown
from nexus_common.versions import PERTURBATION, vector_hash

_ROUNDING: Final = 1.001
_LARGEST_ORIGIN: Final = 10.0  # of a first version that another plan made; adapters are near the identity


def step_of(plan: Plan) -> float:
    """The most that one round changes any single value, whatever sites send (for FedAdam: Cauchy-Schwarz on m, v)."""
    server, mean = plan.server, min(plan.aggregation.range, plan.local.clip_norm)
    if server.optimiser == "fedavg":
        return server.step * mean
    if server.optimiser == "fedavgm":
        return server.step * mean / (1 - server.momentum)
    b1, b2 = server.momentum, server.second_moment
    ratio = (1 - b1) / math.sqrt((1 - b2) * (1 - b1**2 / b2)) if b1**2 < b2 else math.inf
    return server.step * min(ratio, mean / server.epsilon)


def largest(plan: Plan, number: int) -> float:
    """The largest absolute value that version ``number`` of a run of this plan can hold."""
    first = plan.adapter.layout.first_vector(plan.adapter.seed_bytes)
    start = float(np.abs(first).max()) if plan.origin is None else _LARGEST_ORIGIN
    return (start + float(PERTURBATION) + number * step_of(plan)) * _ROUNDING


def check_reach(plan: Plan, number: int, vector: Vector) -> None:
    """Refusal ``bad-version`` where no rounds of the plan lead to these weights."""
    found, most = float(np.abs(vector).max()), largest(plan, number)
    if found > most:
        raise Refusal("bad-version", f"version {number} holds {found:.4g}, plan {plan.name} reaches {most:.4g} by then")


def check_stage(plan: Plan, number: int, *, alone: bool = False) -> Stage:
    """The form with this number; Refusal ``wrong-context`` where the plan has none, or a trial where that is no use."""
    stages = plan.stages
    if number >= len(stages) or (alone and stages[number].is_trial):
        raise Refusal("wrong-context", f"stage {number}, plan {plan.name} has {len(stages)}; or a trial is for no use")
    return stages[number]


def check_newborn(plan: Plan, stage: Stage, vector: Vector) -> None:
    """Refusal ``bad-version`` where a candidate that changes no output yet is not the one that the plan's seed fixes.

    That is how every trial begins.  Later in it the weights are trained, and ``check_reach`` alone bounds them; so it
    does what a server that lies makes look trained.
    """
    control, *candidates = stage.split(vector)
    old = {entry.name for entry in stage.arms[0].entries}
    for arm, found in zip(stage.arms[1:], candidates, strict=True):
        new = [entry for entry in arm.entries if entry.name not in old]
        silent = not any(found[entry.span].any() for entry in new if "dendrites" not in entry.name)
        if silent and not np.array_equal(found, grown(control, stage.arms[0], arm, plan.adapter.seed_bytes)):
            raise Refusal("bad-version", f"a trial of plan {plan.name} begins with other weights than its seed fixes")


def check_number(plan: Plan, number: int) -> None:
    """Refuse a version that the plan's rounds cannot reach; failed ones and rollbacks count (specification, "Plan")."""
    most = plan.most_inputs
    if number >= most:
        raise Refusal("wrong-context", f"version {number}, plan {plan.name} reaches at most {most - 1}")


def birth_hash(plan: Plan) -> str:
    """Of the base model's own output as a version."""
    return vector_hash(wire.pack(plan.adapter.layout.first_vector(plan.adapter.seed_bytes)))


def check_first(plan: Plan, vector: bytes) -> None:
    """Refuse a first version other than the one that the plan fixes.

    (A server that lies about a version's number gets around it; what it may choose then, ``check_reach`` bounds.)
    """
    origin = plan.origin
    if origin is None:
        fixed: str | None = birth_hash(plan)
    else:
        fixed = origin.vector  # None: the newest of the plan before, whichever that was
    if fixed is not None and vector_hash(vector) != fixed:
        raise Refusal("wrong-context", f"the first version of run {plan.name} is not the one that its plan fixes")
