"""The server's side of nexus-sa/1 (specification, "Server states"): sites' bytes in; own bytes, the sum, a Refusal out.

Its checks keep an honest run from failing obscurely; nothing secret rests on them.  It keeps the sum of the masked
inputs, and none of them.  What a message makes is the same bytes however often it is asked for.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, combinations, islice
from typing import Final

from nexus_common.errors import Refusal
from nexus_common.secagg import keys, shamir
from nexus_common.secagg.labels import label
from nexus_common.secagg.masks import MaskedSum
from nexus_common.secagg.messages import (
    HASH,
    SET,
    Advert,
    Adverts,
    Reader,
    advert_size,
    box_size,
    context,
    members,
    set_of,
    u,
)
from nexus_common.secagg.plan import ProtocolPlan

_MOST_ATTEMPTS: Final = 500


@dataclass(frozen=True)
class Opening:
    """What has to be on disk before ``open`` leaves; with it a restarted server goes on."""

    adverts: bytes
    slot: int
    model_hash: bytes
    message: bytes  # the open message: context, set and signatures
    masked: bytes  # the packed sum of the set's masked inputs


@dataclass
class _Trip:
    """Replies of one kind that are awaited: a head that is the same for all, site number, payload, signature."""

    kind: str
    head: bytes
    size: int
    senders: frozenset[int]
    heard: dict[int, bytes] = field(default_factory=dict)  # site -> its message, or its hash where it is an input

    def accept(self, data: bytes, plan: ProtocolPlan) -> int | None:
        """The sender's number, None where it said the same before, or a Refusal."""
        named = data.startswith(label(self.kind))
        if not named or len(data) != self.size:
            code = "input" if named and self.kind == "input" else "malformed"
            raise Refusal(code, f"{len(data)} bytes {data[:24]!r}; awaited: {self.kind} of {self.size} bytes")
        site = data[len(self.head)]
        if site not in self.senders:
            raise Refusal("unknown-site", f"{self.kind} of site {site}; awaited from {sorted(self.senders)}")
        if not data.startswith(self.head):
            raise Refusal(
                "wrong-context", f"{self.kind} of {plan.roster[site][0]} for another plan, epoch, slot or set"
            )
        name, identity = plan.roster[site]
        if not keys.is_signed(identity, data[: -keys.SIGNATURE], data[-keys.SIGNATURE :]):
            raise Refusal("bad-signature", f"{name} did not sign this {self.kind}")
        kept = keys.digest(data) if self.kind == "input" else data
        if (before := self.heard.get(site)) is not None:
            if before != kept:
                raise Refusal("duplicate", f"{name} sent two different messages {self.kind}")
            return None
        self.heard[site] = kept
        return site

    def payload(self, site: int) -> bytes:
        """What a site sent, between its number and the signature."""
        return self.heard[site][len(self.head) + 1 : -keys.SIGNATURE]


class Server:
    """One epoch of one plan."""

    def __init__(self, plan: ProtocolPlan, epoch: int) -> None:
        self.plan, self.epoch = plan, epoch
        head = label("advert") + plan.hash + u(epoch, 4)
        self._trip = _Trip("advert", head, advert_size(plan.slots), frozenset(range(plan.n)))
        self._shared: Adverts | None = None
        self._keys: dict[int, Advert] = {}
        self._boxes: dict[int, dict[int, bytes]] = {}  # sender -> recipient -> box
        self._slot, self._model_hash = -1, b""
        self._sum = MaskedSum(0, plan.mod_bits)
        self._opening: Opening | None = None
        self.survivors: list[int] = []

    @property
    def kind(self) -> str:
        """What is awaited: advert, envelopes, input, set-sig or shares."""
        return self._trip.kind

    @property
    def heard(self) -> list[int]:
        """The sites whose awaited message is here."""
        return sorted(self._trip.heard)

    @property
    def signers(self) -> list[int]:
        """The sites that are asked for shares, once the open message was made."""
        return sorted(self._trip.senders) if self.kind == "shares" else []

    @property
    def present(self) -> list[int]:
        """The sites of this epoch, once adverts were made."""
        return sorted(self._keys)

    def receive(self, data: bytes) -> None:
        """Take a site's message; a Refusal changes nothing."""
        site = self._trip.accept(data, self.plan)
        if site is not None and self._trip.kind == "input":
            self._sum.add_packed(data[len(self._trip.head) + 1 : -keys.SIGNATURE])

    def start(self) -> bytes:
        """``setup``, for all."""
        return label("setup") + self.plan.hash + u(self.epoch, 4)

    def adverts(self) -> bytes:
        """``adverts``, for those present; Refusal ``below-threshold`` while too few have advertised."""
        if self._shared is None:
            wanted = self.plan.n if self.plan.strict else self.plan.quorum
            self._require("advert", wanted)
            heard = [self._trip.heard[i] for i in self.heard]
            self._take_up(label("adverts") + u(set_of(self.heard), SET) + b"".join(heard))
        return self._transcript.data

    @property
    def _transcript(self) -> Adverts:
        if self._shared is None:
            raise Refusal("below-threshold", "no set-up was made yet")
        return self._shared

    def _take_up(self, adverts: bytes) -> None:
        self._shared = Adverts.parse(adverts, self.plan.slots)
        found = [Advert.parse(data, self.plan.slots) for data in self._shared.adverts]
        self._keys = {advert.site: advert for advert in found}
        self._await("envelopes", self._transcript.setup_hash, box_size(self.plan.slots) * (len(found) - 1), self._keys)

    def _await(self, kind: str, bound: bytes, payload: int, senders: Collection[int]) -> None:
        head = label(kind) + bound
        self._trip = _Trip(kind, head, len(head) + 1 + payload + keys.SIGNATURE, frozenset(senders))

    def _require(self, kind: str, wanted: int) -> None:
        found = len(self._trip.heard) if self._trip.kind == kind else 0
        if found < wanted:
            raise Refusal("below-threshold", f"{found} messages {kind}, it takes {wanted}")

    def inbox(self, site: int) -> bytes:
        """``inbox``, for one; Refusal ``below-threshold`` while an envelope is missing, which takes a new epoch."""
        self._open_envelopes()
        boxes = [self._boxes[sender][site] for sender in self.present if sender != site]
        return label("inbox") + self._transcript.setup_hash + u(site, 1) + b"".join(boxes)

    def _open_envelopes(self) -> None:
        if not self._boxes:
            self._require("envelopes", len(self._keys))
            size = box_size(self.plan.slots)
            for sender in self.present:
                text, others = self._trip.payload(sender), (i for i in self.present if i != sender)
                self._boxes[sender] = {i: text[at * size : (at + 1) * size] for at, i in enumerate(others)}

    def round(self, slot: int, model_hash: bytes) -> bytes:
        """``round``, for those present; what an earlier slot had come to is forgotten.

        Refusal ``below-threshold`` before the set-up is whole, ``slot-replay`` for a slot that was passed or is none.
        """
        self._open_envelopes()
        if (slot, model_hash) != (self._slot, self._model_hash):
            if not self._slot < slot < self.plan.slots:
                raise Refusal("slot-replay", f"slot {slot} after {self._slot}; the epoch has {self.plan.slots}")
            self._begin(slot, model_hash)
        return label("round") + self._transcript.setup_hash + u(slot, 2) + model_hash

    def _begin(self, slot: int, model_hash: bytes) -> None:
        self._slot, self._model_hash, self._opening, self.survivors = slot, model_hash, None, []
        self._sum = MaskedSum(self.plan.dim + 1, self.plan.mod_bits)
        self._await("input", self._ctx, self.plan.packed_bytes, self._keys)

    @property
    def _ctx(self) -> bytes:
        return context(self.plan.hash, self._transcript.setup_hash, self._slot, self._model_hash)

    @property
    def _bound(self) -> bytes:
        return self._ctx + u(set_of(self.survivors), SET)

    def commit(self) -> bytes:
        """``commit-set``, for those whose input is here: the set never changes again.  Refusal ``below-threshold``."""
        if not self.survivors:
            self._require("input", self.plan.quorum)
            self.survivors = self.heard
            self._await("set-sig", self._bound, 0, self.survivors)
        return label("commit-set") + self._bound

    def open(self) -> Opening:
        """``open``, for the set, to be made durable before it leaves; Refusal ``below-threshold``: too few signed."""
        if self._opening is None:
            self._require("set-sig", self.plan.t)
            signatures = b"".join(self._trip.heard[i][-keys.SIGNATURE :] for i in self.heard)
            message = label("open") + self._bound + u(set_of(self.heard), SET) + signatures
            self._opening = Opening(self.adverts(), self._slot, self._model_hash, message, self._sum.packed())
            self._await("shares", self._bound, shamir.SHARE * len(self._keys), self.heard)
        return self._opening

    @classmethod
    def resumed(cls, plan: ProtocolPlan, opening: Opening) -> "Server":
        """A server that died after ``opening`` was written, for this one sum: it sends the same open message again."""
        first = Adverts.parse(opening.adverts, plan.slots).adverts[0]
        server = cls(plan, Advert.parse(first, plan.slots).epoch)
        server._take_up(opening.adverts)
        server._begin(opening.slot, opening.model_hash)
        server._sum.add_packed(opening.masked)
        reader = Reader(opening.message, "open")
        reader.take(HASH)
        server.survivors, signers = members(reader.number(SET)), members(reader.number(SET))
        server._opening = opening
        server._await("shares", server._bound, shamir.SHARE * len(server._keys), signers)
        return server

    def total(self, without: Collection[int] = ()) -> bytes:
        """The packed sum [dim + 1] of the set's inputs, by the shares of t responders that are not in ``without``.

        Refusal ``below-threshold``, or ``bad-share`` where a share is impossible or a secret misses its commitment.
        """
        self._require("shares", self.plan.t)
        responders = [i for i in self.heard if i not in without][: self.plan.t]
        if len(responders) < self.plan.t:
            raise Refusal("below-threshold", f"shares of {len(responders)} sites to try, it takes {self.plan.t}")
        secrets = self._secrets(responders)
        total = MaskedSum(self.plan.dim + 1, self.plan.mod_bits)
        total.add_packed(self._sum.packed())
        for owner, secret in secrets.items():
            if owner in self.survivors:
                total.add_mask(keys.self_key(secret, self._ctx, owner), -1)
                continue
            exchanger = keys.Exchanger(secret)
            for other in self.survivors:
                shared = exchanger.shared(self._keys[other].mask_pks[self._slot])
                total.add_mask(keys.pair_key(shared, self._ctx, owner, other), 1 if owner < other else -1)
        return total.packed()

    def total_despite_liars(self) -> tuple[bytes, tuple[int, ...]]:
        """``total``, where needed without the fewest responders whose shares spoil it, and who these are.

        One liar is always found where a share can be spared, several within ``_MOST_ATTEMPTS`` tries.  With exactly t
        responders nobody can be left out; which site lied the protocol does not prove.
        """
        counts = range(1, len(self.heard) - self.plan.t + 1)
        choices = chain.from_iterable(combinations(self.heard[: self.plan.t + count - 1], count) for count in counts)
        try:
            return self.total(), ()
        except Refusal as refusal:
            if refusal.code != "bad-share":
                raise
            for skipped in islice(choices, _MOST_ATTEMPTS):
                with suppress(Refusal):
                    return self.total(skipped), skipped
            raise

    def _secrets(self, responders: list[int]) -> dict[int, bytes]:
        """Of each present site the one secret of this slot that its sharers reveal."""
        weights = shamir.weights_at_zero(responders)
        texts = [self._trip.payload(i) for i in responders]
        found: dict[int, bytes] = {}
        for place, owner in enumerate(self.present):
            at = place * shamir.SHARE
            shares = [shamir.from_bytes(text[at : at + shamir.SHARE]) for text in texts]
            known = [share for share in shares if share is not None]
            secret = shamir.to_bytes(shamir.combine(weights, known)) if len(known) == len(shares) else None
            if secret is None or not self._is_secret(owner, secret):
                name = self.plan.roster[owner][0]
                raise Refusal("bad-share", f"the shares of {name}'s secret from sites {responders} do not give it")
            found[owner] = secret
        return found

    def _is_secret(self, owner: int, secret: bytes) -> bool:
        advert = self._keys[owner]
        if owner in self.survivors:
            commit = keys.seed_commit(self.plan.hash, self.epoch, self._slot, owner, secret)
            return commit == advert.seed_commits[self._slot]
        return keys.public_key(secret) == advert.mask_pks[self._slot]
