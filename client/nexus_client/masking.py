"""A site's update on its way out: kept until a slot opens for it, encoded, masked, and never sent in any other form."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_common import certs, tail, wire
from nexus_common.errors import Refusal
from nexus_common.layout import Layout, Vector
from nexus_common.plan import Plan
from nexus_common.secagg import codec
from nexus_common.secagg.client import Client, Offer, Record
from nexus_common.secagg.labels import label, label_of
from nexus_common.secagg.plan import ProtocolPlan, load


class Records(Protocol):
    """What a site keeps over all its plans."""

    def under(self, plan: Plan, protocol: ProtocolPlan) -> Record:
        """The part that counts for one protocol plan; inputs are counted over all that derive from ``plan``."""


@dataclass(frozen=True)
class Made:
    """What training on a model, a version in the form ``stage``, came to: each arm's change, clipped, and its figures.

    ``weights`` names what was trained on arm by arm, in whatever round it comes: a closing one or not, in a trial or
    out of it.  A sum of changes of the same weights is opened once.
    """

    model: bytes
    stage: int
    weights: tuple[bytes, ...]
    update: Vector
    figures: Sequence[Mapping[str, float]]


def weights_names(plan: Plan, stage: int, begins: Vector) -> tuple[bytes, ...]:
    """How each arm of the weights that a round begins with is on record."""
    form = plan.stages[stage]
    return tuple(_name(layout, arm) for layout, arm in zip(form.arms, form.split(begins), strict=True))


def _name(layout: Layout, weights: Vector) -> bytes:
    return hashlib.sha256(b"nexus weights 1\n" + layout.hash + wire.pack(weights)).digest()


class _ByWeights:
    """The protocol's record, in which a model counts as opened where any arm's weights do."""

    def __init__(self, record: Record, made: Callable[[], Made | None]) -> None:
        self._record, self._made = record, made
        self._given: Made | None = None  # what the slot in progress has of this site
        self.last_epoch, self.begin_epoch, self.inputs_sent = record.last_epoch, record.begin_epoch, record.inputs_sent

    def count_input(self) -> None:
        self._record.count_input()
        self._given = self._made()

    def was_opened(self, model_hash: bytes) -> bool:
        return any(map(self._record.was_opened, self._names(model_hash)))

    def note_opened(self, *models: bytes) -> None:
        self._record.note_opened(*chain.from_iterable(map(self._names, models)))

    def _names(self, model: bytes) -> list[bytes]:
        known = (one.weights for one in (self._made(), self._given) if one and one.model == model)
        return [model, *next(known, ())]


@dataclass(frozen=True)
class _Part:
    """A site's part under one stage's protocol plan."""

    stage: int
    client: Client


class Masking:
    """A site's part in secure aggregation under the plan of the run in progress.

    A new process, a new run or a new stage knows no keys: it sits out until the server deals an epoch.
    """

    def __init__(self, site: str, identity: Ed25519PrivateKey, records: Records) -> None:
        self.site, self._identity, self._records = site, identity, records
        self._plan: Plan | None = None
        self._part: _Part | None = None
        self.made: Made | None = None

    def take_up(self, plan: Plan) -> None:
        """Get ready for a plan that the site's people have approved; the keys of the plan before are gone."""
        if self._plan is None or plan.hash != self._plan.hash:
            self._plan, self._part, self.made = plan, self._part_in(plan, 0), None

    def _part_in(self, plan: Plan, stage: int) -> _Part:
        derived = plan.protocol_plan(stage)
        protocol = load(derived.encoded, {derived.hash}, self.site, certs.raw_identity(self._identity))
        record = _ByWeights(self._records.under(plan, protocol), lambda: self.made)
        return _Part(stage, Client(protocol, self.site, self._identity, record, os.urandom))

    def answer(self, message: wire.Ask, min_cohort: int) -> wire.Message:
        """The reply to a message of the protocol, whose sets count only from ``min_cohort`` sites on; or a Refusal."""
        plan, part = self._plan, self._part
        if part is None or plan is None or plan.hash != message.run:
            raise Refusal("wrong-context", "a message for a run that this site was not prepared for")
        part = self._dealt_to(plan, part, message.data)
        part.client.min_cohort = min_cohort
        if message.inbox and label_of(message.inbox) != "inbox":
            raise Refusal("malformed", "another message in the place of an inbox")
        if message.inbox:
            part.client.handle(message.inbox)
        reply = part.client.handle(message.data, self._offer(plan, part))
        if reply is None:
            raise Refusal("malformed", "an inbox alone, which has no reply")
        self._part = part
        return wire.Masked(reply) if label_of(reply) == "input" else wire.Say(reply)

    def _dealt_to(self, plan: Plan, part: _Part, data: bytes) -> _Part:
        """Whose message this is: a set-up for another stage begins there anew, where the adapter has grown."""
        setup = label("setup")
        if not data.startswith(setup):
            return part
        hashes = [protocol.hash for protocol in plan.protocol_plans]
        named = data[len(setup) : len(setup) + len(hashes[0])]
        stage = hashes.index(named) if named in hashes else part.stage
        return part if stage == part.stage else self._part_in(plan, stage)

    def _offer(self, plan: Plan, part: _Part) -> Offer | None:
        made = self.made
        if made is None or made.stage != part.stage:
            return None
        return Offer(made.model, lambda: _encoded(plan, part.client, made))


def _encoded(plan: Plan, client: Client, made: Made) -> codec.Integers:
    """The update and, behind it, each arm's figures, in fixed point with fresh coins."""
    tails = (tail.encode(plan.aggregation.figures, arm, plan.aggregation.range) for arm in made.figures)
    values = np.concatenate([made.update.astype(np.float64), *tails])
    return codec.encode(client.plan, values, 1, os.urandom)
