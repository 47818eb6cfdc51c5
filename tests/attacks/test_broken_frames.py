"""Broken, random and misplaced frames, to every party before every message that it waits for.

Each is refused, with no other error and no effect, and the round completes.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
from nexus_common.errors import Refusal
from nexus_common.secagg.client import Client, Offer, State
from nexus_common.secagg.labels import label
from nexus_common.secagg.messages import TO_SERVER, TO_SITES, Reader
from nexus_common.secagg.server import Server

from tests.attacks.stage import OTHER_MODEL, Stage

RNG = random.Random(20270301)  # noqa: S311  which bytes to break
LAST_EPOCH = 2**32 - 1  # no flipped bit makes a higher one


def broken(message: bytes) -> Iterator[bytes]:
    at, head = RNG.randrange(len(message)), message.find(b"\n") + 1
    yield message
    yield message[:at]
    yield message + b"\0"
    yield message + message
    yield message[:at] + bytes([message[at] ^ 1 << RNG.randrange(8)]) + message[at + 1 :]
    yield message[:head] + RNG.randbytes(len(message) - head)
    yield message.replace(b"nexus-sa/1", b"nexus-sa/2")


def frames(said: list[bytes]) -> Iterator[bytes]:
    """What an attacker can make without a key: all that was ever said, whole and broken, and noise."""
    yield from (b"", b"\n", RNG.randbytes(300), bytes(2**16))
    for kind in (*TO_SITES, *TO_SERVER):
        for size in (0, 1, 40, 400):
            yield label(kind) + RNG.randbytes(size)
    for message in said:
        yield from broken(message)


class Overheard:
    """What all parties said, which each of them hears before a message of its own, and the states they were in."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.loud, self.refusals, self.states = False, 0, set[str]()

    def shout(
        self, now: bytes, taken: Sequence[bytes], listen: Callable[[bytes], object], state: Callable[[], Any]
    ) -> None:
        for frame in frames([*self.said, now]) if self.loud else ():
            if frame == now:
                continue
            before = repr(state())
            try:
                listen(frame)
            except Refusal:
                assert repr(state()) == before
                self.refusals += 1
            else:
                assert frame in taken, f"accepted: {frame!r}"  # a retransmission
        self.said.append(now)


def parties(overheard: Overheard) -> tuple[type[Client], type[Server]]:
    class Site(Client):
        taken: Sequence[bytes] = ()

        def handle(self, data: bytes, offer: Offer | None = None) -> bytes | None:
            def now() -> list[Any]:
                return [self.state, vars(self.record), self._last, self._drawn, self._dealt, self._round]

            overheard.states.add(self.state.name)
            overheard.shout(data, self.taken, lambda frame: super(Site, self).handle(frame, offer), now)
            self.taken = [*self.taken, data]
            return super().handle(data, offer)

    class Centre(Server):
        taken: Sequence[bytes] = ()

        def receive(self, data: bytes) -> None:
            def now() -> list[Any]:
                return [self._trip, self._sum._sum.tolist(), self.survivors]

            overheard.states.add(self.kind)
            overheard.shout(data, self.taken, super().receive, now)
            super().receive(data)
            self.taken = [*self.taken, data]

    return Site, Centre


def epochs() -> tuple[Overheard, Stage, np.ndarray]:
    """A quiet epoch, then a loud one of which every frame of the first is known; the second's sum."""
    overheard = Overheard()
    site, server = parties(overheard)
    stage = Stage(4, 1, site=site, server=server, min_cohort=4)  # one slot, one set: one message fits at a time
    quiet = stage.ready()
    stage.inputs(quiet, 0)
    stage.total(quiet)
    overheard.loud, overheard.states = True, set()
    for record in stage.records:
        record.epoch = LAST_EPOCH - 1
    stage.restart()
    loud = stage.ready(LAST_EPOCH)
    stage.inputs(loud, 0, OTHER_MODEL)
    total = stage.total(loud)
    assert set(stage.ask(loud.open().message, stage.everybody)) == stage.everybody
    return overheard, stage, total


def test_no_broken_or_misplaced_frame_stops_or_changes_a_round() -> None:
    overheard, stage, total = epochs()
    np.testing.assert_array_equal(total, stage.sum_of(stage.everybody))
    assert overheard.states == {state.name for state in State} | set(TO_SERVER)
    assert not stage.refused
    assert overheard.refusals > 10_000


def test_a_site_that_reads_past_the_end_is_found_out() -> None:
    with mock.patch.object(Reader, "end", lambda _: None), pytest.raises(AssertionError, match="accepted"):
        epochs()
