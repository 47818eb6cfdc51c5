"""What a site's report says: its own rounds in each run, its training alone, its models' quality, what it refused.

All of it lies on the site's disk, and stays at the site; neither torch nor the agent is needed to read it.
"""

import json
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from nexus_common import audit
from nexus_common.cli import moment
from nexus_common.errors import REFUSALS, NexusError, Refusal
from nexus_common.growth import Point
from nexus_common.recipe import Recipe
from nexus_common.report import (
    Course,
    RefusalLine,
    Refusals,
    Report,
    VersionLine,
    arm_lines,
    thinned,
    trial_lines,
)
from nexus_common.versions import StoredAdapter
from pydantic import ValidationError

from nexus_client import own_rounds
from nexus_client.agent_api import EvaluateReport
from nexus_client.consent import Consent
from nexus_client.own_rounds import OwnRound
from nexus_client.site import SiteHome
from nexus_client.status import status

TOLD: Final = (
    "This site's own figures, by a small part of what it holds out; the server hears them only in a masked sum. What "
    "becomes of a trial is decided by the sites together, so it may differ from what these figures say."
)
TOLD_ALONE: Final = "No federation: the same recipe, engine and number of steps, on this site's rows alone."
NOTES: Final = (
    "This page holds figures that nobody else knows: it stays at this site.",
    "Loss held out and score of a version were found before training on it, loss in training in the round after. "
    "Rounds in which this site had no part are not there; one without figures met a fault, and zeros were sent.",
)


def report_of(place: SiteHome) -> Report:
    """All of it; NexusError where there is nothing yet."""
    notes = list(NOTES)
    courses = [*_federated(place, notes), *_alone(place, notes)]
    evaluated, refusals = _evaluated(place, notes), _refusals(place, notes)
    if not (courses or evaluated or refusals or len(notes) > len(NOTES)):
        raise NexusError(
            f"{place.site} has nothing to report: no round of a run, no training alone, no evaluation, no refusal; "
            "`nexus-client train --local` trains alone, `nexus-client evaluate` judges"
        )
    if not place.evaluation_file.exists():
        notes.append("Its models were not judged side by side yet: `nexus-client evaluate` does that.")
    return Report(
        name=place.site,
        title=f"Site {place.site}",
        made=time.time(),
        facts=tuple(_facts(place)),
        courses=tuple(courses),
        quality=tuple(evaluated.lines) if evaluated else (),
        quality_of=_judged(place, evaluated) if evaluated else "",
        refusals=refusals,
        notes=tuple(notes),
    )


def _facts(place: SiteHome) -> Iterator[tuple[str, str]]:
    stands, version = status(place), StoredAdapter.read(place.federated_file)
    yield "server", stands.server
    yield "in use", f"{stands.in_use}, {'pinned' if stands.pinned else 'chosen'}: {stands.why}"
    if stands.refused:
        yield "not taken", stands.refused
    if version is None:
        yield "version", "none was received yet"
    else:
        yield "version", f"{version.number} of run {version.plan.name}"
        yield "received", moment(stands.version_at or 0)
        noise = version.plan.privacy
        yield "privacy", "with noise, see the plan" if noise else "epsilon: none (records are not protected)"
    yield "plan", f"{stands.approved} is approved" if stands.approved else "none is approved"
    yield "takes part", stands.participation or "no: its policy cannot be read"


def _federated(place: SiteHome, notes: list[str]) -> Iterator[Course]:
    """A course for each run that this site took part in, the newest first."""
    consent = Consent(place)
    for plan_hash, rounds in reversed(own_rounds.read(place.own_rounds_file).items()):
        try:
            plan = consent.plan(bytes.fromhex(plan_hash))
        except Refusal:
            notes.append(f"{len(rounds)} rounds are left out: their plan, {plan_hash[:16]}, is no longer kept here.")
            continue
        told = {one.number: (one.at, one.seconds) for one in rounds}
        yield _course(f"Run {plan.name}", TOLD, plan, _line(rounds), told)


def _line(rounds: Sequence[OwnRound]) -> list[Point]:
    """The run's line as this site knows it: a version that it missed is taken to have the form of the one before."""
    line = list[Point]()
    for one in rounds:
        missed = range(line[-1].number + 1, one.number) if line else ()
        line += [Point(number, line[-1].stage) for number in missed]
        line.append(Point(one.number, one.stage, tuple(one.arms)))
    return line


def _alone(place: SiteHome, notes: list[str]) -> Iterator[Course]:
    """The training that ``train --local`` and ``evaluate`` do."""
    kept = StoredAdapter.read(place.alone_file)
    if kept is None or not place.alone_line_file.exists():
        return
    try:
        line = [Point(**point) for point in json.loads(place.alone_line_file.read_bytes())]
        title = f"Alone: round {kept.number} of {kept.recipe.rounds} was kept, which the choosing part likes best"
        yield _course(title, TOLD_ALONE, kept.recipe, line)
    except (ValueError, TypeError, IndexError) as problem:
        notes.append(f"{place.alone_line_file} does not fit ({problem}); `nexus-client train --local` makes it again.")


def _course(
    title: str, told: str, recipe: Recipe, line: Sequence[Point], when: dict[int, tuple[float, float]] | None = None
) -> Course:
    found = []
    for point in line:
        if when is None or point.number in when:
            at, seconds = when[point.number] if when else (None, None)
            arms = arm_lines(recipe.stages[point.stage], point.reports)
            found.append(VersionLine(number=point.number, created=at, seconds=seconds, arms=arms))
    versions, every = thinned(found)
    return Course(title=title, told=told, versions=versions, trials=tuple(trial_lines(recipe, line)), every=every)


def _evaluated(place: SiteHome, notes: list[str]) -> EvaluateReport | None:
    """What the last ``evaluate`` found."""
    if not place.evaluation_file.exists():
        return None
    try:
        return EvaluateReport.model_validate_json(place.evaluation_file.read_bytes())
    except ValidationError as problem:
        notes.append(f"{place.evaluation_file} is damaged ({problem.error_count()} faults): `nexus-client evaluate`.")
        return None


def _judged(place: SiteHome, evaluated: EvaluateReport) -> str:
    version = f"; federated is version {evaluated.version} of run {evaluated.run}" if evaluated.run else ""
    when = moment(place.evaluation_file.stat().st_mtime)
    used = f"In use is {evaluated.in_use}{': ' if evaluated.verdict else ''}{evaluated.verdict}."
    told = f"On the part of the hold-out that is only there to judge by, {when}{version}."
    return " ".join([told, used, *evaluated.warnings])


def _refusals(place: SiteHome, notes: list[str]) -> tuple[RefusalLine, ...]:
    """What this site refused, from its audit log."""
    found = Refusals(lambda what: REFUSALS.get(what.rpartition(": ")[2], ""))
    try:
        for line in audit.read(place.audit_file):
            if line["event"] == "refused":
                at = datetime.fromisoformat(line["at"]).timestamp()
                found.add(place.site, f"{line.get('purpose', '')}: {line.get('code', '')}", at)
    except (NexusError, ValueError) as problem:
        notes.append(str(problem))
    return found.lines
