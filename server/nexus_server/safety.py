"""Taking a version back by itself, where the sites that received it vote it down.

A vote is known in the sum over a round only: 1 where a site's hold-out shows the version to be better than the base
model, -1 where worse.  The sum comes with the round that trains on the version, so what that round made of it goes too.
Training goes on between the last good version and the rejected one, as after a rollback by hand: no weights are opened
twice.  A run that goes back to the same version again, or for the third time, stops, and a person decides.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from nexus_common.audit import AuditLog
from nexus_common.tail import Reported

from nexus_server.lineage import back_to
from nexus_server.records import MADE, Rejection, Run
from nexus_server.registry import Registry

log = logging.getLogger(__name__)
MOST_REJECTIONS: Final = 3  # in a run: or one site that lies could have versions taken back for ever


def voted_down(run: Run, reported: Sequence[Mapping[str, Reported]]) -> Reported | None:
    """The votes on the version that a cohort received (in a trial: its control), where they reach the plan's bound."""
    votes = reported[0].get("vote") if reported else None
    if votes is None:
        return None
    if abs(votes.value) > votes.sites:  # a site can send any number; then nobody knows what the others said
        log.warning("the votes of %d sites add up to %+.0f: a site lies, and none counts", votes.sites, votes.value)
        return None
    return votes if votes.value <= -run.plan.safety.max_rejections * votes.sites else None


def take_back(
    registry: Registry, audit: AuditLog, run: Run, reported: Sequence[Mapping[str, Reported]]
) -> Rejection | None:
    """Take the newest version back where its votes say so; what was done, durably, or None where nothing was."""
    votes, name = voted_down(run, reported), run.plan.name
    if votes is None:
        return None
    before = [one.number for one in registry.versions(name) if one.state == MADE and one.number < run.round]
    good = max(before, default=None)
    earlier = registry.rejections(name)
    again = good is None or good in {one.back_to for one in earlier} or len(earlier) + 1 >= MOST_REJECTIONS
    rejection = Rejection(name, run.round, votes.value, votes.sites, good, again, time.time())
    log.error("run %s: %s", name, rejection)
    told = {"version": run.round, "votes": int(votes.value), "sites": votes.sites, "back_to": good}
    audit.append("version voted down", plan=run.plan.hash.hex(), **told)
    if good is None:
        registry.note_rejection(rejection, reported)
    elif not registry.roll_back(run, good, *back_to(registry, run, good), (rejection, reported)):
        audit.append("version voted down void", plan=run.plan.hash.hex(), version=run.round)
        return None  # a person rolled back or withdrew it meanwhile
    return rejection
