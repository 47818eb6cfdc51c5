"""A site's part in a run: typed message in, typed message out; no network, no Flower.

Embedding happens before the site says ``ready``, in a thread of its own, never inside a round.  All sites take the same
fixed number of steps.  An update that was made for a model is kept and sent again, never trained twice.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_common import wire
from nexus_common.errors import NexusError, Refusal
from nexus_common.plan import Plan, plan_from_wire

from nexus_client.cache import NotCached
from nexus_client.train import local_update, warm_up
from nexus_client.versions import StoredAdapter, federated_file
from nexus_client.workspace import Readied, Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What the site is doing, for ``status`` here; the server hears only ``preparing`` or ``ready``."""

    phase: str = "idle"
    done: int = 0
    total: int = 0
    run: str | None = None
    round: int | None = None
    last_round_at: float | None = None
    problem: str | None = None


class SiteRounds:
    """Answers the server's messages for one site."""

    def __init__(self, workspace: Workspace, identity: Ed25519PrivateKey) -> None:
        self.workspace, self.identity = workspace, identity
        self.progress = Progress()
        self._plan: Plan | None = None
        self._readied: Readied | None = None
        self._refusal: Refusal | None = None
        self._preparing: threading.Thread | None = None
        self._made: tuple[bytes, wire.Update] | None = None  # the newest model trained on, and the update
        self._answers: dict[type, Callable[..., wire.Message]] = {
            wire.Prepare: self._prepare,
            wire.TrainRound: self._train,
            wire.Deliver: self._deliver,
        }

    def handle(self, message: wire.Message) -> wire.Message:
        """The answer to a message; Refusal where it is not to be answered."""
        answer = self._answers.get(type(message))
        if answer is None:
            raise Refusal("unknown-message", f"{type(message).__name__} is not for a site")
        return answer(message)

    def _prepare(self, message: wire.Prepare) -> wire.Message:
        plan = plan_from_wire(message.plan)
        if self._plan is None or plan.hash != self._plan.hash:
            self.workspace.check_plan(plan)
            if self._preparing is not None and self._preparing.is_alive():
                return wire.Readiness(wire.PREPARING)  # first finish what was begun for another run
            self._plan, self._readied, self._refusal = plan, None, None
        if self._readied is not None:
            return wire.Readiness(wire.READY)
        if self._refusal is not None:
            refusal, self._refusal, self._plan = self._refusal, None, None
            raise refusal
        if self._preparing is None or not self._preparing.is_alive():
            self._preparing = threading.Thread(target=self._make_ready, args=(plan,), name="prepare", daemon=True)
            self._preparing.start()
        return wire.Readiness(wire.PREPARING)

    def _make_ready(self, plan: Plan) -> None:
        log.info("preparing for run %s", plan.name)
        self.progress = Progress("preparing", run=plan.name)
        try:
            readied = self.workspace.ready(plan.adapter.layout, self._on_embedded)
            warm_up()
            self._readied = readied
            self.progress = Progress("ready", run=plan.name)
            log.info("ready for run %s", plan.name)
        except NexusError as problem:
            log.error("not ready for run %s: %s", plan.name, problem)
            self._refusal = problem if isinstance(problem, Refusal) else Refusal("no-data", str(problem))
            self.progress = Progress("refused", run=plan.name, problem=str(problem))
        except Exception as fault:
            log.exception("preparing met a fault")
            self._refusal = Refusal("site-failed")
            self.progress = Progress("failed", run=plan.name, problem=f"{type(fault).__name__}; see the log")

    def _on_embedded(self, done: int, total: int) -> None:
        self.progress = Progress("preparing", done, total, self.progress.run)
        if done == total or done % 256 < 32:
            log.info("embedded %d of %d texts", done, total)

    def _current(self, run: bytes) -> Plan:
        if self._plan is None or self._plan.hash != run:
            raise Refusal("wrong-context", "a message for a run that this site was not prepared for")
        return self._plan

    def _train(self, message: wire.TrainRound) -> wire.Message:
        plan = self._current(message.run)
        readied = self._readied
        if readied is None:
            raise Refusal("not-ready")
        layout, number = plan.adapter.layout, message.round + 1
        vector = wire.unpack(message.vector, layout)
        model = wire.model_hash(plan.hash, layout, message.round, message.vector)
        if self._made is not None and self._made[0] == model:
            return self._made[1]
        self._store(StoredAdapter(plan, message.round, vector))
        started = time.monotonic()
        self.progress = Progress("training", 0, plan.local.steps, plan.name, number)
        try:
            update = local_update(
                layout,
                vector,
                readied.tasks,
                readied.states,
                plan.local,
                self._rng(model),
                lambda done: self._on_step(done, plan, number),
            )
        except NotCached as problem:
            log.warning("%s", problem)
            self._readied = None
            raise Refusal("not-ready") from None
        data = wire.pack(update)
        answer = wire.signed_update(self.identity, plan.hash, message.round, self.workspace.place.site, model, data)
        self._made = (model, answer)
        self.progress = Progress("ready", run=plan.name, round=number, last_round_at=time.time())
        log.info(
            "round %d of %d: %d steps in %.1f s", number, plan.rounds, plan.local.steps, time.monotonic() - started
        )
        return answer

    def _on_step(self, done: int, plan: Plan, number: int) -> None:
        self.progress = Progress("training", done, plan.local.steps, plan.name, number)

    def _rng(self, model: bytes) -> np.random.Generator:
        """Batches drawn from model and site: a repeated round draws the same ones."""
        return np.random.default_rng([int.from_bytes(model[:8], "little"), *self.workspace.place.site.encode()])

    def _deliver(self, message: wire.Deliver) -> wire.Message:
        plan = self._current(message.run)
        vector = wire.unpack(message.vector, plan.adapter.layout)
        self._store(StoredAdapter(plan, message.round, vector))
        log.info("version %d of run %s received", message.round, plan.name)
        return wire.Received(wire.model_hash(plan.hash, plan.adapter.layout, message.round, message.vector))

    def _store(self, version: StoredAdapter) -> None:
        version.write(federated_file(self.workspace.place.state))
