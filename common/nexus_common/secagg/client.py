"""A site's side of nexus-sa/1 (specification, "Site states"): server's bytes in, own bytes or a Refusal out.

Sans-IO: randomness, the durable record and the vector are passed in.  A refusal changes nothing, and no check can be
configured away.  One epoch and one slot are live at a time; their keys live in this object only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from nexus_common.certs import raw_identity
from nexus_common.errors import Refusal
from nexus_common.secagg import epoch, keys
from nexus_common.secagg.labels import label
from nexus_common.secagg.masks import MaskedSum
from nexus_common.secagg.messages import (
    HASH,
    SET,
    TO_SITES,
    Adverts,
    Reader,
    box_size,
    context,
    kind_of,
    members,
    set_sig_body,
    u,
)
from nexus_common.secagg.plan import ProtocolPlan, check
from nexus_common.secagg.shamir import Random

Held = TypeVar("Held")


class State(Enum):
    """Where a site stands in the epoch and the slot."""

    IDLE = auto()
    ADVERTISED = auto()
    SHARED = auto()
    READY = auto()
    MASKED = auto()
    SIGNED = auto()
    OPENED = auto()


_IN_SLOT: Final = frozenset({State.MASKED, State.SIGNED, State.OPENED})
_ALLOWED: Final = {
    "setup": frozenset(State),
    "adverts": frozenset({State.ADVERTISED}),
    "inbox": frozenset({State.SHARED}),
    "round": _IN_SLOT | {State.READY},
    "commit-set": _IN_SLOT,
    "open": _IN_SLOT,
}


class Record(Protocol):
    """What outlives the process, for one plan; each change is on disk before the call returns.

    Inputs are counted over all protocol plans that derive from one consortium plan, openings over all plans.
    """

    def last_epoch(self) -> int:
        """The last epoch that was set up under this plan; 0 before the first."""

    def begin_epoch(self, number: int) -> None:
        """An epoch is being set up."""

    def inputs_sent(self) -> int:
        """Masked inputs that left so far."""

    def count_input(self) -> None:
        """One more is about to leave."""

    def was_opened(self, model_hash: bytes) -> bool:
        """Whether this site helped to open a sum for this model, under any plan."""

    def note_opened(self, *names: bytes) -> None:
        """It is about to, for these; all in one change."""


@dataclass(frozen=True)
class Offer:
    """What a site has for a round: hash of the model it received, and its vector [dim + 1] for when it is wanted."""

    model_hash: bytes
    encode: Callable[[], NDArray[np.int64]]


@dataclass
class _Round:
    """The slot in use."""

    slot: int
    ctx: bytes
    model_hash: bytes
    survivors: int | None = None  # the set signed


class Client:
    """One site under one plan that ``plan.load`` let through; ``min_cohort`` is its policy's own, where larger."""

    def __init__(
        self,
        plan: ProtocolPlan,
        site: str,
        key: Ed25519PrivateKey,
        record: Record,
        random: Random,
        min_cohort: int = 0,
    ) -> None:
        check(plan)
        if (own := (site, raw_identity(key))) not in plan.roster:
            raise Refusal("own-cert", f"site {site!r} with this key is none of the roster's {plan.n}")
        self.plan, self.record, self.state = plan, record, State.IDLE
        self.site = plan.roster.index(own)
        self.min_cohort = min_cohort
        self._key, self._random = key, random
        self._last: tuple[bytes, bytes | None] | None = None  # the last accepted message and its reply
        self._inbox: bytes | None = None  # the one accepted in this epoch
        self._drawn: epoch.Drawn | None = None
        self._dealt: epoch.Dealt | None = None
        self._round: _Round | None = None
        self._steps: dict[str, Callable[[Reader, Offer | None], bytes | None]] = {
            "setup": self._set_up,
            "adverts": self._take_adverts,
            "inbox": self._take_inbox,
            "round": self._mask,
            "commit-set": self._sign,
            "open": self._reveal,
        }

    @property
    def quorum(self) -> int:
        """The fewest sites whose sum this site helps to open."""
        return max(self.plan.quorum, self.min_cohort)

    def handle(self, data: bytes, offer: Offer | None = None) -> bytes | None:
        """The reply to a message (None to an inbox), or a Refusal; ``offer`` is what a round may take.

        A message equal to the last accepted one gets the same reply and has no effect.
        """
        if self._last is not None and data == self._last[0]:
            return self._last[1]
        if self._inbox is not None and data == self._inbox:
            return None  # it comes again where the reply to the round behind it was lost
        kind = kind_of(data, TO_SITES)
        if self.state not in _ALLOWED[kind]:
            raise Refusal("wrong-state", f"{kind}, but this site is {self.state.name.lower()}")
        reply = self._steps[kind](Reader(data, kind), offer)
        self._last = (data, reply)
        return reply

    def _set_up(self, reader: Reader, _: Offer | None) -> bytes:
        plan_hash, number = reader.take(HASH), reader.number(4)
        reader.end()
        if plan_hash != self.plan.hash:
            raise Refusal("plan-not-approved", f"set-up of plan {plan_hash.hex()}; loaded is {self.plan.hash.hex()}")
        if number <= (last := self.record.last_epoch()):
            raise Refusal("epoch-replay", f"epoch {number}; the last one here was {last}, take a higher one")
        self.record.begin_epoch(number)
        self._drawn = epoch.draw(self.plan, self.site, number, self._key, self._random)
        self._dealt = self._round = self._inbox = None
        self.state = State.ADVERTISED
        return self._drawn.advert

    def _take_adverts(self, reader: Reader, _: Offer | None) -> bytes:
        drawn = _there(self._drawn)
        adverts = Adverts.parse(reader.data, self.plan.slots)
        peers = epoch.check_adverts(adverts, self.plan, self.site, self.quorum, drawn)
        boxes, self._dealt = epoch.share(self.plan, self.site, adverts, peers, drawn, self._random)
        self._drawn = None
        self.state = State.SHARED
        body = label("envelopes") + adverts.setup_hash + u(self.site, 1) + b"".join(boxes)
        return keys.signed(self._key, body)

    def _take_inbox(self, reader: Reader, _: Offer | None) -> None:
        dealt = _there(self._dealt)
        setup_hash, recipient = reader.take(HASH), reader.number(1)
        boxes = reader.parts(len(dealt.present) - 1, box_size(self.plan.slots))
        reader.end()
        if (setup_hash, recipient) != (dealt.setup_hash, self.site):
            raise Refusal("wrong-context", f"an inbox for site {recipient} or of another set-up")
        dealt.shares = epoch.unpack(self.plan, self.site, dealt, boxes)
        dealt.box_keys, self._inbox = {}, reader.data
        self.state = State.READY

    def _mask(self, reader: Reader, offer: Offer | None) -> bytes:
        dealt, last = _there(self._dealt), self._round.slot if self._round else -1
        setup_hash, slot, model_hash = reader.take(HASH), reader.number(2), reader.take(HASH)
        reader.end()
        if setup_hash != dealt.setup_hash or offer is None or model_hash != offer.model_hash:
            raise Refusal("wrong-context", "a round of another set-up, or for another model than this site received")
        if not last < slot < self.plan.slots:
            raise Refusal("slot-replay", f"slot {slot} after {last}; the epoch has {self.plan.slots}")
        if self.record.was_opened(model_hash):
            raise Refusal(
                "model-replay", f"a sum for model {model_hash.hex()} was opened before; never two of one model"
            )
        if (sent := self.record.inputs_sent()) >= self.plan.rounds:
            raise Refusal(
                "rounds-spent", f"{sent} inputs were sent, the plan allows {self.plan.rounds}; make a new plan"
            )
        integers = offer.encode()
        if integers.shape != (self.plan.dim + 1,) or integers.dtype != np.int64:
            raise Refusal("codec", f"a vector {integers.shape} of {integers.dtype}; take {self.plan.dim + 1} int64")
        ctx = context(self.plan.hash, setup_hash, slot, model_hash)
        body = label("input") + ctx + u(self.site, 1) + self._masked(integers, dealt.slots[slot], ctx)
        self.record.count_input()
        dealt.slots = {s: secrets for s, secrets in dealt.slots.items() if s > slot}
        dealt.shares = {s: shares for s, shares in dealt.shares.items() if s >= slot}
        self._round, self.state = _Round(slot, ctx, model_hash), State.MASKED
        return keys.signed(self._key, body)

    def _masked(self, integers: NDArray[np.int64], secrets: epoch.Slot, ctx: bytes) -> bytes:
        total = MaskedSum(self.plan.dim + 1, self.plan.mod_bits)
        total.add(integers)
        total.add_mask(keys.self_key(secrets.seed, ctx, self.site), 1)
        for other, shared in secrets.pairs.items():
            total.add_mask(keys.pair_key(shared, ctx, self.site, other), 1 if other > self.site else -1)
        return total.packed()

    def _sign(self, reader: Reader, _: Offer | None) -> bytes:
        now, present = _there(self._round), _there(self._dealt).present
        ctx, survivors = reader.take(HASH), reader.number(SET)
        reader.end()
        if ctx != now.ctx:
            raise Refusal("wrong-context", "a set for another slot, model or set-up")
        if unknown := set(members(survivors)) - set(present):
            raise Refusal("unknown-site", f"sites {sorted(unknown)} are not present in this epoch")
        if not survivors >> self.site & 1:
            raise Refusal("own-input-missing", "the set leaves this site out, whose input the server has")
        if survivors.bit_count() < self.quorum:
            raise Refusal(
                "cohort-too-small", f"{survivors.bit_count()} sites; no sum of fewer than {self.quorum} opens"
            )
        if now.survivors not in (None, survivors):
            raise Refusal("second-set", "another set was signed in this slot; the server has shown two")
        now.survivors = survivors
        if self.state is State.MASKED:
            self.state = State.SIGNED
        return keys.signed(self._key, set_sig_body(ctx, survivors, self.site))

    def _reveal(self, reader: Reader, _: Offer | None) -> bytes:
        now, dealt = _there(self._round), _there(self._dealt)
        ctx, survivors, signers = reader.take(HASH), reader.number(SET), reader.number(SET)
        signatures = reader.parts(signers.bit_count(), keys.SIGNATURE)
        reader.end()
        if ctx != now.ctx:
            raise Refusal("wrong-context", "an opening of another slot, model or set-up")
        if now.survivors is None:
            raise Refusal("set-not-committed", "no set was signed in this slot")
        if survivors != now.survivors:
            raise Refusal("second-set", "another set than the one that this site signed")
        if survivors.bit_count() < self.quorum:  # the policy may have become stricter since
            raise Refusal(
                "cohort-too-small", f"{survivors.bit_count()} sites; no sum of fewer than {self.quorum} opens"
            )
        if signers & ~survivors:
            raise Refusal("unknown-site", f"sites {members(signers & ~survivors)} sign a set without themselves")
        if signers.bit_count() < self.plan.t:
            raise Refusal("too-few-set-signatures", f"{signers.bit_count()} signatures, it takes {self.plan.t}")
        for number, signature in zip(members(signers), signatures, strict=True):
            name, identity = self.plan.roster[number]
            if not keys.is_signed(identity, set_sig_body(ctx, survivors, number), signature):
                raise Refusal("bad-signature", f"{name} did not sign this set")
        if self.state is not State.OPENED and self.record.was_opened(now.model_hash):
            raise Refusal("model-replay", f"a sum for model {now.model_hash.hex()} was opened meanwhile, elsewhere")
        self.record.note_opened(now.model_hash)
        shares = dealt.shares[now.slot]
        for owner, (key_share, seed_share) in shares.items():  # never both: one alone is kept
            shares[owner] = (b"", seed_share) if survivors >> owner & 1 else (key_share, b"")
        self.state = State.OPENED
        body = label("shares") + ctx + u(survivors, SET) + u(self.site, 1)
        return keys.signed(self._key, body + b"".join(a + b for a, b in shares.values()))


def _there(held: Held | None) -> Held:
    """What the state that a message is allowed in always has."""
    if held is None:
        raise RuntimeError("a message was allowed in a state that cannot take it")
    return held
