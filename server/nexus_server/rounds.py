"""The round logic: gather sites, let them train, average, commit, and say at any time what it waits for.

It knows no network and no process, only an ``Exchange``, the registry and a clock, so the same code runs a deployment
and fifty simulated sites.  A round makes exactly one new version or none.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from nexus_common import wire
from nexus_common.errors import Refusal
from nexus_common.layout import Vector

from nexus_server.aggregate import make_optimiser, mean_update
from nexus_server.exchange import DEADLINE, Exchange, Failure
from nexus_server.records import FINISHED, STOPPED, STOPPING, Run
from nexus_server.registry import Registry

log = logging.getLogger(__name__)
SMALL_TRIP_SECONDS: Final = 10.0
LOOK_AGAIN_SECONDS: Final = 0.5
ASK_AGAIN_SECONDS: Final = 15.0
LONGEST_PAUSE_SECONDS: Final = 600.0
PAUSE_AFTER_FAILURE_SECONDS: Final = 2.0
NORM_SLACK: Final = 1.001  # float32 rounding of a vector that was scaled to exactly clip_norm


@dataclass(frozen=True)
class Phase:
    """What the run does or waits for now."""

    name: str = "idle"  # idle, gathering, waiting, training, delivering
    since: float = field(default_factory=time.time)
    missing: tuple[str, ...] = ()
    round: int | None = None


class Conductor:
    """Runs whatever run the registry says is active; one thread calls ``turn`` over and over."""

    def __init__(self, registry: Registry, exchange: Exchange, identities: Callable[[], dict[str, bytes]]) -> None:
        self.registry, self.exchange, self.identities = registry, exchange, identities
        self.phase = Phase()
        self._ready: dict[str, bytes] = {}  # site -> hash of the plan it is ready for
        self._has: dict[str, tuple[str, int]] = {}  # site -> newest version delivered in this process's life
        self._ask_again: dict[str, tuple[float, float]] = {}  # site -> when it is asked again, the pause before that
        self._taken_up: bytes | None = None  # hash of the plan that this process works on
        self._patience_ends = 0.0  # until when more than min_cohort sites are waited for
        self._wake = threading.Event()

    def wake(self) -> None:
        """Something changed: look at once."""
        self._wake.set()

    def pause(self, seconds: float) -> None:
        """Wait for ``seconds`` or until woken."""
        self._wake.wait(seconds)
        self._wake.clear()

    def turn(self) -> None:
        """One step: a round, a look for missing sites, or a delivery to a site that came late."""
        run = self.registry.active_run()
        if run is None:
            self._deliver_last()
            self._show("idle")
            self.pause(LOOK_AGAIN_SECONDS)
        elif run.state == STOPPING or run.round >= run.plan.rounds:
            self._taken_up = None
            ended = STOPPED if run.state == STOPPING else FINISHED
            if self.registry.set_state(run.plan.name, ended, expected=run.state):
                log.info("run %s %s after round %d", run.plan.name, ended, run.round)
        elif cohort := self._gather(run):
            self._round(run, cohort)
        else:
            self.pause(LOOK_AGAIN_SECONDS)

    def _gather(self, run: Run) -> list[str]:
        """The sites of the next round, or nothing while too few are ready."""
        plan = run.plan
        if self._taken_up != plan.hash:
            self._taken_up, self._patience_ends = plan.hash, time.monotonic() + plan.gather_seconds
            self._ask_again.clear()
        alive = self.exchange.alive() & set(plan.sites)
        self._prepare(run, alive)
        ready = sorted(site for site in alive if self._ready.get(site) == plan.hash)
        missing = tuple(sorted(set(plan.sites) - set(ready)))
        if len(ready) < plan.min_cohort:
            self._show("waiting", missing, run.round + 1)
            return []
        if missing and time.monotonic() < self._patience_ends:
            self._show("gathering", missing, run.round + 1)
            return []
        self._patience_ends = 0.0  # once it trains, nobody is waited for beyond min_cohort
        return ready

    def _prepare(self, run: Run, alive: Collection[str]) -> None:
        """Tell sites that do not say ``ready`` yet which run this is, and hear how far they are."""
        for gone in set(self._ready) - set(alive):
            self._ready.pop(gone, None)  # it may come back as a new process
        unready = [site for site in alive if self._ready.get(site) != run.plan.hash]
        asked = [site for site in unready if self._may_be_asked(site)]
        if not asked:
            return
        message = wire.Prepare(run.plan.canonical)
        for site, answer in self.exchange.ask(dict.fromkeys(asked, message), SMALL_TRIP_SECONDS).items():
            self.registry.note_readiness(site, _readiness(answer))
            if isinstance(answer, wire.Readiness):
                if answer.state == wire.READY:
                    self._ready[site] = run.plan.hash
                continue
            self._ask_later(site)
            log.warning("%s is not ready for run %s: %s", site, run.plan.name, _readiness(answer))

    def _round(self, run: Run, cohort: list[str]) -> None:
        plan, number, started = run.plan, run.round + 1, time.monotonic()
        self._show("training", (), number)
        before = self.exchange.bytes_up()
        vector = self.registry.vector(plan.name, run.round)
        packed = wire.pack(vector)
        request = wire.TrainRound(plan.hash, run.round, packed)
        answers = self.exchange.ask(dict.fromkeys(cohort, request), plan.round_deadline_seconds)
        updates, failures = self._usable(run, packed, answers)
        for site, reason in failures.items():
            self._ready.pop(site, None)
            if reason == DEADLINE:
                self._ask_later(site)
            log.warning("round %d goes on without %s: %s", number, site, reason)
        if len(updates) < plan.min_cohort:
            log.warning("round %d failed: %d of at least %d sites", number, len(updates), plan.min_cohort)
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
        self.registry.commit_round(run, after, optimiser.state(), sorted(updates), seconds, received)
        for site in updates:
            self._has[site] = (plan.name, run.round)
            self._ask_again.pop(site, None)
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

    def _deliver_last(self) -> None:
        """Give the newest version of the last run to each connected site that lacks it."""
        run = self.registry.last_run()
        if run is None:
            return
        newest = (run.plan.name, run.round)
        alive = self.exchange.alive() & set(run.plan.sites)
        lacking = [site for site in alive if self._has.get(site) != newest and self._may_be_asked(site)]
        if not lacking:
            return
        self._show("delivering", (), run.round)
        self._prepare(run, lacking)
        lacking = [site for site in lacking if self._may_be_asked(site)]  # not one that has just refused or was silent
        message = wire.Deliver(run.plan.hash, run.round, wire.pack(self.registry.vector(*newest)))
        for site, answer in self.exchange.ask(dict.fromkeys(lacking, message), SMALL_TRIP_SECONDS).items():
            if isinstance(answer, wire.Received):
                self._has[site] = newest
            else:
                self._ask_later(site)

    def _ask_later(self, site: str) -> None:
        """Leave a site alone for a while, each time longer: one that is stuck must not hold up every round."""
        pause = min(2 * self._ask_again.get(site, (0.0, ASK_AGAIN_SECONDS / 2))[1], LONGEST_PAUSE_SECONDS)
        self._ask_again[site] = (time.monotonic() + pause, pause)

    def _may_be_asked(self, site: str) -> bool:
        return self._ask_again.get(site, (0.0, 0.0))[0] <= time.monotonic()

    def site_left(self, site: str) -> None:
        """A site's process ended or a new one began: nothing is known of it any more."""
        self._ready.pop(site, None)
        self._has.pop(site, None)
        self._ask_again.pop(site, None)

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
