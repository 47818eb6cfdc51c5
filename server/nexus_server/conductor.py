"""What happens next: a plan to ask about, sites to gather for a round, a sum to open, a version to deliver.

It knows no network and no process, only an ``Exchange``, the registry and a clock, so the same code runs a deployment
and fifty simulated sites.
"""

import datetime as dt
import logging
from collections.abc import Callable

from nexus_common.audit import AuditLog
from nexus_common.hours import minute_of
from nexus_common.plan import Plan

from nexus_server.approvals import Approvals
from nexus_server.delivery import Delivery
from nexus_server.exchange import Exchange
from nexus_server.gathering import Gathering
from nexus_server.metrics import Metrics
from nexus_server.phases import LOOK_AGAIN_SECONDS, Phase
from nexus_server.recall import Recall
from nexus_server.records import FINISHED, STOPPED, STOPPING, Run
from nexus_server.registry import Registry
from nexus_server.rounds import Rounds, all_but

log = logging.getLogger(__name__)


class Conductor:
    """Runs whatever run the registry says is active; one thread calls ``turn`` over and over."""

    def __init__(
        self,
        registry: Registry,
        exchange: Exchange,
        identities: Callable[[], dict[str, bytes]],
        audit: AuditLog,
        metrics: Metrics | None = None,
    ) -> None:
        self.registry, self.exchange, self.metrics = registry, exchange, metrics or Metrics()
        self.approvals = Approvals(registry, exchange, identities, audit)
        self.delivery = Delivery(registry, exchange)
        self.recall = Recall(registry, exchange, identities, audit)
        self.gathering = Gathering(registry, exchange)
        self.rounds = Rounds(registry, exchange, self.gathering, self.delivery, audit, self.metrics)
        self.phases = self.rounds.phases
        self.problem: str | None = None  # the fault of the last turn

    @property
    def phase(self) -> Phase:
        """What the run does or waits for now."""
        return self.phases.now

    def wake(self) -> None:
        """Something changed: look at once."""
        self.phases.wake()

    def turn(self) -> None:
        """One step: a plan proposed, a round, a look for missing sites, or a delivery to a site that came late."""
        try:
            self._turn()
        except Exception:
            self.phases.show("faulting")  # until a turn goes well: no round is in progress that this one had begun
            raise

    def _turn(self) -> None:
        self.approvals.consult()
        if self.approvals.begin_wanted():
            return
        run = self.registry.active_run()
        if run is None:
            self._between_runs()
            return
        in_hours = _in_hours(run.plan)
        if run.state == STOPPING or self.rounds.closed(run, in_hours=in_hours):
            self.rounds.end(run, STOPPED if run.state == STOPPING else FINISHED)
        elif self.registry.is_outdated(run.plan.name):
            log.error(
                "run %s stops: its plan was approved in an older form, which this program does not run", run.plan.name
            )
            self.rounds.end(run, STOPPED)
        elif dt.datetime.now(dt.UTC).date() > run.plan.end_date:
            log.warning("run %s stops: its plan ended on %s", run.plan.name, run.plan.end_date)
            self.rounds.end(run, STOPPED)
        elif self.recall.due(run):
            self._recall(run)
        elif not in_hours:
            self.delivery.deliver_in_run(run)
            self.phases.show("resting", (), run.done + 1)
            self.phases.pause(LOOK_AGAIN_SECONDS)
        elif self.rounds.masked.is_opening(run):
            self.rounds.open(run)
        elif self.registry.spent(run):
            log.error("run %s ends: all masked inputs that its plan allows are spent; make a new plan", run.plan.name)
            self.rounds.end(run, FINISHED if run.done >= run.plan.rounds else STOPPED)
        elif cohort := self._gather(run):
            self.rounds.round(run, cohort, close=run.done >= run.plan.rounds)
        else:
            self.phases.pause(LOOK_AGAIN_SECONDS)

    def _recall(self, run: Run) -> None:
        """Hear which versions the sites of a run hold, before any leaves a server that was restored."""
        missing = self.recall.turn(run)
        if self.recall.due(run):
            self.phases.show("recalling", missing, run.done + 1)
            self.phases.pause(LOOK_AGAIN_SECONDS)

    def _gather(self, run: Run) -> list[str]:
        """The sites of the next round, or nothing while too few are ready."""
        plan = run.plan
        self.rounds.take_up(plan)
        self.delivery.deliver_in_run(run)
        self.gathering.prepare(run, self.exchange.alive() & set(plan.names) & self.approvals.approved(plan))
        ready = self.gathering.ready(plan)
        missing = all_but(plan, ready)
        if len(ready) < plan.quorum:
            self.phases.show("waiting", missing, run.done + 1)
            return []
        if missing and self.gathering.still_coming(plan):
            self.phases.show("gathering", missing, run.done + 1)
            return []
        self.gathering.hurry()
        return ready

    def _between_runs(self) -> None:
        """Give the version in use to each connected site that lacks it."""
        run = self.approvals.unheard_origin() or self.registry.last_run()
        if run is not None and self.recall.due(run):
            self._recall(run)
            return
        if run is not None and (lacking := self.delivery.lacking(run)):
            self.phases.show("delivering", (), run.round)
            self.delivery.deliver(run, lacking)
        self.phases.show("idle")
        self.phases.pause(LOOK_AGAIN_SECONDS)

    def site_left(self, site: str) -> None:
        """A site's process ended or a new session began: nothing is known of it any more."""
        self.gathering.forget(site)
        self.rounds.masked.forget(site)
        self.delivery.forget(site)
        self.recall.forget(site)
        self.approvals.forget(site)
        self.wake()


def _in_hours(plan: Plan) -> bool:
    return plan.hours.holds(minute_of(dt.datetime.now(dt.UTC)))
