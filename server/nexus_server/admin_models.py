"""Administration of versions: list them, go back to one, take some out of use."""

from collections.abc import Mapping, Sequence

from nexus_common.audit import AuditLog
from nexus_common.errors import NexusError
from nexus_common.rpc import Method, Nothing
from nexus_common.stages import Stage
from nexus_common.tail import Reported

from nexus_server import admin_api as api
from nexus_server.records import MADE, Run
from nexus_server.registry import Registry
from nexus_server.rounds import Conductor


class ModelAdministration:
    """The calls of ``nexus-server models``."""

    def __init__(self, registry: Registry, conductor: Conductor, audit: AuditLog) -> None:
        self.registry, self.conductor, self.audit = registry, conductor, audit

    def methods(self) -> dict[str, Method]:  # type: ignore[type-arg]
        """Their part of the table."""
        return {
            "models": Method(Nothing, api.VersionList, self.models),
            "rollback": Method(api.Rollback, api.VersionList, self.rollback),
            "withdraw": Method(api.Withdrawal, api.VersionList, self.withdraw),
        }

    def models(self, _: Nothing) -> api.VersionList:
        """All versions."""
        versions, plans = self.registry.versions(), {run.plan.name: run.plan for run in self.registry.all_runs()}
        figures = {run: self.registry.figures(run) for run in {v.run for v in versions}}
        return api.VersionList(
            versions=[
                api.VersionLine(
                    run=v.run,
                    number=v.number,
                    hash=v.hash,
                    cohort=list(v.cohort),
                    created=v.created,
                    seconds=v.seconds,
                    bytes_up=v.bytes_up,
                    state=v.state,
                    arms=self._arms(plans[v.run].stages[v.stage], figures[v.run].get(v.number, [])),
                )
                for v in versions
            ]
        )

    def _arms(self, form: Stage, reported: Sequence[Mapping[str, Reported]]) -> list[api.ArmLine]:
        """Each arm of a version with what was reported of it."""
        told = [{figure: one.value for figure, one in arm.items()} for arm in reported] or [{} for _ in form.arms]
        return [
            api.ArmLine(name=name, dendrites=layout.dendrites, parameters=layout.dim, figures=figures)
            for name, layout, figures in zip(form.names, form.arms, told, strict=True)
        ]

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
        after = min(number for number in states if number > request.version)
        stage, _ = self.registry.adapter(run, request.version)  # of a trial the control goes on
        between = run.plan.stages[stage].control(self.registry.beside(run, request.version, after))
        self.audit.append("rollback", plan=run.plan.hash.hex(), version=request.version)
        if not self.registry.roll_back(run, request.version, between, stage):
            self.audit.append("rollback void", plan=run.plan.hash.hex(), version=request.version)
            raise NexusError("a round was finished in this instant, so nothing was changed; give the command again")
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
            known = ", ".join(one.plan.name for one in self.registry.all_runs()) or "none yet"
            raise NexusError(f"no run {name or ''!r}; runs: {known}")
        return run
