"""One round of a run: keys, training, the masked sum, and the version that comes of it, or none.

It knows no network and no process, only an ``Exchange`` and the registry.  A round makes exactly one new version or
none, in one transaction.
"""

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from nexus_common import wire
from nexus_common.audit import AuditLog
from nexus_common.errors import Refusal
from nexus_common.plan import Plan
from nexus_common.versions import trained_from, vector_hash

from nexus_server.delivery import Delivery
from nexus_server.exchange import Exchange
from nexus_server.gathering import Gathering, standing_of
from nexus_server.lineage import beside
from nexus_server.masked import Aggregation, ModelSpent, Sum
from nexus_server.metrics import Metrics
from nexus_server.next_version import next_version, require_space
from nexus_server.phases import LOOK_AGAIN_SECONDS, Phases
from nexus_server.records import FINISHED, STOPPED, Run
from nexus_server.registry import Registry
from nexus_server.safety import take_back

log = logging.getLogger(__name__)
CLOSING_TRIES: Final = 2
CLOSING_SECONDS: Final = 30.0


class Rounds:
    """The rounds of one run after the other."""

    def __init__(
        self,
        registry: Registry,
        exchange: Exchange,
        gathering: Gathering,
        delivery: Delivery,
        audit: AuditLog,
        metrics: Metrics,
    ) -> None:
        self.registry, self.exchange, self.gathering, self.delivery = registry, exchange, gathering, delivery
        self.audit, self.metrics, self.phases = audit, metrics, Phases(metrics)
        self.masked = Aggregation(registry, exchange)
        self._closings = 0  # tries to hear what sites report of a run's last version

    def take_up(self, plan: Plan) -> None:
        """This process begins, or goes on, with the run of a plan."""
        if self.gathering.take_up(plan):
            self._closings = 0

    def closed(self, run: Run, *, in_hours: bool) -> bool:
        """Whether nothing is left to do: all rounds, and what sites report of the last version where it can be had."""
        if run.done < run.plan.rounds:
            return False
        if self._closings < CLOSING_TRIES and self.masked.is_opening(run):
            return False
        told = not run.plan.aggregation.figures or run.round in self.registry.figures(run.plan.name)
        if told or self._closings >= CLOSING_TRIES or not in_hours:
            return True
        if self.gathering.still_coming(run.plan):
            return False
        return len(self.gathering.ready(run.plan)) < run.plan.quorum

    def end(self, run: Run, state: str) -> None:
        """No round of this run begins any more."""
        self.gathering.drop()
        if self.registry.set_state(run.plan.name, state, expected=run.state):
            log.info("run %s %s after round %d", run.plan.name, state, run.done)
            self.audit.append(f"run {state}", plan=run.plan.hash.hex(), round=run.done)

    def round(self, run: Run, ready: list[str], *, close: bool = False) -> None:
        """Keys for all who are ready, training, their masked sum; a closing round is for what they report alone."""
        plan, number, started, before = run.plan, run.round + 1, time.monotonic(), self.exchange.bytes_up()
        require_space(self.registry, run.form.dim)
        self._closings += close
        self.phases.show("training", all_but(plan, ready), run.done + 1)
        left_out: dict[str, str] = {}
        try:
            holding = self.masked.set_up(run, ready)
            left_out |= self.masked.failures
            trained, model, others = self._train(run, holding, close=close)
            left_out |= others
            if len(trained) < plan.quorum:
                raise Refusal("below-threshold", f"{len(trained)} sites have trained, it takes {plan.quorum}")
            self.phases.show("adding", all_but(plan, trained), run.done + 1)
            self.masked.collect(run, model, trained)
        except ModelSpent:
            self._leave_out(number, left_out, "training")
            self._go_around(run)
        except Refusal as refusal:
            log.warning("round %d failed: %s", number, refusal)
            lost = self._lost_in_step(left_out)
            self._leave_out(number, left_out, "training")
            self._leave_out(number, lost, self.phases.now.name)
            left_out |= lost
            self._came_to_nothing(run, left_out or {"": str(refusal)})
        else:
            self._leave_out(number, left_out, "training")
            self._leave_out(number, self._lost_in_step(left_out), "adding")
            self.open(run, time.monotonic() - started, self.exchange.bytes_up() - before)

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

    def open(self, run: Run, seconds: float | None = None, received: int | None = None) -> None:
        """The sum becomes the next version; or the round waits, or goes on beside a model that is lost."""
        started, before = time.monotonic(), self.exchange.bytes_up()
        try:
            found = self.masked.open(run)
        except ModelSpent:
            self._go_around(run)
            return
        if found is None:
            self.phases.show("opening", self.masked.missing, run.done + 1)
            if run.done >= run.plan.rounds and time.time() - self.phases.now.since > CLOSING_SECONDS:
                self._closings = CLOSING_TRIES  # figures alone are not worth waiting for
            self.delivery.deliver_in_run(run)  # nobody shall use what is out of use for as long as this takes
            self.phases.pause(LOOK_AGAIN_SECONDS)
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
            self.end(replace(run, state=STOPPED), STOPPED)
        elif run.done >= run.plan.rounds:
            self.end(run, FINISHED)
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
            self.phases.pause_after_failure()
            return
        log.info(
            "run %s, round %d of %d: %d sites, %.2f s", plan.name, number, plan.rounds, len(found.cohort), seconds or 0
        )
        self.phases.end()

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
        self.phases.pause_after_failure()

    def _came_to_nothing(self, run: Run, reasons: dict[str, str]) -> None:
        self.registry.note_failed_round(run.plan.name, run.round + 1, reasons)
        self.phases.pause_after_failure()


def all_but(plan: Plan, sites: Collection[str]) -> tuple[str, ...]:
    """The plan's sites but these."""
    return tuple(site for site in plan.names if site not in sites)
