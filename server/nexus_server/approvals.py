"""Hearing what the sites' people say to plans, and when a plan may become a run.

A notice is signed by the site, and is for the coordinator's eyes: nothing at a site depends on what is stored here.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection

import numpy as np
from nexus_common import wire
from nexus_common.audit import AuditLog
from nexus_common.errors import NexusError, Refusal
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from nexus_common.versions import vector_hash

from nexus_server.exchange import DEADLINE, SMALL_TRIP_SECONDS, Exchange, Failure
from nexus_server.pauses import Pauses
from nexus_server.records import MADE, RUNNING, STOPPING, Run
from nexus_server.registry import Registry

log = logging.getLogger(__name__)


class Approvals:
    """Proposes plans to connected sites and keeps their answers."""

    def __init__(
        self, registry: Registry, exchange: Exchange, identities: Callable[[], dict[str, bytes]], audit: AuditLog
    ) -> None:
        self.registry, self.exchange, self.identities, self.audit = registry, exchange, identities, audit
        self.problem: str | None = None  # why a wanted plan cannot begin
        self._session: Counter[str] = Counter()  # changed by other threads, as sites come anew
        self._heard: dict[tuple[bytes, str], int] = {}  # (plan, site) -> the site's session in which it answered
        self._asked_at: dict[str, float] = {}
        self._refused, self._silent = Pauses(), Pauses()

    def consult(self) -> None:
        """Ask each connected site once a session, and at most once a second, where it stands on every open plan."""
        now = time.monotonic()
        alive = {site for site in self.exchange.alive() if now - self._asked_at.get(site, -1.0) >= 1.0}
        for plan in self._open_plans():
            asked = [
                site
                for site in sorted(alive & set(plan.names))
                if self._heard.get((plan.hash, site)) != self._session[site]
                and self._refused.over(site)
                and self._silent.over(site)
            ]
            if asked:
                self._asked_at |= dict.fromkeys(asked, now)
                self._ask(plan, asked)

    def _open_plans(self) -> list[Plan]:
        active = self.registry.active_run()
        return [*([active.plan] if active else []), *(proposal.plan for proposal in self.registry.proposals())]

    def _ask(self, plan: Plan, sites: Collection[str]) -> None:
        message, identities, sessions = wire.Propose(plan.canonical), self.identities(), self._session.copy()
        for site, answer in self.exchange.ask(dict.fromkeys(sites, message), SMALL_TRIP_SECONDS).items():
            if self._session[site] != sessions[site]:
                continue  # it came anew meanwhile: this answer may be older than what its people say now
            try:
                if isinstance(answer, wire.Refused):
                    raise Refusal(answer.code)
                if not isinstance(answer, wire.Standing):
                    raise Refusal("malformed", answer.reason if isinstance(answer, Failure) else "no notice")
                wire.verify_standing(identities[site], plan.hash, site, answer)
            except Refusal as refusal:
                log.warning("%s did not say where it stands on plan %s: %s", site, plan.name, refusal)
                silent = isinstance(answer, Failure) and answer.reason == DEADLINE
                (self._silent if silent else self._refused).begin(site)
                if isinstance(answer, wire.Refused):
                    self.registry.note_standing(plan, site, wire.Standing("refused", answer.code, b""))
                continue
            self._refused.forget(site)
            self._silent.forget(site)
            self._heard[plan.hash, site] = sessions[site]
            if self.registry.note_standing(plan, site, answer):
                log.info("plan %s: %s says %s %s", plan.name, site, answer.state, answer.code)
                self.audit.append(
                    "standing", plan=plan.hash.hex(), site=site, state=answer.state, code=answer.code or None
                )

    def forget(self, site: str) -> None:
        """A site's session ended or a new one began: it is asked anew.  Silence is not forgiven by coming anew."""
        self._session[site] += 1
        self._refused.forget(site)

    def approved(self, plan: Plan) -> set[str]:
        """The sites whose last notice approves."""
        return {one.site for one in self.registry.standings(plan) if one.state == wire.APPROVED}

    def lacking(self, plan: Plan) -> tuple[str, ...]:
        """The sites whose approval is still needed before the plan can become a run."""
        approved = self.approved(plan)
        if plan.start == "quorum" and len(approved) >= plan.quorum:
            return ()
        return tuple(site for site in plan.names if site not in approved)

    def unheard_origin(self) -> Run | None:
        """The run that an approved plan waits for, to hear after a restore what its sites hold."""
        wanted = (one.plan for one in self.registry.proposals() if one.wanted and not self.lacking(one.plan))
        return next(filter(None, (unheard_origin(self.registry, plan) for plan in wanted)), None)

    def begin_wanted(self) -> bool:
        """Make a run of a plan that the coordinator wants and the sites have approved; whether something changed."""
        for proposal in self.registry.proposals():
            plan = proposal.plan
            if not proposal.wanted or self.lacking(plan):
                continue
            active = self.registry.active_run()
            if active is not None and not (active.state == RUNNING and _follows(plan, active)):
                continue
            if (origin := unheard_origin(self.registry, plan)) is not None:
                self.problem = (
                    f"plan {plan.name} follows run {origin.plan.name}, whose sites are first asked for versions newer "
                    f"than the backup's; without them, give it the version to begin at: `plan new --from "
                    f"{origin.plan.name} --from-version V`"
                )
                continue
            try:
                first = first_version(self.registry, plan)
            except NexusError as problem:
                self.problem = f"plan {plan.name} cannot begin: {problem}"
                log.error("%s", self.problem)
                self.registry.unwant(plan)
                continue
            self.problem = None
            if active is not None:
                log.info("plan %s is approved: run %s ends after its round", plan.name, active.plan.name)
                return self.registry.set_state(active.plan.name, STOPPING, expected=RUNNING)
            self.audit.append("run began", plan=plan.hash.hex(), name=plan.name)
            self.registry.create_run(plan, first)
            log.info("run %s begins", plan.name)
            return True
        return False


def _follows(plan: Plan, run: Run) -> bool:
    return plan.origin is not None and plan.origin.plan == run.plan.hash.hex()


def unheard_origin(registry: Registry, plan: Plan) -> Run | None:
    """The run that a plan follows, where its sites may hold the version that the plan begins at and this server not."""
    run = next((run for run in registry.all_runs() if _follows(plan, run)), None)
    if run is None or plan.origin is None or not registry.recall_due(run.plan.name):
        return None
    return run if plan.origin.version is None or plan.origin.version > run.round else None


def first_version(registry: Registry, plan: Plan) -> Vector:
    """Where a plan begins: the base model's own output, or a version of the plan that it follows.

    NexusError where that version is not there, not in use any more, or not the one that the plan fixes.
    """
    if plan.origin is None:
        return plan.adapter.layout.first_vector(plan.adapter.seed_bytes)
    before = origin_run(registry, plan)
    number = plan.origin.version if plan.origin.version is not None else registry.in_use(before.plan.name)
    usable = [version.number for version in registry.versions(before.plan.name) if version.state == MADE]
    if number not in usable:
        raise NexusError(
            f"plan {plan.name} begins at version {number} of run {before.plan.name}, which is not in use; it may "
            f"begin at {', '.join(map(str, usable)) or 'none'} (`plan new --from {before.plan.name} --from-version V`)"
        )
    stage, vector = registry.adapter(before, number)
    if before.plan.stages[stage].arms != (plan.adapter.layout,):
        raise NexusError(
            f"version {number} of run {before.plan.name} is {before.plan.stages[stage].arms[0]}, and the plan's "
            f"[adapter] is {plan.adapter.layout}; `plan new --from {before.plan.name}` writes the right one"
        )
    if plan.origin.vector not in (None, vector_hash(wire.pack(vector))):
        raise NexusError(f"plan {plan.name} fixes other numbers than version {number} of run {before.plan.name} has")
    return np.array(vector)


def origin_run(registry: Registry, plan: Plan) -> Run:
    """The run that a plan follows; Refusal ``wrong-context`` where this server does not have it."""
    for run in registry.all_runs():
        if _follows(plan, run):
            return run
    raise Refusal("wrong-context", f"plan {plan.name} follows a plan that this server never ran")
