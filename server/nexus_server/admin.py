"""Administration over a Unix socket in the state folder: what ``nexus-server`` commands ask of the running server."""

import time

from nexus_common.config import nearest
from nexus_common.errors import NexusError
from nexus_common.plan import parse_plan
from nexus_common.rpc import Method, Nothing

from nexus_server.admin_api import (
    InviteLine,
    PlanText,
    RunName,
    SiteLine,
    SiteList,
    SiteName,
    Status,
    VersionLine,
    VersionList,
)
from nexus_server.ca import Enrolment
from nexus_server.exchange import Exchange
from nexus_server.records import FINISHED, RUNNING, STOPPED, STOPPING, Run
from nexus_server.registry import Registry
from nexus_server.rounds import Conductor


class Administration:
    """The methods behind the socket."""

    def __init__(self, registry: Registry, enrolment: Enrolment, conductor: Conductor, exchange: Exchange) -> None:
        self.registry, self.enrolment, self.conductor, self.exchange = registry, enrolment, conductor, exchange

    def methods(self) -> dict[str, Method]:  # type: ignore[type-arg]
        """The table of calls."""
        return {
            "invite": Method(SiteName, InviteLine, self.invite),
            "sites": Method(Nothing, SiteList, self.sites),
            "train": Method(PlanText, Status, self.train),
            "stop": Method(RunName, Status, self.stop),
            "status": Method(Nothing, Status, self.status),
            "models": Method(Nothing, VersionList, self.models),
        }

    def invite(self, request: SiteName) -> InviteLine:
        """Open an invitation."""
        invite = self.enrolment.invite(request.site)
        settings = self.enrolment.settings
        expires = max(row.expires for row in self.registry.invitations() if row.site == request.site)
        return InviteLine(
            line=invite.line, expires=expires, enrol_address=settings.enrol_address, address=settings.address
        )

    def sites(self, _: Nothing) -> SiteList:
        """Enrolled and invited sites."""
        alive, rows = self.exchange.alive(), self.registry.sites()
        lines = [
            SiteLine(
                site=row.name,
                connected=row.name in alive,
                last_seen=row.last_seen,
                certificate_days_left=int((row.expires - time.time()) // 86_400),
                readiness=row.readiness if row.name in alive else None,
            )
            for row in rows
        ]
        enrolled = {row.name for row in rows}
        return SiteList(sites=lines, invited=[s for s in self.registry.open_invitations() if s not in enrolled])

    def train(self, request: PlanText) -> Status:
        """Start a run, or take a stopped one up again."""
        plan = parse_plan(request.text, request.where)
        enrolled = [row.name for row in self.registry.sites()]
        if unknown := [site for site in plan.sites if site not in enrolled]:
            hint = nearest(unknown[0], enrolled)
            raise NexusError(
                f"{request.where}: not enrolled: {', '.join(unknown)}{hint}; enrolled are "
                f"{', '.join(enrolled) or 'none'} (`nexus-server invite SITE`)"
            )
        active = self.registry.active_run()
        if active and active.plan.name != plan.name:
            raise NexusError(
                f"run {active.plan.name} is in progress (round {active.round} of {active.plan.rounds}); "
                f"`nexus-server stop {active.plan.name}` ends it after its round"
            )
        known = self.registry.run(plan.name)
        if known is None:
            first = plan.adapter.layout.first_vector(plan.adapter.seed_bytes)
            self.registry.create_run(plan, first)
        elif known.plan.hash != plan.hash:
            raise NexusError(
                f"run {plan.name} exists with other settings ({_differences(known, request)}); give the "
                "new one another name"
            )
        elif known.state in (STOPPED, STOPPING):
            self.registry.set_state(plan.name, RUNNING, expected=known.state)
        elif known.state == FINISHED:
            raise NexusError(
                f"run {plan.name} is finished: {known.round} rounds; `nexus-server models` lists its "
                "versions; give a new run another name"
            )
        self.conductor.wake()
        return self.status(Nothing())

    def stop(self, request: RunName) -> Status:
        """End the active run after the round in progress."""
        active = self.registry.active_run()
        if active is None or active.plan.name != request.run:
            running = f"{active.plan.name} is" if active else "none is"
            raise NexusError(f"run {request.run!r} is not in progress; {running}")
        self.registry.set_state(request.run, STOPPING, expected=RUNNING)
        self.conductor.wake()
        return self.status(Nothing())

    def status(self, _: Nothing) -> Status:
        """What runs now, else what ran last."""
        connected, run = sorted(self.exchange.alive()), self.registry.active_run() or self.registry.last_run()
        if run is None:
            return Status(connected=tuple(connected))
        rounds = [v for v in self.registry.versions(run.plan.name) if v.number > 0]
        measured = [v.bytes_up / len(v.cohort) for v in rounds if v.bytes_up is not None and v.cohort]
        phase = self.conductor.phase
        return Status(
            run=run.plan.name,
            state=run.state,
            round=run.round,
            rounds=run.plan.rounds,
            phase=phase.name,
            phase_since=phase.since,
            missing=phase.missing,
            min_cohort=run.plan.min_cohort,
            cohort=rounds[-1].cohort if rounds else (),
            failed_rounds=self.registry.failed_rounds(run.plan.name),
            round_seconds=tuple(v.seconds for v in rounds if v.seconds is not None)[-1000:],
            bytes_up_per_site_round=round(sum(measured) / len(measured)) if measured else None,
            connected=tuple(connected),
        )

    def models(self, _: Nothing) -> VersionList:
        """All versions."""
        return VersionList(
            versions=[
                VersionLine(
                    run=v.run,
                    number=v.number,
                    hash=v.hash,
                    cohort=list(v.cohort),
                    created=v.created,
                    seconds=v.seconds,
                    bytes_up=v.bytes_up,
                )
                for v in self.registry.versions()
            ]
        )


def _differences(known: Run, request: PlanText) -> str:
    """Which top-level settings differ."""
    old, new = known.plan.model_dump(), parse_plan(request.text, request.where).model_dump()
    return ", ".join(key for key in new if new[key] != old[key])
