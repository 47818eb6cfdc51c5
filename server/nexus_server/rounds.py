"""The round logic: gather sites, let them train, average, commit, and say at any time what it waits for.

It knows no network and no process, only an ``Exchange``, the registry and a clock, so the same code runs a deployment
and fifty simulated sites.  A round makes exactly one new version or none.
"""

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from nexus_common import wire
from nexus_common.audit import AuditLog
from nexus_common.errors import Refusal
from nexus_common.hours import minute_of
from nexus_common.layout import Vector
from nexus_common.versions import vector_hash

from nexus_server.aggregate import make_optimiser, mean_update
from nexus_server.approvals import Approvals
from nexus_server.delivery import Delivery
from nexus_server.exchange import DEADLINE, SMALL_TRIP_SECONDS, Exchange, Failure
from nexus_server.pauses import Pauses
from nexus_server.records import FINISHED, RUNNING, STOPPED, STOPPING, Run
from nexus_server.registry import Registry

log = logging.getLogger(__name__)
LOOK_AGAIN_SECONDS: Final = 0.5
PAUSE_AFTER_FAILURE_SECONDS: Final = 2.0
NOT_READY: Final = "refused: not-ready"
NORM_SLACK: Final = 1.001  # float32 rounding of a vector that was scaled to exactly clip_norm


@dataclass(frozen=True)
class Phase:
    """What the run does or waits for now."""

    name: str = "idle"  # idle, resting, gathering, waiting, training, delivering
    since: float = field(default_factory=time.time)
    missing: tuple[str, ...] = ()
    round: int | None = None


class Conductor:
    """Runs whatever run the registry says is active; one thread calls ``turn`` over and over."""

    def __init__(
        self, registry: Registry, exchange: Exchange, identities: Callable[[], dict[str, bytes]], audit: AuditLog
    ) -> None:
        self.registry, self.exchange, self.identities, self.audit = registry, exchange, identities, audit
        self.approvals = Approvals(registry, exchange, identities, audit)
        self.delivery = Delivery(registry, exchange)
        self.phase = Phase()
        self.problem: str | None = None  # the fault of the last turn
        self._ready: dict[str, bytes] = {}  # site -> hash of the plan it is ready for
        self._pauses = Pauses()
        self._taken_up: bytes | None = None  # hash of the plan that this process works on
        self._patience_ends = 0.0  # until when more than a quorum of sites is waited for
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
        self.approvals.consult()
        if self.approvals.begin_wanted():
            return
        run = self.registry.active_run()
        if run is None:
            self._deliver(self.registry.last_run())
            self._show("idle")
            self.pause(LOOK_AGAIN_SECONDS)
        elif run.state == STOPPING or run.done >= run.plan.rounds:
            self._end(run, STOPPED if run.state == STOPPING else FINISHED)
        elif (now := dt.datetime.now(dt.UTC)).date() > run.plan.end_date:
            log.warning("run %s stops: its plan ended on %s", run.plan.name, run.plan.end_date)
            self._end(run, STOPPED)
        elif not run.plan.hours.holds(minute_of(now)):
            self._deliver_rolled_back(run)
            self._show("resting", (), run.done + 1)
            self.pause(LOOK_AGAIN_SECONDS)
        elif cohort := self._gather(run):
            self._round(run, cohort)
        else:
            self.pause(LOOK_AGAIN_SECONDS)

    def _end(self, run: Run, state: str) -> None:
        self._taken_up = None
        if self.registry.set_state(run.plan.name, state, expected=run.state):
            log.info("run %s %s after round %d", run.plan.name, state, run.done)
            self.audit.append(f"run {state}", plan=run.plan.hash.hex(), round=run.done)

    def _gather(self, run: Run) -> list[str]:
        """The sites of the next round, or nothing while too few are ready."""
        plan = run.plan
        if self._taken_up != plan.hash:
            self._taken_up, self._patience_ends = plan.hash, time.monotonic() + plan.gather_seconds
            self._pauses.forget_all()
        alive = self.exchange.alive() & set(plan.names)
        self._deliver_rolled_back(run)
        self._prepare(run, alive & self.approvals.approved(plan))
        ready = sorted(site for site in alive if self._ready.get(site) == plan.hash)
        missing = tuple(sorted(set(plan.names) - set(ready)))
        if len(ready) < plan.quorum:
            self._show("waiting", missing, run.done + 1)
            return []
        if missing and time.monotonic() < self._patience_ends:
            self._show("gathering", missing, run.done + 1)
            return []
        self._patience_ends = 0.0  # once it trains, nobody is waited for beyond the quorum
        return ready

    def _prepare(self, run: Run, sites: Collection[str]) -> None:
        """Tell sites that do not say ``ready`` yet which run this is, and hear how far they are."""
        for gone in set(self._ready) - set(sites):
            self._ready.pop(gone, None)  # it may come back as a new process
        unready = [site for site in sites if self._ready.get(site) != run.plan.hash]
        asked = [site for site in unready if self._pauses.over(site)]
        if not asked:
            return
        message = wire.Prepare(run.plan.canonical)
        for site, answer in self.exchange.ask(dict.fromkeys(asked, message), SMALL_TRIP_SECONDS).items():
            self.registry.note_readiness(site, _readiness(answer))
            if isinstance(answer, wire.Readiness):
                if answer.state == wire.READY:
                    self._ready[site] = run.plan.hash
                continue
            self._pauses.begin(site)
            log.warning("%s is not ready for run %s: %s", site, run.plan.name, _readiness(answer))

    def _round(self, run: Run, cohort: list[str]) -> None:
        plan, number, started = run.plan, run.round + 1, time.monotonic()
        self._show("training", (), run.done + 1)
        before = self.exchange.bytes_up()
        vector = self.registry.vector(plan.name, run.round)
        packed, use = wire.pack(vector), self.registry.in_use(plan.name) == run.round
        request = wire.TrainRound(plan.hash, run.round, int(use), packed)
        answers = self.exchange.ask(dict.fromkeys(cohort, request), plan.round_deadline_seconds)
        updates, failures = self._usable(run, packed, answers)
        for site, reason in failures.items():
            self._ready.pop(site, None)
            if reason == DEADLINE or (reason.startswith("refused: ") and reason != NOT_READY):
                self._pauses.begin(site)
            log.warning("round %d goes on without %s: %s", number, site, reason)
        if len(updates) < plan.quorum:
            log.warning("round %d failed: %d of at least %d sites", number, len(updates), plan.quorum)
            self._came_to_nothing(run, failures)
            return
        optimiser = make_optimiser(plan.server, plan.adapter.layout.dim)
        optimiser.restore(self.registry.optimiser_state(run))
        after = optimiser.apply(vector, mean_update(list(updates.values())))
        if not np.isfinite(after).all():  # every site would refuse it for ever
            log.error("round %d gave a version that is not finite; server.step is too large", number)
            self._came_to_nothing(run, {"": "the new version is not finite"})
            return
        seconds, received = time.monotonic() - started, self.exchange.bytes_up() - before
        members, digest = sorted(updates), vector_hash(wire.pack(after))
        self.audit.append("version", plan=plan.hash.hex(), version=number, sha256=digest, cohort=members)
        if not self.registry.commit_round(run, after, optimiser.state(), members, seconds, received):
            log.warning("round %d is void: its run was rolled back or withdrawn meanwhile", number)
            self.audit.append("version void", plan=plan.hash.hex(), version=number, sha256=digest)
            self.pause(PAUSE_AFTER_FAILURE_SECONDS)
            return
        for site in updates:
            self._pauses.forget(site)
            if use:
                self.delivery.note(site, plan.name, run.round)
        log.info("run %s, round %d of %d: %d sites, %.2f s", plan.name, number, plan.rounds, len(updates), seconds)

    def _came_to_nothing(self, run: Run, reasons: dict[str, str]) -> None:
        self.registry.note_failed_round(run.plan.name, run.round + 1, reasons)
        self.pause(PAUSE_AFTER_FAILURE_SECONDS)

    def _usable(
        self, run: Run, packed: bytes, answers: dict[str, wire.Message | Failure]
    ) -> tuple[dict[str, Vector], dict[str, str]]:
        """Updates that are exactly what was asked for, and why the others are not."""
        plan, layout, identities = run.plan, run.plan.adapter.layout, self.identities()
        model = wire.model_hash(plan.hash, layout, run.round, packed)
        updates: dict[str, Vector] = {}
        failures: dict[str, str] = {}
        for site, answer in answers.items():
            try:
                if not isinstance(answer, wire.Update):
                    failures[site] = _readiness(answer) or "not an update"
                    continue
                wire.verify_update(identities[site], plan.hash, run.round, site, model, answer)
                updates[site] = bounded(wire.unpack(answer.vector, layout), plan.local.clip_norm)
            except Refusal as refusal:
                failures[site] = str(refusal)
        return updates, failures

    def _deliver(self, run: Run | None) -> None:
        """Give the version in use to each connected site that lacks it."""
        if run is not None and (lacking := self.delivery.lacking(run)):
            if run.state != RUNNING:
                self._show("delivering", (), run.round)
            self.delivery.deliver(run, lacking)

    def _deliver_rolled_back(self, run: Run) -> None:
        """After a rollback what is in use changes at once; otherwise the version comes with the next round."""
        if self.registry.in_use(run.plan.name) != run.round:
            self._deliver(run)

    def site_left(self, site: str) -> None:
        """A site's process ended or a new session began: nothing is known of it any more."""
        self._ready.pop(site, None)
        self._pauses.forget(site)
        self.delivery.forget(site)
        self.approvals.forget(site)
        self.wake()

    def _show(self, name: str, missing: tuple[str, ...] = (), number: int | None = None) -> None:
        old = self.phase
        if (name, number) != (old.name, old.round):
            self.phase = Phase(name, time.time(), missing, number)
        elif missing != old.missing:
            self.phase = replace(old, missing=missing)


def bounded(update: Vector, clip_norm: float) -> Vector:
    """The update itself; Refusal ``norm-bound`` where its L2 norm exceeds the run's bound."""
    norm = float((update.astype("f8") ** 2).sum() ** 0.5)
    if norm > clip_norm * NORM_SLACK:
        raise Refusal("norm-bound", f"L2 norm {norm:.3f}, the run's clip_norm is {clip_norm}")
    return update


def _readiness(answer: wire.Message | Failure) -> str | None:
    """How an answer that is no result reads in ``sites`` and the log."""
    if isinstance(answer, wire.Readiness):
        return answer.state
    if isinstance(answer, wire.Refused):
        return f"refused: {answer.code}"
    return answer.reason if isinstance(answer, Failure) else None
