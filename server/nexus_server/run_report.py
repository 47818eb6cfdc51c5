"""What a report says of a run, from the registry: means over cohorts and votes of cohorts, and no figure of one site.

A mean over fewer sites than the plan's ``min_cohort`` (the others of the cohort had nothing held out) is left out.
"""

import time
from collections.abc import Iterator

from nexus_common.cli import moment
from nexus_common.report import Course, RefusalLine, Refusals, Report, VersionLine, arm_lines, thinned, trial_lines
from nexus_common.tail import values

from nexus_server.lineage import line
from nexus_server.records import Run
from nexus_server.registry import Registry
from nexus_server.words import meaning_of

TOLD = (
    "Loss, score and votes of a version are what the sites that received it report, each judging by what it holds out:"
    " means over a cohort and the sum of its votes, from a masked sum."
)
NOTES = (
    "The figures of a version come with the round that trains on it, so nothing is there of the newest until then. "
    "Loss in training is that of this round.",
    "In a trial the control, without the new dendrite, and each candidate train the same rounds on the same batches; a "
    "candidate stays only where its score clearly beats the control's. While the trial lasts the control is in use.",
    "No figure of one site is on this page, but differences are: where the cohort changes from one version to the "
    "next, the difference of two means shows about what the site that came or went reports. Keep it in the consortium.",
)


def version_lines(registry: Registry, run: Run) -> dict[int, VersionLine]:
    """All versions of a run by number, with what may be shown of their figures."""
    told, stages = registry.figures(run.plan.name, run.plan.min_cohort), run.plan.stages
    return {
        one.number: VersionLine(
            number=one.number,
            state=one.state,
            cohort=one.cohort,
            created=one.created,
            seconds=one.seconds,
            bytes_up=one.bytes_up,
            arms=arm_lines(stages[one.stage], values(told.get(one.number, []))),
        )
        for one in registry.versions(run.plan.name)
    }


def report_of(registry: Registry, run: Run) -> Report:
    """All of it."""
    plan, found = run.plan, list(version_lines(registry, run).values())
    versions, every = thinned(found)
    course = Course(
        title="Training",
        told=TOLD,
        versions=versions,
        trials=tuple(trial_lines(plan, line(registry, run, plan.min_cohort))),
        roster=plan.names,
        quorum=plan.quorum,
        every=every,
    )
    hidden = registry.hidden_figures(plan.name, plan.min_cohort)
    left_out = f"{hidden} figures that fewer than {plan.min_cohort} sites had are left out." if hidden else ""
    return Report(
        name=plan.name,
        title=f"Run {plan.name}",
        purpose=plan.purpose,
        made=time.time(),
        facts=tuple(_facts(registry, run, found)),
        courses=(course,),
        refusals=_refusals(registry, run),
        notes=(*NOTES, *([left_out] if left_out else []), *map(str, registry.rejections(plan.name))),
    )


def _facts(registry: Registry, run: Run, versions: list[VersionLine]) -> Iterator[tuple[str, str]]:
    plan, in_use = run.plan, registry.in_use(run.plan.name)
    yield "state", f"{run.state}, {run.done} of {plan.rounds} rounds done"
    if in_use is not None:
        arm = next(one for one in versions if one.number == in_use).arms[0]
        grown = f"{arm.dendrites} dendrite{'' if arm.dendrites == 1 else 's'}" if arm.dendrites else "no dendrite"
        yield "in use", f"version {in_use}: {grown}, {arm.parameters:,} parameters"
    yield "sites", ", ".join(plan.names)
    yield "in each round", f"{plan.quorum} of {len(plan.sites)} sites are needed"
    yield "made", f"{moment(versions[0].created or 0)} to {moment(versions[-1].created or 0)}"
    if sent := [one.bytes_up / len(one.cohort) for one in versions if one.cohort and one.bytes_up is not None]:
        yield "received a site and round", f"{sum(sent) / len(sent) / 1e6:.2f} MB, masked"
    noise = plan.privacy
    yield "privacy", "with noise, see the plan" if noise else "epsilon: none (records are not protected)"
    yield "plan", plan.hash.hex()[:16]


def _refusals(registry: Registry, run: Run) -> tuple[RefusalLine, ...]:
    """Why rounds came to nothing, and what the sites' policies object to."""
    found = Refusals(meaning_of)
    for at, reasons in registry.failures(run.plan.name):
        for site, reason in reasons.items():
            found.add(site or "the round", reason, at)
    for standing in registry.standings(run.plan):
        if standing.code:
            found.add(standing.site, f"its policy objects: {standing.code}", standing.at)
    return found.lines
