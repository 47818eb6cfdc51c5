"""A site's part in a run: typed message in, typed message out; no network, no Flower.

Every answer asks the site's policy first: nothing is prepared, trained or sent for a plan that its people have not
approved.
Embedding happens before the site says ``ready``, in a thread of its own, never inside a round.  All sites take the same
fixed number of steps.  An update is kept for the slots of secure aggregation (``masking.py``), the only way in which
anything of it leaves; it is never trained twice for one model.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_common import wire
from nexus_common.disk import shortage
from nexus_common.errors import NexusError, Refusal
from nexus_common.holdings import pack_holdings
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from nexus_common.versions import StoredAdapter, trained_from

from nexus_client import own_rounds
from nexus_client.cache import NotCached
from nexus_client.consent import Consent
from nexus_client.held_out import HeldOut
from nexus_client.masking import Made, Masking, weights_names
from nexus_client.metrics import Metrics, outcome_of
from nexus_client.recall import given, held
from nexus_client.receiving import Receiving
from nexus_client.record import ProtocolRecord
from nexus_client.status import Progress
from nexus_client.taken import check_first, check_newborn, check_number, check_reach, check_stage
from nexus_client.train import local_update, warm_up
from nexus_client.workspace import Readied, Workspace

log = logging.getLogger(__name__)


class SiteRounds:
    """Answers the server's messages for one site."""

    def __init__(
        self,
        workspace: Workspace,
        identity: Ed25519PrivateKey,
        consent: Consent,
        record: ProtocolRecord,
        on_version: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self.workspace, self.identity, self.consent = workspace, identity, consent
        self.record, self.masking = record, Masking(workspace.place.site, identity, record)
        self.receiving = Receiving(workspace.place, consent, on_version)
        self.progress, self._worked_at = Progress(), time.time()
        self._plan: Plan | None = None
        self._readied: Readied | None = None
        self._held_out: HeldOut | None = None
        self._refusal: Refusal | None = None
        self._preparing: threading.Thread | None = None
        self._answers: dict[type, Callable[..., wire.Message]] = {
            wire.Propose: self._propose,
            wire.Prepare: self._prepare,
            wire.TrainRound: self._train,
            wire.Ask: self._ask,
            wire.Deliver: self.receiving.deliver,
            wire.Recall: self._recall,
        }

    def handle(self, message: wire.Message) -> wire.Message:
        """The answer to a message; Refusal where it is not to be answered."""
        answer = self._answers.get(type(message))
        if answer is None:
            raise Refusal("unknown-message", f"{type(message).__name__} is not for a site")
        if not isinstance(message, wire.TrainRound | wire.Ask):
            return answer(message)
        self._worked_at = math.inf
        try:
            return answer(message)
        except Refusal:
            if isinstance(message, wire.TrainRound):
                self.metrics.rounds["refused"].inc()
            raise
        finally:
            self._worked_at = time.time()

    @property
    def worked_at(self) -> float:
        """When this site last did something for a run, infinite while it does; the idle have time for themselves."""
        preparing = self._preparing is not None and self._preparing.is_alive()
        return math.inf if preparing else self._worked_at

    def _propose(self, message: wire.Propose) -> wire.Message:
        plan = self.consent.offer(message.plan)
        return wire.signed_standing(self.identity, plan.hash, self.workspace.place.site, *self.consent.standing(plan))

    def _prepare(self, message: wire.Prepare) -> wire.Message:
        plan = self.consent.offer(message.plan)
        self.consent.require(plan)
        self._require_space()
        if self._plan is None or plan.hash != self._plan.hash:
            self.workspace.check_base(plan)
            if self._preparing is not None and self._preparing.is_alive():
                return wire.Readiness(wire.PREPARING)  # first finish what was begun for another run
            self.masking.take_up(plan)
            self._plan, self._readied, self._refusal = plan, None, None
        if self._readied is not None:
            self._require_rows()
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
            self._require_rows()
            with self.metrics.phases["preparing"].time():
                readied = self.workspace.ready(plan, self._on_embedded)
            warm_up()
            self._held_out = HeldOut(plan, readied.held_out, readied.states)
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

    def _require_space(self) -> None:
        """Refuse to begin what could not be recorded: it would use up masked inputs of the plan, and the run's time."""
        if (lacking := shortage(self.workspace.place.state)) is not None:
            raise Refusal("no-space", lacking)

    def _require_rows(self) -> None:
        found, least = self.workspace.material.rows.train, self.consent.policy.min_rows
        if found < least:
            raise Refusal("too-few-rows", f"{found} training rows, policy.toml wants min_rows = {least}")

    def _on_embedded(self, done: int, total: int) -> None:
        if (plan := self._plan) is not None:
            self.consent.require(plan)  # consent may have been withdrawn meanwhile
        self.progress = Progress("preparing", done, total, self.progress.run)
        if done == total or done % 256 < 32:
            log.info("embedded %d of %d texts", done, total)

    def _current(self, run: bytes) -> Plan:
        if self._plan is None or self._plan.hash != run:
            raise Refusal("wrong-context", "a message for a run that this site was not prepared for")
        return self._plan

    def _train(self, message: wire.TrainRound) -> wire.Message:
        plan = self._current(message.run)
        self.consent.require(plan)
        self._require_space()
        self._material()
        self._require_rows()
        number = message.round + 1
        check_number(plan, message.round)
        form = check_stage(plan, message.stage)
        vector = wire.unpack(message.vector, form)
        check_reach(plan, message.round, vector)
        check_newborn(plan, form, vector)
        if message.round == 0:
            check_first(plan, message.vector)
        begins = trained_from(plan, message.round, vector)
        model = wire.model_hash(form, wire.pack(begins), close=bool(message.close))
        trained = self.masking.made is not None and self.masking.made.model == model
        weights = weights_names(plan, message.stage, begins)
        if not trained:
            self.record.begin_model(plan, model, weights)
        if message.use:
            self.receiving.store(StoredAdapter(plan, message.round, form.control(vector), form.arms[0]))
        if trained:
            return wire.Trained(model)
        started = time.monotonic()
        self.progress = Progress("training", 0, plan.local.steps, plan.name, number)
        with self.metrics.phases["training"].time():
            figures, update = self._work(plan, message, begins, model)
        self._require_consent(plan, number)
        self.masking.made = Made(model, message.stage, weights, update, figures)
        self.metrics.rounds[outcome_of(message, figures)].inc()
        own_rounds.note(self.workspace.place.own_rounds_file, message, time.monotonic() - started, figures)
        self.progress = replace(self.progress, phase="ready", last_round_at=time.time())
        log.info(
            "round %d of %d: %d steps in %.1f s", number, plan.rounds, plan.local.steps, time.monotonic() - started
        )
        return wire.Trained(model)

    def _recall(self, message: wire.Recall) -> wire.Message:
        plan, place = self.consent.plan(message.run), self.workspace.place
        if message.wanted:
            return wire.Given(given(place, plan, message.wanted.hex()))
        return wire.Holds(pack_holdings(held(place, plan)))

    def _material(self) -> tuple[Readied, HeldOut]:
        """What preparing has left; Refusal ``not-ready`` before that."""
        if self._readied is None or self._held_out is None:
            raise Refusal("not-ready")
        return self._readied, self._held_out

    def _require_consent(self, plan: Plan, number: int) -> None:
        """It may have been withdrawn while the site trained."""
        try:
            self.consent.require(plan)
        except Refusal as refusal:
            self.progress = Progress("refused", run=plan.name, round=number, problem=str(refusal))
            raise

    def _work(
        self, plan: Plan, message: wire.TrainRound, begins: Vector, model: bytes
    ) -> tuple[list[dict[str, float]], Vector]:
        """Figures and update of each arm, for the sum alone: whatever goes wrong with these rows, the server hears the
        same.

        With weights of its own choice it could otherwise ask for any text whether it is here.  All arms of a trial
        train on the same batches.
        """
        (readied, held_out), number, form = self._material(), message.round + 1, plan.stages[message.stage]
        nothing = np.zeros(form.dim, np.float32)
        try:
            arms = list(zip(form.arms, form.split(begins), strict=True))
            figures = [held_out.report(layout, weights) for layout, weights in arms]
            if message.close:
                return figures, nothing
            draws, updates = self.record.draws(model), list[Vector]()
            for (layout, weights), told in zip(arms, figures, strict=True):
                rng, losses = np.random.default_rng(draws), list[float]()
                self.metrics.begin_steps()
                on_step = partial(self._on_step, plan=plan, number=number, losses=losses)
                data = readied.tasks, readied.states, plan.local
                updates.append(local_update(layout, weights, *data, rng, on_step, self.workspace.layer))
                told["train_loss"] = float(np.mean(losses))
            return figures, np.concatenate(updates)
        except NotCached as fault:
            log.warning("%s", fault)
            self._readied = None
            raise Refusal("not-ready") from None
        except Exception as fault:
            self._require_consent(plan, number)  # that it was withdrawn is what ended the training, and may be said
            known = isinstance(fault, NexusError)
            log.error("round %d: this site adds zeros: %s", number, fault, exc_info=None if known else fault)
            text = f"round {number}: {fault if known else type(fault).__name__}; zeros were sent in its place"
            self.progress = replace(self.progress, problem=text)
            return [{} for _ in form.arms], nothing

    def _ask(self, message: wire.Ask) -> wire.Message:
        plan = self._current(message.run)
        self.consent.require(plan)
        with self.metrics.phases["masking"].time():
            return self.masking.answer(message, self.consent.policy.min_cohort)

    def _on_step(self, done: int, loss: float, plan: Plan, number: int, losses: list[float]) -> None:
        self.consent.require(plan)  # consent may have been withdrawn meanwhile
        losses.append(loss)
        self.metrics.count_step()
        self.progress = Progress("training", done, plan.local.steps, plan.name, number)
