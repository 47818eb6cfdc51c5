"""Where the attacks are played: a federation in memory, a server that does what a test says, and weakened sites.

An attack is a function of the stage and returns what it learnt.  It is played twice: before the shipped sites, where it
has to end in a refusal or in nothing, and as a control where the one thing that stops it is missing: there it succeeds.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from nexus_common.errors import Refusal
from nexus_common.secagg import client, keys
from nexus_common.secagg.client import Client, Offer
from nexus_common.secagg.labels import label
from nexus_common.secagg.masks import MaskedSum, unpack_signed
from nexus_common.secagg.messages import SET, Reader, set_of, set_sig_body, u
from nexus_common.secagg.server import Server

from tests.protocol.test_epochs import Federation
from tests.protocol.vectors import MemoryRecord

MODEL, OTHER_MODEL = keys.digest(b"a global model"), keys.digest(b"another one")
HEAD = len(label("input")) + 32 + 1  # before the integers of an input


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(Refusal) as caught:
        yield
    assert caught.value.code == code


class Mallory(Server):
    """A server that asks for any slot at any time, and for the same one again."""

    def round(self, slot: int, model_hash: bytes) -> bytes:
        self._begin(slot, model_hash)
        return label("round") + self._transcript.setup_hash + u(slot, 2) + model_hash


class Stage(Federation):
    """A server that goes on after a refusal, and n sites with an input each; changes of the plan are not checked."""

    def __init__(
        self,
        n: int,
        slots: int = 2,
        *,
        site: Callable[..., Client] = Client,
        only: Collection[int] | None = None,
        record: type[MemoryRecord] = MemoryRecord,
        server: type[Server] | None = None,
        **plan: Any,
    ) -> None:
        self.everybody = set(range(n))
        self.kind_of_site, self.kind_of_server = site, server or Mallory
        self.only = self.everybody if only is None else only  # the sites that are of that kind
        super().__init__(n, slots)
        self.plan = replace(self.plan, **plan)
        self.records = [record() for _ in self.keys]
        numbers = np.random.default_rng(n).integers(-131071, 131072, (n, self.plan.dim))
        self.x = {i: np.append(numbers[i], 1) for i in range(n)}
        self.refused: dict[int, str] = {}  # site -> the code of its last refusal
        self.kept = b""  # a message that the server kept
        self.restart()

    def site(self, i: int) -> Client:
        kind = self.kind_of_site if i in self.only else Client
        with patch.object(client, "check"):  # for controls whose plan is too weak
            return kind(self.plan, self.plan.roster[i][0], self.keys[i], self.records[i], os.urandom)

    def restart(self) -> None:
        self.sites = [self.site(i) for i in range(self.plan.n)]

    def enlist(self, other: "Stage", *, one_record: bool) -> None:
        """The first sites of another federation also take part in this one, each with one record of opened models."""
        self.keys, self.x = other.keys[: self.plan.n], other.x
        self.plan = replace(self.plan, roster=other.plan.roster[: self.plan.n])
        for mine, theirs in zip(self.records, other.records, strict=False):
            mine.opened = theirs.opened if one_record else set()
        self.restart()

    def sum_of(self, sites: Collection[int]) -> np.ndarray:
        return np.sum([self.x[i] for i in sites], axis=0)

    def ask(self, message: bytes, of: Collection[int], model: bytes = MODEL) -> dict[int, bytes]:
        """The replies that these sites give; ``model`` is what they received for the round."""
        replies = {}
        for i in sorted(of):
            try:
                replies[i] = self.sites[i].handle(message, Offer(model, lambda i=i: self.x[i])) or b""
            except Refusal as refusal:
                self.refused[i] = refusal.code
        return replies

    def relay(self, server: Server, message: bytes, of: Collection[int]) -> None:
        for reply in self.ask(message, of).values():
            server.receive(reply)

    def ready(self, epoch: int = 1, of: Collection[int] | None = None) -> Server:
        """A set-up that is as it should be."""
        self.server = server = self.kind_of_server(self.plan, epoch)
        self.relay(server, server.start(), self.everybody if of is None else of)
        self.relay(server, server.adverts(), server.present)
        for i in server.present:
            self.ask(server.inbox(i), [i])
        return server

    def fork(self, **plan: Any) -> Server:
        """Another server of the same set-up, to tell some sites another story; it may bend the plan for itself."""
        bent = replace(self.plan, **plan)
        bent.__dict__["hash"] = self.plan.hash
        server = self.kind_of_server(bent, self.server.epoch)
        server._take_up(self.server.adverts())
        return server

    def inputs(
        self, server: Server, slot: int, model: bytes = MODEL, of: Collection[int] | None = None
    ) -> dict[int, bytes]:
        """The masked inputs of those who give one when asked, for the server to sum up."""
        replies = self.ask(server.round(slot, model), server.present if of is None else of, model)
        for reply in replies.values():
            server.receive(reply)
        return replies

    def total(self, server: Server, helpers: Collection[int] | None = None) -> np.ndarray:
        """The sum of the inputs that the server counts, by the signatures and shares of ``helpers``."""
        self.relay(server, server.commit(), server.survivors if helpers is None else helpers)
        signers = server.heard
        self.relay(server, server.open().message, signers)
        return unpack_signed(server.total(), self.plan.mod_bits)

    def commit(self, server: Server, survivors: Collection[int]) -> bytes:
        """A commit-set for any set."""
        return label("commit-set") + server._ctx + u(set_of(survivors), SET)

    def opening(self, server: Server, survivors: Collection[int], signers: Collection[int]) -> bytes:
        """An open message with true signatures of any sites, as if they were under the server's thumb."""
        signed = (self.keys[i].sign(set_sig_body(server._ctx, set_of(survivors), i)) for i in sorted(signers))
        return label("open") + server._ctx + u(set_of(survivors), SET) + u(set_of(signers), SET) + b"".join(signed)

    def read(self, server: Server, site: int, data: bytes, mask_secret: bytes, seed: bytes | None) -> np.ndarray:
        """One input without the masks that can be made from these secrets."""
        bare = MaskedSum(self.plan.dim + 1, self.plan.mod_bits)
        bare.add_packed(data[HEAD : -keys.SIGNATURE])
        exchanger = keys.Exchanger(mask_secret)
        for other in set(server.present) - {site}:
            shared = exchanger.shared(server._keys[other].mask_pks[server._slot])
            bare.add_mask(keys.pair_key(shared, server._ctx, site, other), -1 if other > site else 1)
        if seed is not None:
            bare.add_mask(keys.self_key(seed, server._ctx, site), -1)
        return unpack_signed(bare.packed(), self.plan.mod_bits)


class TwoFaced(Client):
    """Signs and opens any number of sets in one slot, and erases no share: a colluder."""

    def _sign(self, reader: Reader, offer: Offer | None) -> bytes:
        self._round.survivors = None  # type: ignore[union-attr]
        return super()._sign(reader, offer)

    def _reveal(self, reader: Reader, offer: Offer | None) -> bytes:
        shares = self._dealt.shares[self._round.slot]  # type: ignore[union-attr]
        both = dict(shares)
        try:
            return super()._reveal(reader, offer)
        finally:
            shares.update(both)


class Forgetful(MemoryRecord):
    """A record that does not outlive a round."""

    def was_opened(self, model_hash: bytes) -> bool:
        return False

    def inputs_sent(self) -> int:
        return 0
