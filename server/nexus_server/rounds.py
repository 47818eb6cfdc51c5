"""The round logic: gather sites, let them train, open the sum, commit, and say at any time what it waits for.

It knows no network and no process, only an ``Exchange``, the registry and a clock, so the same code runs a deployment
and fifty simulated sites.  A round makes exactly one new version or none.
"""

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from nexus_common import wire
from nexus_common.audit import AuditLog
from nexus_common.errors import Refusal
from nexus_common.hours import minute_of
from nexus_common.plan import Plan
from nexus_common.versions import trained_from, vector_hash

from nexus_server.approvals import Approvals
from nexus_server.delivery import Delivery
from nexus_server.exchange import Exchange
from nexus_server.gathering import Gathering, standing_of
from nexus_server.lineage import beside
from nexus_server.masked import Aggregation, ModelSpent, Sum
from nexus_server.metrics import Metrics
from nexus_server.next_version import next_version, require_space
from nexus_server.recall import Recall
from nexus_server.records import FINISHED, STOPPED, STOPPING, Run
from nexus_server.registry import Registry
from nexus_server.safety import take_back

log = logging.getLogger(__name__)
LOOK_AGAIN_SECONDS: Final = 0.5
CLOSING_TRIES: Final = 2
CLOSING_SECONDS: Final = 30.0
PAUSE_AFTER_FAILURE_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Phase:
    """What the run does or waits for now."""

    name: str = "idle"  # idle, resting, recalling, gathering, waiting, training, adding, opening, delivering
    since: float = field(default_factory=time.time)
    missing: tuple[str, ...] = ()
    round: int | None = None


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
        self.registry, self.exchange, self.identities, self.audit = registry, exchange, identities, audit
        self.metrics = metrics or Metrics()
        self.approvals = Approvals(registry, exchange, identities, audit)
        self.delivery = Delivery(registry, exchange)
        self.recall = Recall(registry, exchange, identities, audit)
        self.gathering = Gathering(registry, exchange)
        self._closings = 0  # tries to hear what sites report of a run's last version
        self.masked = Aggregation(registry, exchange)
        self.phase = Phase()
        self._phase_ended = True  # a pause after a failure is part of no phase, though ``phase`` says it until the next
        self.problem: str | None = None  # the fault of the last turn
        self._wake = threading.Event()

    def wake(self) -> None:
        """Something changed: look at once."""
        self._wake.set()

    def pause(self, seconds: float) -> None:
        """Wait for ``seconds`` or until woken."""
        self._wake.wait(seconds)
        self._wake.clear()

    def turn(self) -> None:
        """One step: a plan proposed, a round, a look for missing sites, or a delivery to a site that came late."""
        try:
            self._turn()
        except Exception:
            self._end_phase()
            raise

    def _turn(self) -> None:
        self.approvals.consult()
        if self.approvals.begin_wanted():
            return
        run = self.registry.active_run()
        if run is None:
            self._between_runs()
        elif run.state == STOPPING or self._closed(run):
            self._end(run, STOPPED if run.state == STOPPING else FINISHED)
        elif self.registry.is_outdated(run.plan.name):
            log.error(
                "run %s stops: its plan was approved in an older form, which this program does not run", run.plan.name
            )
            self._end(run, STOPPED)
        elif dt.datetime.now(dt.UTC).date() > run.plan.end_date:
            log.warning("run %s stops: its plan ended on %s", run.plan.name, run.plan.end_date)
            self._end(run, STOPPED)
        elif self.recall.due(run):
            self._recall(run)
        elif not _in_hours(run.plan):
            self._deliver_in_run(run)
            self._show("resting", (), run.done + 1)
            self.pause(LOOK_AGAIN_SECONDS)
        elif self.masked.is_opening(run):
            self._open(run)
        elif self.registry.spent(run):
            log.error("run %s ends: all masked inputs that its plan allows are spent; make a new plan", run.plan.name)
            self._end(run, FINISHED if run.done >= run.plan.rounds else STOPPED)
        elif cohort := self._gather(run):
            self._round(run, cohort, close=run.done >= run.plan.rounds)
        else:
            self.pause(LOOK_AGAIN_SECONDS)

    def _closed(self, run: Run) -> bool:
        """Whether nothing is left to do: all rounds, and what sites report of the last version where it can be had."""
        if run.done < run.plan.rounds:
            return False
        if self._closings < CLOSING_TRIES and self.masked.is_opening(run):
            return False
        told = not run.plan.aggregation.figures or run.round in self.registry.figures(run.plan.name)
        if told or self._closings >= CLOSING_TRIES or not _in_hours(run.plan):
            return True
        if self.gathering.still_coming(run.plan):
            return False
        return len(self.gathering.ready(run.plan)) < run.plan.quorum

    def _end(self, run: Run, state: str) -> None:
        self.gathering.drop()
        if self.registry.set_state(run.plan.name, state, expected=run.state):
            log.info("run %s %s after round %d", run.plan.name, state, run.done)
            self.audit.append(f"run {state}", plan=run.plan.hash.hex(), round=run.done)

    def _recall(self, run: Run) -> None:
        """Hear which versions the sites of a run hold, before any leaves a server that was restored."""
        missing = self.recall.turn(run)
        if self.recall.due(run):
            self._show("recalling", missing, run.done + 1)
            self.pause(LOOK_AGAIN_SECONDS)

    def _gather(self, run: Run) -> list[str]:
        """The sites of the next round, or nothing while too few are ready."""
        plan = run.plan
        if self.gathering.take_up(plan):
            self._closings = 0
        self._deliver_in_run(run)
        self.gathering.prepare(run, self.exchange.alive() & set(plan.names) & self.approvals.approved(plan))
        ready = self.gathering.ready(plan)
        missing = _others(plan, ready)
        if len(ready) < plan.quorum:
            self._show("waiting", missing, run.done + 1)
            return []
        if missing and self.gathering.still_coming(plan):
            self._show("gathering", missing, run.done + 1)
            return []
        self.gathering.hurry()
        return ready

    def _round(self, run: Run, ready: list[str], *, close: bool = False) -> None:
        """Keys for all who are ready, training, their masked sum; a closing round is for what they report alone."""
        plan, number, started, before = run.plan, run.round + 1, time.monotonic(), self.exchange.bytes_up()
        require_space(self.registry, run.form.dim)
        self._closings += close
        self._show("training", _others(plan, ready), run.done + 1)
        left_out: dict[str, str] = {}
        try:
            holding = self.masked.set_up(run, ready)
            left_out |= self.masked.failures
            trained, model, others = self._train(run, holding, close=close)
            left_out |= others
            if len(trained) < plan.quorum:
                raise Refusal("below-threshold", f"{len(trained)} sites have trained, it takes {plan.quorum}")
            self._show("adding", _others(plan, trained), run.done + 1)
            self.masked.collect(run, model, trained)
        except ModelSpent:
            self._leave_out(number, left_out, "training")
            self._go_around(run)
        except Refusal as refusal:
            log.warning("round %d failed: %s", number, refusal)
            lost = self._lost_in_step(left_out)
            self._leave_out(number, left_out, "training")
            self._leave_out(number, lost, self.phase.name)
            left_out |= lost
            self._came_to_nothing(run, left_out or {"": str(refusal)})
        else:
            self._leave_out(number, left_out, "training")
            self._leave_out(number, self._lost_in_step(left_out), "adding")
            self._open(run, time.monotonic() - started, self.exchange.bytes_up() - before)

    def _train(self, run: Run, sites: list[str], *, close: bool) -> tuple[list[str], bytes, dict[str, str]]:
        """The sites that have trained on the newest version, the hash of the model that it was, why others have not."""
        plan, vector = run.plan, self.registry.vector(run.plan.name, run.round)
        use = self.registry.in_use(plan.name) == run.round
        request = wire.TrainRound(plan.hash, run.round, run.stage, int(use), int(close), wire.pack(vector))
        begins = wire.pack(trained_from(plan, run.round, vector))
        model = wire.model_hash(run.form, begins, close=close)
        seconds = plan.round_deadline_seconds * len(run.form.arms)  # each is trained as long as an adapter alone
        answers = self.exchange.ask(dict.fromkeys(sites, request), seconds)
        trained = sorted(site for site, answer in answers.items() if answer == wire.Trained(model))
        for site in trained:
            if use:
                self.delivery.note(site, plan.name, run.round)
        others = {site: standing_of(answers[site]) or "it trained on another model" for site in {*answers} - {*trained}}
        return trained, model, others

    def _lost_in_step(self, earlier: Mapping[str, str]) -> dict[str, str]:
        return {site: why for site, why in self.masked.failures.items() if site not in earlier}

    def _leave_out(self, number: int, failures: Mapping[str, str], phase: str) -> None:
        self.metrics.dropouts[phase].inc(len(failures))
        for site, reason in failures.items():
            self.gathering.leave_out(site, reason)
            log.warning("round %d goes on without %s: %s", number, site, reason)

    def _open(self, run: Run, seconds: float | None = None, received: int | None = None) -> None:
        """The sum becomes the next version; or the round waits, or goes on beside a model that is lost."""
        started, before = time.monotonic(), self.exchange.bytes_up()
        try:
            found = self.masked.open(run)
        except ModelSpent:
            self._go_around(run)
            return
        if found is None:
            self._show("opening", self.masked.missing, run.done + 1)
            if run.done >= run.plan.rounds and time.time() - self.phase.since > CLOSING_SECONDS:
                self._closings = CLOSING_TRIES  # figures alone are not worth waiting for
            self._deliver_in_run(run)  # nobody shall use what is out of use for as long as this takes
            self.pause(LOOK_AGAIN_SECONDS)
            return
        if seconds is not None and received is not None:
            seconds += time.monotonic() - started
            received += self.exchange.bytes_up() - before
        if self._taken_back(run, found):
            return
        if run.done >= run.plan.rounds:
            self.registry.note_figures(run.plan.name, run.round, found.reported)
            return
        self._commit(run, found, seconds, received)

    def _taken_back(self, run: Run, found: Sum) -> bool:
        """Whether the cohort votes the version down that it received: then nothing is made of the sum."""
        rejection = take_back(self.registry, self.audit, run, found.reported)
        if rejection is None:
            return False
        if rejection.back_to is not None:
            self.metrics.rollbacks.inc()
        if rejection.stopped:  # it has been stopped in the same transaction
            self._end(replace(run, state=STOPPED), STOPPED)
        elif run.done >= run.plan.rounds:
            self._end(run, FINISHED)
        return True

    def _commit(self, run: Run, found: Sum, seconds: float | None, received: int | None) -> None:
        plan, number = run.plan, run.round + 1
        made = next_version(self.registry, run, found)
        if made is None:
            log.error("round %d gave a version that is not finite; server.step is too large", number)
            self._go_around(run)
            self._came_to_nothing(self.registry.run(plan.name) or run, {"": "the new version is not finite"})
            return
        require_space(self.registry, len(made.vector))
        digest = vector_hash(wire.pack(made.vector))
        for site in found.cohort:
            self.gathering.pauses.forget(site)
        self.audit.append(
            "version", plan=plan.hash.hex(), version=number, stage=made.stage, sha256=digest, cohort=found.cohort
        )
        measured = found.cohort, seconds, received, found.reported
        if not self.registry.commit_round(run, made.vector, made.optimiser, *measured, made.stage):
            log.warning("round %d is void: its run was rolled back or withdrawn meanwhile", number)
            self.audit.append("version void", plan=plan.hash.hex(), version=number, sha256=digest)
            self._pause_after_failure()
            return
        log.info(
            "run %s, round %d of %d: %d sites, %.2f s", plan.name, number, plan.rounds, len(found.cohort), seconds or 0
        )
        self._end_phase()

    def _go_around(self, run: Run) -> None:
        """No sum of this model will be opened: go on from other weights, made of public ones by a fixed rule."""
        plan, number = run.plan, run.round
        if run.done >= plan.rounds:  # a closing round is worth no version
            self.registry.forget_opening(plan.name)
            return
        vector = beside(self.registry, run, number, number - 1, run.stage)
        log.warning("round %d: its model is spent; training goes on beside it", number + 1)
        digest = vector_hash(wire.pack(vector))
        self.audit.append("model spent", plan=plan.hash.hex(), version=number, beside=digest)
        self.metrics.spent_models.inc(self.registry.go_around(run, vector))
        self._pause_after_failure()

    def _came_to_nothing(self, run: Run, reasons: dict[str, str]) -> None:
        self.registry.note_failed_round(run.plan.name, run.round + 1, reasons)
        self._pause_after_failure()

    def _pause_after_failure(self) -> None:
        self._end_phase()
        self.pause(PAUSE_AFTER_FAILURE_SECONDS)

    def _between_runs(self) -> None:
        """Give the version in use to each connected site that lacks it."""
        run = self.approvals.unheard_origin() or self.registry.last_run()
        if run is not None and self.recall.due(run):
            self._recall(run)
            return
        if run is not None and (lacking := self.delivery.lacking(run)):
            self._show("delivering", (), run.round)
            self.delivery.deliver(run, lacking)
        self._show("idle")
        self.pause(LOOK_AGAIN_SECONDS)

    def _deliver_in_run(self, run: Run) -> None:
        """In a run the version in use comes with the next round; but after a rollback at once.

        So does the word to a site that was away of what is out of use.
        """
        beside = self.registry.in_use(run.plan.name) != run.round
        if sites := self.delivery.lacking(run) if beside else self.delivery.untold(run):
            self.delivery.deliver(run, sites)

    def site_left(self, site: str) -> None:
        """A site's process ended or a new session began: nothing is known of it any more."""
        self.gathering.forget(site)
        self.masked.forget(site)
        self.delivery.forget(site)
        self.recall.forget(site)
        self.approvals.forget(site)
        self.wake()

    def _show(self, name: str, missing: tuple[str, ...] = (), number: int | None = None) -> None:
        if self._phase_ended or (name, number) != (self.phase.name, self.phase.round):
            self._end_phase()
            self.phase, self._phase_ended = Phase(name, time.time(), missing, number), False
        elif missing != self.phase.missing:
            self.phase = replace(self.phase, missing=missing)

    def _end_phase(self) -> None:
        """Measure the phase, once."""
        if not self._phase_ended and self.phase.name in self.metrics.phases:
            self.metrics.phases[self.phase.name].observe(max(0.0, time.time() - self.phase.since))
        self._phase_ended = True


def _others(plan: Plan, sites: Collection[str]) -> tuple[str, ...]:
    """The plan's sites but these."""
    return tuple(site for site in plan.names if site not in sites)


def _in_hours(plan: Plan) -> bool:
    return plan.hours.holds(minute_of(dt.datetime.now(dt.UTC)))
