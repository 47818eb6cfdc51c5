"""Administration of versions: list them, report on them, go back to one, take some out of use."""

from nexus_common.audit import AuditLog
from nexus_common.config import nearest
from nexus_common.errors import NexusError
from nexus_common.report import Report
from nexus_common.rpc import Method, Nothing

from nexus_server import admin_api as api
from nexus_server.conductor import Conductor
from nexus_server.lineage import back_to
from nexus_server.records import MADE, Run
from nexus_server.registry import Registry
from nexus_server.run_report import report_of, version_lines


class ModelAdministration:
    """The calls of ``nexus-server models`` and ``report``."""

    def __init__(self, registry: Registry, conductor: Conductor, audit: AuditLog) -> None:
        self.registry, self.conductor, self.audit = registry, conductor, audit

    def methods(self) -> dict[str, Method]:  # type: ignore[type-arg]
        """Their part of the table."""
        return {
            "models": Method(Nothing, api.VersionList, self.models),
            "rollback": Method(api.Rollback, api.VersionList, self.rollback),
            "withdraw": Method(api.Withdrawal, api.VersionList, self.withdraw),
            "report": Method(api.RunChoice, Report, self.report),
        }

    def models(self, _: Nothing) -> api.VersionList:
        """All versions."""
        versions = self.registry.versions()  # first: a round may be committed before the lines below are read
        of_run = {run.plan.name: version_lines(self.registry, run) for run in self.registry.all_runs()}
        return api.VersionList(
            versions=[api.NumberedVersion(run=v.run, hash=v.hash, **dict(of_run[v.run][v.number])) for v in versions],
            notes=tuple(
                f"run {run.plan.name}: {rejection}"
                for run in reversed(self.registry.all_runs())
                for rejection in self.registry.rejections(run.plan.name)
            ),
        )

    def report(self, request: api.RunChoice) -> Report:
        """What a page says of a run."""
        return report_of(self.registry, self._named(request.run))

    def rollback(self, request: api.Rollback) -> api.VersionList:
        """Use an earlier version at once; training goes on from between it and its successor ("Recovery")."""
        run = self._named(request.run)
        states = {v.number: v.state for v in self.registry.versions(run.plan.name)}
        in_use = self.registry.in_use(run.plan.name)
        if states.get(request.version) != MADE or request.version == in_use:
            good = ", ".join(str(number) for number, state in states.items() if state == MADE and number != in_use)
            raise NexusError(
                f"version {request.version} of run {run.plan.name} cannot be gone back to; these can: {good or 'none'}"
            )
        between, stage = back_to(self.registry, run, request.version)
        self.audit.append("rollback", plan=run.plan.hash.hex(), version=request.version)
        if not self.registry.roll_back(run, request.version, between, stage):
            self.audit.append("rollback void", plan=run.plan.hash.hex(), version=request.version)
            raise NexusError("a round was finished in this instant, so nothing was changed; give the command again")
        self.conductor.metrics.rollbacks.inc()
        self.conductor.wake()
        return self.models(Nothing())

    def withdraw(self, request: api.Withdrawal) -> api.VersionList:
        """Take versions out of use for good; sites get the one before at their next contact."""
        run = self._named(request.run)
        name = run.plan.name
        if not 1 <= request.first <= request.last <= run.round:
            raise NexusError(
                f"run {name} has versions 1 to {run.round} to withdraw, not {request.first}..{request.last} (where it "
                "began, version 0, belongs to the run before, if to any)"
            )
        facts: dict[str, str | int] = {"plan": run.plan.hash.hex(), "first": request.first, "last": request.last}
        self.audit.append("versions withdrawn", **facts)
        if (newest := self.registry.withdraw(name, request.first, request.last)) != request.last:
            self.audit.append("versions withdrawn void", **facts)
            raise NexusError(
                f"versions {request.last + 1} to {newest} of run {name} were trained from these and learnt the same, "
                f"so nothing was changed; withdraw {request.first}..{newest}"
            )
        self.conductor.wake()
        return self.models(Nothing())

    def _named(self, name: str | None) -> Run:
        run = self.registry.run(name) if name else self.registry.last_run()
        if run is None:
            known = [one.plan.name for one in self.registry.all_runs()]
            if name is None or not known:
                raise NexusError("there is no run yet: nexus-server plan new, plan propose, train")
            raise NexusError(f"there is no run {name!r}; runs: {', '.join(known)}{nearest(name, known)}")
        return run
