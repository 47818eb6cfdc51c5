"""Hearing what the sites' people say to plans, and when a plan may become a run.

A notice is signed by the site, and is for the coordinator's eyes: nothing at a site depends on what is stored here.
"""

import logging
import time
from collections.abc import Callable, Collection

import numpy as np
from nexus_common import wire
from nexus_common.audit import AuditLog
from nexus_common.errors import Refusal
from nexus_common.layout import Vector
from nexus_common.plan import Plan

from nexus_server.exchange import SMALL_TRIP_SECONDS, Exchange
from nexus_server.pauses import Pauses
from nexus_server.records import RUNNING, STOPPING, Run
from nexus_server.registry import Registry

log = logging.getLogger(__name__)


class Approvals:
    """Proposes plans to connected sites and keeps their answers."""

    def __init__(
        self, registry: Registry, exchange: Exchange, identities: Callable[[], dict[str, bytes]], audit: AuditLog
    ) -> None:
        self.registry, self.exchange, self.identities, self.audit = registry, exchange, identities, audit
        self._heard: set[tuple[bytes, str]] = set()  # (plan, site) asked since the site's session began
        self._asked_at: dict[str, float] = {}
        self._pauses = Pauses()

    def consult(self) -> None:
        """Ask each connected site once a session, and at most once a second, where it stands on every open plan."""
        now = time.monotonic()
        alive = {site for site in self.exchange.alive() if now - self._asked_at.get(site, -1.0) >= 1.0}
        for plan in self._open_plans():
            asked = [
                site
                for site in sorted(alive & set(plan.names))
                if (plan.hash, site) not in self._heard and self._pauses.over(site)
            ]
            if asked:
                self._asked_at |= dict.fromkeys(asked, now)
                self._ask(plan, asked)

    def _open_plans(self) -> list[Plan]:
        active = self.registry.active_run()
        return [*([active.plan] if active else []), *(proposal.plan for proposal in self.registry.proposals())]

    def _ask(self, plan: Plan, sites: Collection[str]) -> None:
        message, identities = wire.Propose(plan.canonical), self.identities()
        for site, answer in self.exchange.ask(dict.fromkeys(sites, message), SMALL_TRIP_SECONDS).items():
            try:
                if not isinstance(answer, wire.Standing):
                    raise Refusal("malformed", answer.code if isinstance(answer, wire.Refused) else "no notice")
                wire.verify_standing(identities[site], plan.hash, site, answer)
            except Refusal as refusal:
                log.warning("%s did not say where it stands on plan %s: %s", site, plan.name, refusal)
                self._pauses.begin(site)
                continue
            self._pauses.forget(site)
            self._heard.add((plan.hash, site))
            if self.registry.note_standing(plan, site, answer):
                log.info("plan %s: %s says %s %s", plan.name, site, answer.state, answer.code)
                self.audit.append(
                    "standing", plan=plan.hash.hex(), site=site, state=answer.state, code=answer.code or None
                )

    def forget(self, site: str) -> None:
        """A site's session ended or a new one began: it is asked anew."""
        self._heard = {one for one in self._heard if one[1] != site}
        self._pauses.forget(site)

    def approved(self, plan: Plan) -> set[str]:
        """The sites whose last notice approves."""
        return {one.site for one in self.registry.standings(plan) if one.state == wire.APPROVED}

    def lacking(self, plan: Plan) -> tuple[str, ...]:
        """The sites whose approval is still needed before the plan can become a run."""
        approved = self.approved(plan)
        if plan.start == "quorum" and len(approved) >= plan.quorum:
            return ()
        return tuple(site for site in plan.names if site not in approved)

    def begin_wanted(self) -> bool:
        """Make a run of a plan that the coordinator wants and the sites have approved; whether something changed."""
        for proposal in self.registry.proposals():
            plan = proposal.plan
            if not proposal.wanted or self.lacking(plan):
                continue
            active = self.registry.active_run()
            if active is not None:
                if active.state == RUNNING and plan.origin and plan.origin.plan == active.plan.hash.hex():
                    log.info("plan %s is approved: run %s ends after its round", plan.name, active.plan.name)
                    return self.registry.set_state(active.plan.name, STOPPING, expected=RUNNING)
                continue
            self.registry.create_run(plan, first_version(self.registry, plan))
            self.audit.append("run began", plan=plan.hash.hex(), name=plan.name)
            log.info("run %s begins", plan.name)
            return True
        return False


def first_version(registry: Registry, plan: Plan) -> Vector:
    """Where a plan begins: the base model's own output, or a version of the plan that it follows."""
    if plan.origin is None:
        return plan.adapter.layout.first_vector(plan.adapter.seed_bytes)
    before = origin_run(registry, plan)
    number = plan.origin.version if plan.origin.version is not None else registry.in_use(before.plan.name)
    return np.array(registry.vector(before.plan.name, before.round if number is None else number))


def origin_run(registry: Registry, plan: Plan) -> Run:
    """The run that a plan follows; Refusal ``wrong-context`` where this server does not have it."""
    for run in registry.all_runs():
        if plan.origin is not None and run.plan.hash.hex() == plan.origin.plan:
            return run
    raise Refusal("wrong-context", f"plan {plan.name} follows a plan that this server never ran")
