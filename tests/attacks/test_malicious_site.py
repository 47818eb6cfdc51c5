"""A site that says something else than the protocol has it say, under its own signature: no wrong sum comes of it."""

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
from nexus_common.errors import Refusal
from nexus_common.secagg import codec, keys, shamir
from nexus_common.secagg.client import Client, Offer
from nexus_common.secagg.labels import label
from nexus_common.secagg.masks import unpack_signed
from nexus_common.secagg.messages import Reader, box_size
from nexus_common.secagg.server import Server

from tests.attacks.stage import HEAD, OTHER_MODEL, Stage, refused

LIAR = 1
SHARES = len(label("shares")) + 32 + 8 + 1  # before the shares of a reply to an open
BOXES = len(label("envelopes")) + 32 + 1
NOISE = bytes(range(32))
Lie = Callable[[bytes], bytes]


class Liar:
    """A site whose word of one kind is changed; ``told`` signs the body that it makes of the true one."""

    def __init__(self, honest: Client, kind: str, told: Lie) -> None:
        self.honest, self.kind, self.told = honest, kind, told

    def handle(self, data: bytes, offer: Offer | None = None) -> bytes | None:
        reply = self.honest.handle(data, offer)
        return self.told(reply[: -keys.SIGNATURE]) if reply and reply.startswith(label(self.kind)) else reply


def with_liar(stage: Stage, kind: str, lie: Lie) -> Stage:
    honest, key = stage.sites[LIAR], stage.keys[LIAR]
    stage.sites[LIAR] = Liar(honest, kind, lambda body: keys.signed(key, lie(body)))  # type: ignore[call-overload]
    return stage


class Credulous(Server):
    """Checks no secret against what its owner committed to."""

    def _is_secret(self, owner: int, secret: bytes) -> bool:
        return True


BAD_SHARES: dict[str, Lie] = {
    "made up": lambda body: body[:SHARES] + NOISE + body[SHARES + 32 :],
    "of another site": lambda body: body[:SHARES] + body[SHARES + 32 :] + body[SHARES : SHARES + 32],
    "zero": lambda body: body[:SHARES] + bytes(len(body) - SHARES),
    "not below p": lambda body: body[:SHARES] + b"\xff" * 32 + body[SHARES + 32 :],
    "only the last": lambda body: body[:-32] + NOISE,
}


@pytest.mark.parametrize("dropped", [set(), {0}], ids=["all-there", "one-dropped-out"])
@pytest.mark.parametrize("lie", BAD_SHARES.values(), ids=BAD_SHARES)
def test_wrong_shares_give_no_wrong_sum(lie: Lie, dropped: set[int]) -> None:
    stage = with_liar(Stage(5), "shares", lie)
    server = stage.ready()
    stage.inputs(server, 0, of=stage.everybody - dropped)
    with refused("bad-share"):
        stage.total(server)
    if dropped:  # exactly t responders: nobody can be left out
        with refused("bad-share"):
            server.total_despite_liars()
    else:
        total, left_out = server.total_despite_liars()
        assert left_out == (LIAR,)
        np.testing.assert_array_equal(unpack_signed(total, 24), stage.sum_of(stage.everybody))
    stage.inputs(server, 1, OTHER_MODEL)  # the next slot does without the liar
    np.testing.assert_array_equal(stage.total(server, {0, 2, 3, 4}), stage.sum_of(stage.everybody))


@pytest.mark.parametrize("lie", ["made up", "of another site", "zero"])
def test_a_server_that_checks_no_secret_takes_a_wrong_sum(lie: str) -> None:
    control = with_liar(Stage(5, server=Credulous), "shares", BAD_SHARES[lie])
    server = control.ready()
    control.inputs(server, 0)
    assert not np.array_equal(control.total(server), control.sum_of(control.everybody))


def new_epoch_without_the_liar(stage: Stage) -> None:
    others = stage.everybody - {LIAR}
    server = stage.ready(2, others)
    stage.inputs(server, 0, OTHER_MODEL)  # the first model may have been opened
    assert server.present == sorted(others)
    np.testing.assert_array_equal(stage.total(server), stage.sum_of(others))


@pytest.mark.parametrize("victim", [0, 2, 3])
def test_a_bad_box_stops_the_set_up_at_its_victim_and_no_longer(victim: int) -> None:
    at = BOXES + box_size(2) * [0, 2, 3].index(victim)
    stage = with_liar(Stage(4), "envelopes", lambda body: body[:at] + NOISE + body[at + 32 :])
    stage.inputs(stage.ready(), 0)
    assert stage.refused[victim] == "wrong-state"  # it is not ready
    with refused("share-decrypt"):
        stage.sites[victim].handle(stage.server.inbox(victim))
    new_epoch_without_the_liar(stage)


class Crooked(Client):
    """Deals shares, well sealed, that lie on no polynomial; ``to`` are the sites that get a wrong one."""

    to: tuple[int, ...] = ()

    def _take_adverts(self, reader: Reader, offer: Offer | None) -> bytes:
        split = shamir.split

        def crooked(*args: object) -> list[int]:
            return [share * (1 + (i in self.to)) % shamir.P for i, share in enumerate(split(*args))]  # type: ignore[arg-type]

        with mock.patch.object(shamir, "split", crooked):
            return super()._take_adverts(reader, offer)


@pytest.mark.parametrize("to", [(2,), (2, 3), (0, 1, 2, 3, 4)], ids=len)
def test_crooked_shares_give_no_wrong_sum_and_the_next_epoch_does_without_their_dealer(to: tuple[int, ...]) -> None:
    stage = Stage(5, site=Crooked, only={LIAR})
    stage.sites[LIAR].to = to  # type: ignore[attr-defined]
    server = stage.ready()
    stage.inputs(server, 0)
    assert not stage.refused
    with refused("bad-share"):
        stage.total(server)
    if len(to) == 1:  # as many as there are to spare; which site lied is not proven
        total, left_out = server.total_despite_liars()
        assert left_out == to
        np.testing.assert_array_equal(unpack_signed(total, 24), stage.sum_of(stage.everybody))
    else:
        with refused("bad-share"):
            server.total_despite_liars()
    new_epoch_without_the_liar(stage)


class Doorless(Server):
    """Counts what stands in the liar's input, whatever it is."""

    def receive(self, data: bytes) -> None:
        if self.kind != "input" or self._slot == 0 or LIAR in self._trip.heard:
            super().receive(data)
        else:  # the liar is the first to speak
            self._trip.heard[LIAR] = b""
            self._sum.add_packed(data[HEAD : -keys.SIGNATURE])


def send_false_input(stage: Stage, false: Callable[..., bytes]) -> np.ndarray:
    """In the second slot the liar, first to speak, sends what ``false`` makes; the sum of that slot."""
    server = stage.ready()
    before = stage.inputs(server, 0)[LIAR]
    replies = stage.ask(server.round(1, OTHER_MODEL), stage.everybody, OTHER_MODEL)
    real = replies.pop(LIAR)
    try:
        server.receive(false(stage.keys[LIAR], before, real[:HEAD], real[HEAD : -keys.SIGNATURE]))
    except Refusal as refusal:
        stage.refused[LIAR] = refusal.code
    for reply in replies.values():
        server.receive(reply)
    return stage.total(server)


def as_site(number: int, head: bytes) -> bytes:
    return head[:-1] + bytes([number])


FALSE_INPUTS = {  # from the liar's key, its input of the slot before, the head and the integers of the true one
    "too short": (lambda key, _, head, x: keys.signed(key, head + x[:-3]), "input"),
    "too long": (lambda key, _, head, x: keys.signed(key, head + x + bytes(3)), "input"),
    "for the slot before": (lambda _, before, __, ___: before, "wrong-context"),
    "unsigned": (lambda _, __, head, x: head + x[::-1] + bytes(64), "bad-signature"),
    "in another's name": (lambda key, _, head, x: keys.signed(key, as_site(2, head) + x[::-1]), "bad-signature"),
    "in nobody's name": (lambda key, _, head, x: keys.signed(key, as_site(9, head) + x[::-1]), "unknown-site"),
}


@pytest.mark.parametrize(("false", "code"), FALSE_INPUTS.values(), ids=FALSE_INPUTS)
def test_a_false_input_is_not_in_the_sum(false: Callable[..., bytes], code: str) -> None:
    stage = Stage(4)
    np.testing.assert_array_equal(send_false_input(stage, false), stage.sum_of({0, 2, 3}))
    assert stage.refused == {LIAR: code}
    if code != "input":
        control = Stage(4, server=Doorless)
        assert not np.array_equal(send_false_input(control, false), control.sum_of(control.everybody))


@pytest.mark.parametrize("weight", [0, -1, -2, 2, 1000, 2**23 - 1])
def test_a_weight_that_no_site_can_have_is_refused(weight: int) -> None:
    stage = Stage(4)
    server = stage.ready()
    stage.inputs(server, 0)
    fair = stage.total(server)[:-1] / 4
    mean, total_weight = codec.decode(stage.plan, server.total(), 4)
    np.testing.assert_allclose(mean, fair * stage.plan.range / 131071)
    assert total_weight == 4
    stage.x[LIAR] = np.append(stage.x[LIAR][:-1], weight)
    stage.inputs(server, 1, OTHER_MODEL)
    *integers, claimed = stage.total(server)
    with refused("input"):
        codec.decode(stage.plan, server.total(), 4)
    assert not np.allclose(np.array(integers) / claimed, fair), "plain averaging goes by what it is told"


def tell_twice(stage: Stage, kind: str, *, last_word_counts: bool) -> np.ndarray | None:
    """The liar says another thing after each word of one kind; the sum, or None where there is none."""

    class Twice(Server):
        def receive(self, data: bytes) -> None:
            super().receive(data)
            if self.kind != kind or data[len(self._trip.head)] != LIAR:
                return
            body = data[: -keys.SIGNATURE]
            other = keys.signed(stage.keys[LIAR], body[:-1] + bytes([body[-1] ^ 1]))
            if last_word_counts:
                del self._trip.heard[LIAR]
                super().receive(other)
                return
            with refused("duplicate"):
                super().receive(other)
            super().receive(data)  # a repetition is none

    stage.kind_of_server = Twice
    try:
        server = stage.ready()
        stage.inputs(server, 0)
        return stage.total(server)
    except Refusal:
        return None


@pytest.mark.parametrize("kind", ["advert", "envelopes", "input", "shares"])
def test_the_second_of_two_different_answers_does_not_count(kind: str) -> None:
    stage = Stage(4)
    np.testing.assert_array_equal(tell_twice(stage, kind, last_word_counts=False), stage.sum_of(stage.everybody))
    control = Stage(4)
    assert not np.array_equal(tell_twice(control, kind, last_word_counts=True), control.sum_of(control.everybody))
