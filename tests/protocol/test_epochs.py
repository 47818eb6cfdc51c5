"""Random epochs with drop-outs at every trip: each ends in the exact sum of its set, or in a refusal that says why."""

import os
import random
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_common import certs
from nexus_common.errors import Refusal
from nexus_common.secagg.client import Client, Offer
from nexus_common.secagg.keys import digest, signed
from nexus_common.secagg.labels import label
from nexus_common.secagg.masks import unpack_signed
from nexus_common.secagg.plan import ProtocolPlan, check, decode, threshold
from nexus_common.secagg.server import Server

from tests.protocol.vectors import MemoryRecord, vector

EXAMPLE = decode(bytes.fromhex(vector("plan")["plans"][0]["bytes"]))
EPOCHS = 1000


class Federation:
    """A server and n sites of one plan, in memory."""

    def __init__(self, n: int, slots: int = 2, dim: int = 3, strict: bool = False) -> None:
        names = [f"site-{i:02}" for i in range(n)]
        self.keys = [Ed25519PrivateKey.generate() for _ in names]
        roster = tuple((name, certs.raw_identity(key)) for name, key in zip(names, self.keys, strict=True))
        sizes = {"t": threshold(n), "min_cohort": 3, "slots": slots, "dim": dim, "strict": strict}
        self.plan: ProtocolPlan = replace(EXAMPLE, roster=roster, weight_max=1, rounds=10_000, **sizes)
        check(self.plan)
        self.records = [MemoryRecord() for _ in names]
        self.sites = [self.site(i) for i in range(n)]
        self.server = Server(self.plan, 1)

    def site(self, i: int) -> Client:
        """Site i, as after a (re)start."""
        return Client(self.plan, self.plan.roster[i][0], self.keys[i], self.records[i], os.urandom)

    def set_up(self, epoch: int, advertise: set[int], share: set[int]) -> None:
        """An epoch of those who advertise, if all of them share."""
        self.server = Server(self.plan, epoch)
        for i in advertise:
            self.server.receive(self.sites[i].handle(self.server.start()) or b"")
        adverts = self.server.adverts()
        for i in self.server.present:
            reply = self.sites[i].handle(adverts)
            if i in share:
                self.server.receive(reply or b"")
        for i in self.server.present:
            assert self.sites[i].handle(self.server.inbox(i)) is None

    def round(
        self, slot: int, x: dict[int, np.ndarray], send: set[int], sign: set[int], reveal: set[int]
    ) -> tuple[list[int], np.ndarray]:
        """One slot; its set and sum.  All present hear everything; ``send`` and so on say whose reply arrives."""
        model = digest(os.urandom(8))
        message = self.server.round(slot, model)
        for i in self.server.present:
            reply = self.sites[i].handle(message, Offer(model, lambda i=i: x[i]))
            if i in send:
                self.server.receive(reply or b"")
        commit = self.server.commit()
        for i in self.server.survivors:
            reply = self.sites[i].handle(commit)
            if i in sign:
                self.server.receive(reply or b"")
        opening = self.server.open()
        if slot % 2:  # a crash after the opening was written
            self.server = Server.resumed(self.plan, opening)
        for i in self.server.survivors:
            reply = self.sites[i].handle(self.server.open().message)
            if i in reveal & sign:
                self.server.receive(reply or b"")
        return self.server.survivors, unpack_signed(self.server.total(), self.plan.mod_bits)


def some(rng: random.Random, of: set[int], gone: int) -> set[int]:
    return set(rng.sample(sorted(of), max(len(of) - rng.randint(0, gone), 0)))


def test_a_thousand_random_epochs_give_exact_sums_or_say_why_not() -> None:
    rng = random.Random(20261125)  # noqa: S311  which sites drop out
    federations = {n: Federation(n) for n in (3, 4, 5, 6)}
    outcomes = {"sum": 0, "below-threshold": 0}
    for epoch in range(1, EPOCHS + 1):
        federation = federations[rng.choice(list(federations))]
        n, t = federation.plan.n, federation.plan.t
        everybody, gone = set(range(n)), rng.choice([0, 0, 1, n - t + 1])
        x = {i: np.array([rng.randint(-131071, 131071) for _ in range(3)] + [1]) for i in everybody}
        advertise = some(rng, everybody, gone)
        try:
            federation.set_up(epoch, advertise, some(rng, advertise, rng.choice([0, 0, 0, 1])))
            for slot in range(2):
                send = some(rng, advertise, gone)
                sign = some(rng, send, gone)
                reveal = some(rng, sign, gone)
                survivors, total = federation.round(slot, x, send, sign, reveal)
                assert survivors == sorted(send)
                np.testing.assert_array_equal(total, sum(x[i] for i in survivors))
                outcomes["sum"] += 1
        except Refusal as refusal:
            outcomes[refusal.code] += 1
            assert gone or "envelopes" in str(refusal)
    assert min(outcomes.values()) > EPOCHS / 10, outcomes


@pytest.mark.parametrize("n", [3, 16])
def test_the_largest_inputs_of_all_sites_do_not_wrap(n: int) -> None:
    federation = Federation(n, slots=1)
    everybody = set(range(n))
    federation.set_up(1, everybody, everybody)
    x = dict.fromkeys(everybody, np.array([131071, -131071, 0, 1]))
    _, total = federation.round(0, x, everybody, everybody, everybody)
    assert total.tolist() == [n * 131071, -n * 131071, 0, n]


def test_a_restarted_site_is_idle_until_the_next_epoch() -> None:
    federation = Federation(5)
    everybody = set(range(5))
    federation.set_up(1, everybody, everybody)
    x = dict.fromkeys(everybody, np.array([1, 2, 3, 1]))
    federation.sites[2] = federation.site(2)
    with pytest.raises(Refusal, match="wrong-state"):
        federation.sites[2].handle(federation.server.round(0, bytes(32)), Offer(bytes(32), lambda: x[2]))
    with pytest.raises(Refusal, match="epoch-replay"):
        federation.sites[2].handle(Server(federation.plan, 1).start())
    federation.set_up(2, everybody, everybody)
    survivors, total = federation.round(0, x, everybody, everybody, everybody)
    assert (survivors, total.tolist()) == (sorted(everybody), [5, 10, 15, 5])


@pytest.mark.parametrize("liars", [{0}, {1, 4}])
def test_with_shares_to_spare_liars_are_left_out_and_named(liars: set[int]) -> None:
    federation = Federation(9)  # t = 7
    everybody = set(range(9))
    federation.set_up(1, everybody, everybody)
    send = everybody - {8} if len(liars) == 1 else everybody
    x = {i: np.array([i, 0, -i, 1]) for i in everybody}

    class Liar:
        def __init__(self, honest: Client, key: Ed25519PrivateKey) -> None:
            self.honest, self.key = honest, key

        def handle(self, data: bytes, offer: Offer | None = None) -> bytes | None:
            reply = self.honest.handle(data, offer)
            if reply is None or not data.startswith(label("open")):
                return reply
            return signed(self.key, reply[:59] + os.urandom(31) + bytes(1) + reply[91:-64])

    for i in liars:
        federation.sites[i] = Liar(federation.sites[i], federation.keys[i])  # type: ignore[call-overload]
    with pytest.raises(Refusal, match="bad-share"):
        federation.round(0, x, send, send, send)
    total, left_out = federation.server.total_despite_liars()
    assert set(left_out) == liars
    expected = sum(x[i] for i in send)
    np.testing.assert_array_equal(unpack_signed(total, federation.plan.mod_bits), expected)
