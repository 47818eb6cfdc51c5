"""Administration of plans: write one, put it before its sites, see where they stand."""

from nexus_common.audit import AuditLog
from nexus_common.errors import NexusError
from nexus_common.plan import Plan, parse_plan
from nexus_common.rpc import Method, Nothing

from nexus_server import admin_api as api
from nexus_server.conductor import Conductor
from nexus_server.planning import check_proposal, draft
from nexus_server.registry import Registry


class PlanAdministration:
    """The calls of ``nexus-server plan``."""

    def __init__(self, registry: Registry, conductor: Conductor, audit: AuditLog) -> None:
        self.registry, self.conductor, self.audit = registry, conductor, audit

    def methods(self) -> dict[str, Method]:  # type: ignore[type-arg]
        """Their part of the table."""
        return {
            "new_plan": Method(api.NewPlan, api.PlanDraft, self.new_plan),
            "propose": Method(api.PlanText, api.PlanStanding, self.propose),
            "plans": Method(Nothing, api.PlanList, self.plans),
        }

    def new_plan(self, request: api.NewPlan) -> api.PlanDraft:
        """Write a plan for the coordinator to read, change and propose."""
        return draft(self.registry, request)

    def propose(self, request: api.PlanText) -> api.PlanStanding:
        """Put a plan before its sites."""
        plan = self.checked(request)
        self.put(plan, wanted=False)
        return self._standing(plan)

    def checked(self, request: api.PlanText) -> Plan:
        """The plan of a file or name, as it may be proposed; NexusError otherwise."""
        plan = parse_plan(request.text, request.where) if request.text is not None else self._known(request)
        check_proposal(self.registry, plan, request.where)
        return plan

    def _known(self, request: api.PlanText) -> Plan:
        plan = self.registry.plan(request.where)
        if plan is None:
            known = ", ".join(one.plan for one in self.plans(Nothing()).plans) or "none"
            raise NexusError(f"{request.where} is neither a file nor a plan of this server; plans: {known}")
        return plan

    def put(self, plan: Plan, *, wanted: bool) -> None:
        """Propose a plan, and with ``wanted`` begin its run as soon as it is approved."""
        known = self.registry.plan(plan.name)
        if known is None or known.hash != plan.hash:
            self.audit.append("plan proposed", plan=plan.hash.hex(), name=plan.name, sites=list(plan.names))
        self.registry.propose(plan, wanted=wanted)
        self.conductor.wake()

    def plans(self, _: Nothing) -> api.PlanList:
        """All plans and where their sites stand."""
        proposed = [one.plan for one in self.registry.proposals()]
        ran = [run.plan for run in self.registry.all_runs()]
        return api.PlanList(plans=[self._standing(plan) for plan in (*reversed(proposed), *ran)])

    def _standing(self, plan: Plan) -> api.PlanStanding:
        said = {one.site: one for one in self.registry.standings(plan)}
        run = self.registry.run(plan.name)
        wanted = any(one.wanted for one in self.registry.proposals() if one.plan.hash == plan.hash)
        return api.PlanStanding(
            plan=plan.name,
            hash=plan.hash.hex(),
            became=run.state if run else "wanted" if wanted else "proposed",
            canonical=plan.canonical.decode(),
            sites=[
                api.PlanStanding.Site(site=name, state=one.state, code=one.code, at=one.at)
                if (one := said.get(name))
                else api.PlanStanding.Site(site=name, state="unasked", code="", at=None)
                for name in plan.names
            ],
        )
