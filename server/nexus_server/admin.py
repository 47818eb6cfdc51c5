"""Administration over a Unix socket in the state folder: what ``nexus-server`` commands ask of the running server."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from nexus_common.address import OFF
from nexus_common.audit import AuditLog
from nexus_common.disk import shortage
from nexus_common.errors import NexusError
from nexus_common.report import trial_lines
from nexus_common.rpc import Method, Nothing

from nexus_server import admin_api as api
from nexus_server.admin_models import ModelAdministration
from nexus_server.admin_plans import PlanAdministration
from nexus_server.conductor import Conductor
from nexus_server.enrolment import Enrolment
from nexus_server.exchange import Exchange
from nexus_server.lineage import line
from nexus_server.records import FINISHED, RUNNING, STOPPED, STOPPING, WITHDRAWN, Run
from nexus_server.registry import Registry


class Administration:
    """The methods behind the socket."""

    def __init__(
        self,
        registry: Registry,
        enrolment: Enrolment,
        conductor: Conductor,
        exchange: Exchange,
        audit: AuditLog,
        received: Mapping[bytes, int],
        on_revoked: Callable[[], None],
        metrics: str = OFF,
    ) -> None:
        self.registry, self.enrolment, self.conductor, self.exchange = registry, enrolment, conductor, exchange
        self._received, self.on_revoked, self._metrics = received, on_revoked, metrics
        self.plans = PlanAdministration(registry, conductor, audit)
        self.models = ModelAdministration(registry, conductor, audit)

    def methods(self) -> dict[str, Method]:  # type: ignore[type-arg]
        """The table of calls."""
        return {
            **self.plans.methods(),
            **self.models.methods(),
            "invite": Method(api.InviteRequest, api.InviteLine, self.invite),
            "revoke": Method(api.SiteName, api.SiteList, self.revoke),
            "rotate_ca": Method(api.RotateRequest, api.Rotated, self.rotate_ca),
            "sites": Method(Nothing, api.SiteList, self.sites),
            "train": Method(api.PlanText, api.Status, self.train),
            "stop": Method(api.RunName, api.Status, self.stop),
            "status": Method(Nothing, api.Status, self.status),
        }

    def invite(self, request: api.InviteRequest) -> api.InviteLine:
        """Open an invitation."""
        invite = self.enrolment.invite(request.site, request.controller, request.contact, request.kind)
        settings = self.enrolment.settings
        expires = max(row.expires for row in self.registry.invitations() if row.site == request.site)
        return api.InviteLine(
            line=invite.line, expires=expires, enrol_address=settings.enrol_address, address=settings.address
        )

    def revoke(self, request: api.SiteName) -> api.SiteList:
        """Shut a site out, at once and for good."""
        if not self.registry.revoke(request.site):
            raise NexusError(f"{request.site} is not enrolled; `nexus-server sites` lists the sites")
        self.plans.audit.append("revoked", site=request.site)
        self.on_revoked()
        return self.sites(Nothing())

    def rotate_ca(self, request: api.RotateRequest) -> api.Rotated:
        """Give the CA a new key."""
        return api.Rotated(ended=self.enrolment.rotate(distrust=request.distrust))

    def sites(self, _: Nothing) -> api.SiteList:
        """Enrolled and invited sites."""
        alive, rows = self.exchange.alive(), self.registry.sites()
        last = self.registry.last_run()
        newest = [*(one.plan for one in self.registry.proposals()), *([last.plan] if last else [])]
        standing = {
            one.site: f"{plan.name}: {one.state}" + (f" ({one.code})" if one.code else "")
            for plan in reversed(newest)
            for one in self.registry.standings(plan)
        }
        lines = [
            api.SiteLine(
                site=row.name,
                connected=row.name in alive,
                last_seen=row.last_seen,
                certificate_days_left=int((row.expires - time.time()) // 86_400),
                readiness=row.readiness if row.name in alive else None,
                standing=standing.get(row.name),
                bytes_received=self._received.get(row.key_hash, 0),
            )
            for row in rows
        ]
        enrolled = {row.name for row in rows}
        return api.SiteList(
            sites=lines,
            invited=[site for site in self.registry.open_invitations() if site not in enrolled],
            ca_days_left=self.enrolment.authority.days_left,
            ca_overlap=bool(self.enrolment.authority.authorities.links),
        )

    def train(self, request: api.PlanText) -> api.Status:
        """Start a run once its sites have approved the plan, or take a stopped one up again."""
        plan = self.plans.checked(request)
        active, known = self.registry.active_run(), self.registry.run(plan.name)
        follows = active is not None and plan.origin is not None and plan.origin.plan == active.plan.hash.hex()
        if active and active.plan.name != plan.name and not (follows and known is None):
            raise NexusError(
                f"run {active.plan.name} is in progress (round {active.done} of {active.plan.rounds}); "
                f"`nexus-server stop {active.plan.name}` ends it after its round"
            )
        waiting = [one.plan.name for one in self.registry.proposals() if one.wanted and one.plan.hash != plan.hash]
        if waiting:
            raise NexusError(
                f"plan {waiting[0]} waits for approvals already, and a site approves one plan at a time; "
                f"`nexus-server stop {waiting[0]}` takes it back"
            )
        if known is None:
            self.plans.put(plan, wanted=True)
            return self.status(Nothing())
        self._check_resumable(known)
        if known.state in (STOPPED, STOPPING):
            self.registry.set_state(plan.name, RUNNING, expected=known.state)
        self.conductor.wake()
        return self.status(Nothing())

    def _check_resumable(self, run: Run) -> None:
        name = run.plan.name
        if self.registry.is_outdated(name):
            raise NexusError(
                f"the plan of run {name} was approved in an older form, and this program's plans have settings that it "
                f"does not name, so its words are others now; `nexus-server plan new NAME --from {name}` writes a plan "
                "that goes on from its newest version"
            )
        if run.state == FINISHED:
            raise NexusError(
                f"run {name} is finished: {run.done} rounds; `nexus-server plan new NAME --from {name} --rounds N` "
                "writes a plan that continues it"
            )
        if self.registry.spent(run):
            raise NexusError(
                f"run {name} has spent all masked inputs that its plan allows; `nexus-server plan new NAME --from "
                f"{name}` writes a plan that goes on from its newest version"
            )
        if self.registry.versions(name)[-1].state == WITHDRAWN:
            raise NexusError(
                f"the newest version of run {name} is withdrawn, so it cannot go on; `nexus-server plan new NAME "
                f"--from {name} --from-version V` writes a plan that begins before that"
            )

    def stop(self, request: api.RunName) -> api.Status:
        """End the active run after the round in progress, or take back a plan that waits for approvals."""
        active = self.registry.active_run()
        if any(one.plan.name == request.run for one in self.registry.proposals()):
            self.plans.audit.append("plan taken back", name=request.run)
            self.registry.forget_proposal(request.run)
            return self.status(Nothing())
        if active is None or active.plan.name != request.run:
            running = f"{active.plan.name} is" if active else "none is"
            raise NexusError(f"run {request.run!r} is not in progress; {running}")
        self.plans.audit.append("stop", plan=active.plan.hash.hex(), name=request.run)
        self.registry.set_state(request.run, STOPPING, expected=RUNNING)
        self.conductor.wake()
        return self.status(Nothing())

    def status(self, _: Nothing) -> api.Status:
        """What runs now, else what ran last, and what waits for approvals."""
        wanted = next((one.plan for one in self.registry.proposals() if one.wanted), None)
        waits: dict[str, Any] = (
            {"wanted": wanted.name, "approvals_missing": self.conductor.approvals.lacking(wanted)} if wanted else {}
        )
        faults = (self.conductor.problem, self.conductor.approvals.problem, shortage(self.registry.folder))
        waits["problem"], waits["metrics"] = next(filter(None, faults), None), self._metrics
        connected, run = sorted(self.exchange.alive()), self.registry.active_run() or self.registry.last_run()
        if run is None:
            return api.Status(connected=tuple(connected), **waits)
        rounds = [v for v in self.registry.versions(run.plan.name) if v.cohort]
        measured = [v.bytes_up / len(v.cohort) for v in rounds if v.bytes_up is not None]
        phase, rejections = self.conductor.phase, self.registry.rejections(run.plan.name)
        return api.Status(
            run=run.plan.name,
            state=run.state,
            round=run.done,
            rounds=run.plan.rounds,
            phase=phase.name,
            phase_since=phase.since,
            missing=phase.missing,
            quorum=run.plan.quorum,
            sites=len(run.plan.sites),
            in_use=self.registry.in_use(run.plan.name),
            cohort=rounds[-1].cohort if rounds else (),
            failed_rounds=self.registry.failed_rounds(run.plan.name),
            spent=self.registry.spent(run),
            failures=self.registry.last_failure(run),
            taken_back=str(rejections[-1]) if rejections else None,
            trials=tuple(trial_lines(run.plan, line(self.registry, run, run.plan.min_cohort))),
            round_seconds=tuple(v.seconds for v in rounds if v.seconds is not None)[-1000:],
            bytes_up_per_site_round=round(sum(measured) / len(measured)) if measured else None,
            connected=tuple(connected),
            **waits,
        )
