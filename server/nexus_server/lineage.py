"""The versions that led to a run's newest one, as growth reads them, and what may be laid beside one of them."""

from itertools import count, zip_longest
from typing import Final

import numpy as np
from nexus_common.growth import Point
from nexus_common.layout import Vector
from nexus_common.tail import values
from nexus_common.versions import perturbed

from nexus_server.records import MADE, MIDPOINT, Run, Version
from nexus_server.registry import Registry
from nexus_server.vectors import VectorFiles

_HALVINGS: Final = 12


def line(registry: Registry, run: Run, least: int = 1) -> list[Point]:
    """The versions that are not taken out of use, oldest first, with what at least so many sites reported of them."""
    told = registry.figures(run.plan.name, least)
    kept = [version for version in registry.versions(run.plan.name) if version.state in (MADE, MIDPOINT)]
    return [
        Point(
            version.number,
            version.stage,
            values(told.get(version.number, [])),
            after.cohort if after else (),
            version.number == 0 or bool(version.cohort),  # one adopted after a restore was decided on nowhere here
        )
        for version, after in zip_longest(kept, kept[1:])
    ]


def beside(registry: Registry, run: Run, number: int, other: int, stage: int) -> Vector:
    """A vector of the form ``stage`` near version ``number``, towards ``other``, that no version of the run holds yet.

    So the same weights are never trained on twice.  Where there is no ``other`` of this form, or nothing between the
    two, it is a perturbation that the plan seeds (specification, "Recovery").
    """
    alike = {one.number: one for one in registry.versions(run.plan.name) if _has(run, one, stage)}
    known = {_name(registry, run, one, stage) for one in alike.values()}
    near = _in_form(registry, run, alike[number], stage)
    middle = _in_form(registry, run, alike[other], stage) if other in alike else near
    for _ in range(_HALVINGS):
        middle = ((near.astype(np.float64) + middle) / 2).astype(np.float32)
        if VectorFiles.name({"vector": middle}) not in known:
            return middle
    attempts = (perturbed(run.plan, attempt, near) for attempt in count(number + 1))
    return next(vector for vector in attempts if VectorFiles.name({"vector": vector}) not in known)


def back_to(registry: Registry, run: Run, number: int) -> tuple[Vector, int]:
    """Where training goes on after a rollback to version ``number``, and its stage: between that and its successor."""
    after = min(version.number for version in registry.versions(run.plan.name) if version.number > number)
    stage, _ = registry.adapter(run, number)  # of a trial the control goes on
    return beside(registry, run, number, after, stage), stage


def _has(run: Run, version: Version, stage: int) -> bool:
    """Whether a version has the form ``stage``, or its control has."""
    held = run.plan.stages[version.stage]
    return run.plan.stages[stage] in (held, held.alone)


def _in_form(registry: Registry, run: Run, version: Version, stage: int) -> Vector:
    """A version's vector in a form that it has."""
    held, vector = run.plan.stages[version.stage], registry.vector(run.plan.name, version.number)
    return vector if version.stage == stage else held.control(vector)


def _name(registry: Registry, run: Run, version: Version, stage: int) -> str:
    """What a version's vector in a form that it has would be stored as."""
    return (
        version.hash
        if version.stage == stage
        else VectorFiles.name({"vector": _in_form(registry, run, version, stage)})
    )
