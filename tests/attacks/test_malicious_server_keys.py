"""A server that puts keys, sites or a plan of its own in the place of those that the consortium agreed on."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from nexus_common.secagg import keys
from nexus_common.secagg.client import State
from nexus_common.secagg.labels import label
from nexus_common.secagg.messages import SET, box_size, set_of, u
from nexus_common.secagg.plan import load
from nexus_common.secagg.server import Server

from tests.attacks.stage import OTHER_MODEL, Stage, refused

ENC = len(label("advert")) + 32 + 4 + 1  # where an advert has its sealing key
MASK = ENC + 32  # and its first mask key
OWN = keys.public_key(bytes(range(32)))  # a key of the server's own


def swap(advert: bytes, at: int, key: bytes) -> bytes:
    return advert[:at] + key + advert[at + 32 :]


def resign(stage: Stage, site: int, advert: bytes) -> bytes:
    """What the site would sign if it colluded."""
    return keys.signed(stage.keys[site], advert[: -keys.SIGNATURE])


SWAPS = {  # the stage, the adverts as made, the adverts of the epoch before; the server changes some in place
    "site 3's sealing key": (lambda _, now, __: now | {3: swap(now[3], ENC, OWN)}, "bad-signature"),
    "site 3's mask key": (lambda _, now, __: now | {3: swap(now[3], MASK, OWN)}, "bad-signature"),
    "site 3's advert, self-signed": (
        lambda s, now, _: now | {3: resign(s, 2, swap(now[3], ENC, OWN))},
        "bad-signature",
    ),
    "site 3's advert of old": (lambda _, now, old: now | {3: old[3]}, "wrong-context"),
    "site 2's advert as site 3's": (lambda _, now, __: now | {3: now[2]}, "wrong-context"),
    "the asked site's own keys": (lambda _, now, __: now | {0: swap(now[0], MASK, OWN)}, "own-keys-changed"),
    "the asked site's own advert of old": (lambda _, now, old: now | {0: old[0]}, "own-keys-changed"),
    "a colluder's copy of a mask key": (
        lambda s, now, _: now | {3: resign(s, 3, swap(now[3], MASK, now[2][MASK : MASK + 32]))},
        "key-reused",
    ),
    "a colluder's key of low order": (
        lambda s, now, _: now | {3: resign(s, 3, swap(now[3], ENC, bytes(32)))},
        "bad-key",
    ),
    "a site missing": (lambda _, now, __: {i: now[i] for i in (0, 1)}, "roster-set"),
    "the asked site missing": (lambda _, now, __: {i: now[i] for i in (1, 2, 3)}, "roster-set"),
    "a fifth site": (lambda _, now, __: now | {4: now[3]}, "unknown-site"),
}


@pytest.mark.parametrize(("swapped", "code"), SWAPS.values(), ids=SWAPS)
def test_no_keys_but_the_sites_own_pass(swapped: Callable[..., dict[int, bytes]], code: str) -> None:
    stage = Stage(4)
    old = stage.ask(Server(stage.plan, 1).start(), stage.everybody)
    server = Server(stage.plan, 2)
    now = stage.ask(server.start(), stage.everybody)
    shown = swapped(stage, now, old)
    adverts = label("adverts") + u(set_of(shown), SET) + b"".join(shown[i] for i in sorted(shown))
    with refused(code):
        stage.sites[0].handle(adverts)
    for advert in now.values():  # the site has not sealed anything, and takes the true ones
        server.receive(advert)
    assert stage.ask(server.adverts(), [0])


def impersonate(*, roster_from_the_server: bool) -> np.ndarray:
    """Plays sites 1 to 3 itself, with identity keys and zeros of its own, under the hash of the plan of site 0."""
    true, played = Stage(4), Stage(4)
    played.plan = replace(played.plan, roster=(true.plan.roster[0], *played.plan.roster[1:]))
    played.plan.__dict__["hash"] = true.plan.hash
    played.keys[0], played.x = true.keys[0], dict.fromkeys(range(4), np.zeros(4, np.int64)) | {0: true.x[0]}
    played.restart()
    if not roster_from_the_server:
        played.sites[0] = true.sites[0]
    server = played.ready()
    assert played.refused == ({} if roster_from_the_server else {0: "bad-signature"})
    played.inputs(server, 0)
    return played.total(server) - true.x[0]


def test_a_server_that_plays_all_other_sites_cannot_set_up() -> None:
    with refused("below-threshold"):
        impersonate(roster_from_the_server=False)
    assert not impersonate(roster_from_the_server=True).any(), "the control is the site's own input"


EDITS = {  # what the server changes, and what still refuses it where a policy approves whatever the server shows
    "a Sybil": (lambda plan: {"roster": (*plan.roster, ("sybil", OWN)), "t": 4}, None),
    "a site less": (lambda plan: {"roster": plan.roster[:3], "min_cohort": 3}, None),
    "a site's key": (lambda plan: {"roster": (*plan.roster[:3], (plan.roster[3][0], OWN))}, None),
    "one key for two": (lambda plan: {"roster": (*plan.roster, ("sybil", plan.roster[3][1])), "t": 4}, "roster"),
    "a lower cohort": (lambda _: {"min_cohort": 3}, None),
    "a cohort of two": (lambda _: {"min_cohort": 2}, "cohort-too-small"),
    "a threshold of half": (lambda _: {"t": 2}, "threshold"),
    "another base model": (lambda _: {"model": OTHER_MODEL}, None),
    "more rounds": (lambda _: {"rounds": 2**32 - 1}, None),
    "values that wrap": (lambda _: {"value_bits": 24}, "codec"),
}


@pytest.mark.parametrize(("edit", "bound"), EDITS.values(), ids=EDITS)
def test_no_plan_but_the_approved_one_is_loaded_or_set_up(edit: Callable[..., dict[str, Any]], bound: str) -> None:
    stage = Stage(4, min_cohort=4)
    plan, own = stage.plan, stage.plan.roster[0]
    edited = replace(plan, **edit(plan))
    with refused("plan-not-approved"):
        load(edited.encoded, {plan.hash}, *own)
    assert not stage.ask(Server(edited, 1).start(), stage.everybody)
    assert stage.refused == dict.fromkeys(range(4), "plan-not-approved")
    with refused(bound) if bound else nullcontext():  # the control: only the protocol's own bounds are left
        assert load(edited.encoded, {edited.hash}, *own) == edited
    server = stage.ready()
    stage.inputs(server, 0)
    np.testing.assert_array_equal(stage.total(server), stage.sum_of(stage.everybody))


def split_set_up(stage: Stage) -> None:
    """Shows sites 0, 1 and 4 a set-up of all, sites 2 and 3 one without site 4, and passes all boxes on."""
    servers = Server(stage.plan, 1), Server(stage.plan, 1)
    for i, advert in stage.ask(servers[0].start(), stage.everybody).items():
        for server in servers[: 1 + (i != 4)]:
            server.receive(advert)
    boxes: dict[tuple[int, int], bytes] = {}
    size, head = box_size(stage.plan.slots), len(label("envelopes")) + 32 + 1
    views = {i: servers[i in (2, 3)] for i in stage.everybody}
    adverts = {i: server.adverts() for i, server in views.items()}
    for i, server in views.items():
        text = stage.ask(adverts[i], {i})[i][head:]
        others = [j for j in server.present if j != i]
        boxes |= {(i, j): text[at * size : (at + 1) * size] for at, j in enumerate(others)}
    for i in (0, 1, 2, 3):  # no box for site 4 was made by all
        text = b"".join(boxes[j, i] for j in views[i].present if j != i)
        stage.ask(label("inbox") + keys.digest(adverts[i]) + u(i, 1) + text, {i})


def test_two_views_of_one_set_up_leave_nobody_ready() -> None:
    stage = Stage(5)
    split_set_up(stage)
    assert stage.refused == dict.fromkeys((0, 1, 2, 3), "share-decrypt")
    control, key = Stage(5), keys.envelope_key
    with mock.patch.object(keys, "envelope_key", lambda shared, _, *ends: key(shared, b"", *ends)):
        split_set_up(control)  # boxes that are not bound to the set-up
    assert not control.refused
    assert {site.state for site in control.sites[:4]} == {State.READY}


def test_an_inbox_is_for_one_site_in_one_set_up() -> None:
    stage = Stage(4)
    server = Server(stage.plan, 1)
    stage.relay(server, server.start(), stage.everybody)
    stage.relay(server, server.adverts(), stage.everybody)
    inbox, head = server.inbox(0), len(label("inbox"))
    size = box_size(stage.plan.slots)
    for false, code in (
        (server.inbox(1), "wrong-context"),
        (inbox[:head] + OTHER_MODEL + inbox[head + 32 :], "wrong-context"),
        (inbox[: -2 * size] + inbox[-size:] + inbox[-2 * size : -size], "share-decrypt"),  # two boxes change places
    ):
        stage.ask(false, {0})
        assert stage.refused == {0: code}
    assert stage.ask(inbox, {0}) == {0: b""}
    assert stage.sites[0].state is State.READY
