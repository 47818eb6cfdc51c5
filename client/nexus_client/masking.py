"""A site's update on its way out: kept until a slot opens for it, encoded, masked, and never sent in any other form."""

import os
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_common import certs, tail, wire
from nexus_common.errors import Refusal
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from nexus_common.secagg import codec
from nexus_common.secagg.client import Client, Offer, Record
from nexus_common.secagg.labels import label_of
from nexus_common.secagg.plan import ProtocolPlan, load


class Records(Protocol):
    """What a site keeps over all its plans."""

    def under(self, plan: Plan, protocol: ProtocolPlan) -> Record:
        """The part that counts for one protocol plan; inputs are counted over all that derive from ``plan``."""


@dataclass(frozen=True)
class Made:
    """What training on a model came to: the change, clipped, and the figures of the model itself.

    ``other`` names the same weights in a round of the other kind, closing or not: only one of the two is ever opened.
    """

    model: bytes
    other: bytes
    update: Vector
    figures: dict[str, float]


class Masking:
    """A site's part in secure aggregation under the plan of the run in progress.

    A new process, or a new run, knows no keys: it sits out until the server deals an epoch.
    """

    def __init__(self, site: str, identity: Ed25519PrivateKey, records: Records) -> None:
        self.site, self._identity, self._records = site, identity, records
        self._plan: Plan | None = None
        self._client: Client | None = None
        self._record: Record | None = None
        self.made: Made | None = None

    def take_up(self, plan: Plan) -> None:
        """Get ready for a plan that the site's people have approved; the keys of the plan before are gone."""
        if self._plan is not None and plan.hash == self._plan.hash:
            return
        (derived,) = plan.protocol_plans
        protocol = load(derived.encoded, {derived.hash}, self.site, certs.raw_identity(self._identity))
        self._record = record = self._records.under(plan, protocol)
        self._plan, self._client = plan, Client(protocol, self.site, self._identity, record, os.urandom)
        self.made = None

    def answer(self, message: wire.Ask, min_cohort: int) -> wire.Message:
        """The reply to a message of the protocol, whose sets count only from ``min_cohort`` sites on; or a Refusal."""
        client, plan = self._client, self._plan
        if client is None or plan is None or plan.hash != message.run:
            raise Refusal("wrong-context", "a message for a run that this site was not prepared for")
        client.min_cohort = min_cohort
        if message.inbox and label_of(message.inbox) != "inbox":
            raise Refusal("malformed", "another message in the place of an inbox")
        if message.inbox:
            client.handle(message.inbox)
        made, record = self.made, self._record
        if made and record and label_of(message.data) == "round" and record.was_opened(made.other):
            raise Refusal("model-replay", "the sum for these weights was opened in a round of the other kind")
        offer = Offer(made.model, lambda: _encoded(plan, client, made)) if made else None
        reply = client.handle(message.data, offer)
        if reply is None:
            raise Refusal("malformed", "an inbox alone, which has no reply")
        return wire.Masked(reply) if label_of(reply) == "input" else wire.Say(reply)


def _encoded(plan: Plan, client: Client, made: Made) -> codec.Integers:
    """The update and, behind it, the figures, in fixed point with fresh coins."""
    behind = tail.encode(plan.aggregation.figures, made.figures, plan.aggregation.range)
    values = np.concatenate([made.update.astype(np.float64), behind])
    return codec.encode(client.plan, values, 1, os.urandom)
