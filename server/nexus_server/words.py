"""The state of a run in words."""

import time
from itertools import starmap
from typing import Final

from nexus_common.cli import moment
from nexus_common.errors import REFUSALS
from nexus_common.report import TrialLine

from nexus_server import admin_api as admin

LONG_SECONDS: Final = 60.0  # after which a step of a round is worth a word
_STEPS: Final = {"training": "its sites train", "adding": "its masked updates are collected"}


def sentence(status: admin.Status) -> str:
    """The run's state in one line, and what waits or is wrong in further ones."""
    lines = [_run(status), *map(_trial, status.trials)] if status.run else []
    if status.wanted and status.approvals_missing:
        lines.append(
            f"plan {status.wanted} waits for the approval of {', '.join(status.approvals_missing)} "
            "(there: nexus-client plan show, plan approve)"
        )
    elif status.wanted:
        lines.append(f"plan {status.wanted} is approved and waits for run {status.run} to end")
    if status.taken_back:
        lines.append(status.taken_back)
    if status.problem:
        lines.append(f"problem: {status.problem}")
    return "\n".join(lines) or "no run yet: nexus-server plan new, plan propose, train"


def _run(status: admin.Status) -> str:
    failed = f" ({status.failed_rounds} more came to nothing)" if status.failed_rounds else ""
    if status.failures and status.state != "finished":
        failed += f"; the last try: {'; '.join(starmap(_failure, status.failures.items()))}"
    head = f"run {status.run}: {status.state}, {status.round} of {status.rounds} rounds done{failed}"
    if status.state == "stopped" and status.spent:
        head += "; all masked inputs that its plan allows are spent: nexus-server plan new --from"
    missing = ", ".join(status.missing)
    if status.phase == "recalling":
        return (
            f"{head}; restored from a backup: waiting since {moment(status.phase_since)} to hear from "
            f"{missing or 'a site'} which versions the sites hold; until then none is sent to them"
        )
    if status.state not in ("running", "stopping"):
        return head
    if status.phase == "waiting":
        spare = "nobody can be spared" if status.quorum == status.sites else f"{status.quorum} are needed"
        return (
            f"{head}; waiting for {missing} since {moment(status.phase_since)}; with {status.sites} sites {spare}; "
            "nothing is lost"
        )
    since = moment(status.phase_since)
    waits = {
        "opening": f"waiting since {since} for what {missing} can give to open the round's sum; nothing is lost",
        "resting": "resting until the plan's hours begin",
        "gathering": f"enough sites are ready, giving {missing} a moment to come",
    }
    if status.phase in waits:
        return f"{head}; {waits[status.phase]}"
    if status.round_seconds and status.cohort:
        head += f"; last round with {', '.join(status.cohort)}, {status.round_seconds[-1]:.1f} s"
    if status.phase in _STEPS and time.time() - status.phase_since > LONG_SECONDS:
        head += f"; round {status.round + 1}: {_STEPS[status.phase]} since {moment(status.phase_since)}"
    return head + (f"; goes on without {missing}" if missing else "")


def _trial(trial: TrialLine) -> str:
    """Whether a dendrite earned its place, with the arms' scores on what the sites hold out."""
    arms = zip(trial.arms, trial.scores, strict=True)
    scores = ", ".join(name if score is None else f"{name} {100 * score:.2f}" for name, score in arms)
    if trial.winner is None:
        return f"trial since version {trial.begin}, {trial.rounds} of {trial.of} rounds: {scores}"
    stays = "no dendrite earned its place" if trial.winner == trial.arms[0] else f"the {trial.winner} stays"
    return f"trial from version {trial.begin}: {stays} ({scores})"


def _failure(site: str, reason: str) -> str:
    """Why a site had no part in a round, with the meaning of a refusal's code."""
    meaning = meaning_of(reason)
    told = f"{reason} ({meaning})" if meaning else reason
    return f"{site} {told}" if site else told


def meaning_of(reason: str) -> str:
    """What a refusal's code means; empty where the reason is none."""
    return REFUSALS.get(reason.rpartition(": ")[2], "")
