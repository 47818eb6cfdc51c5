"""A server that asks again: for a slot, a model, a cohort, a plan, or for more inputs than were agreed.

Two inputs under the same masks, or two sums for one model, are there to be subtracted.
"""

import numpy as np
import pytest
from nexus_common.secagg import keys
from nexus_common.secagg.client import Client, Offer
from nexus_common.secagg.masks import MaskedSum, unpack_signed
from nexus_common.secagg.messages import Reader
from nexus_common.secagg.server import Server

from tests.attacks.stage import HEAD, MODEL, OTHER_MODEL, Forgetful, Stage, refused


class Rewinding(Client):
    """Fills a slot as often as it is asked to."""

    def _mask(self, reader: Reader, offer: Offer | None) -> bytes:
        dealt, self._round = self._dealt, None
        slots = dealt.slots  # type: ignore[union-attr]
        try:
            return super()._mask(reader, offer)
        finally:
            dealt.slots = slots  # type: ignore[union-attr]


def fill_twice(stage: Stage, slot: int) -> np.ndarray | None:
    """Has site 3 mask its vector and then zeros in one slot: what differs is bare of masks."""
    server = stage.ready()
    first = stage.inputs(server, slot)[3]
    message = server.round(slot, MODEL)
    stage.x[3] = np.zeros_like(stage.x[3])
    assert stage.ask(message, {3})[3] == first, "a retransmission shows nothing new"
    stage.ask(stage.commit(server, stage.everybody), {3})
    second = stage.ask(message, {3}).get(3)
    if second is None:
        return None
    difference = MaskedSum(stage.plan.dim + 1, stage.plan.mod_bits)
    difference.add_packed(first[HEAD : -keys.SIGNATURE])
    difference.add(-unpack_signed(second[HEAD : -keys.SIGNATURE], stage.plan.mod_bits))
    return unpack_signed(difference.packed(), stage.plan.mod_bits)


@pytest.mark.parametrize("slot", [0, 1])
def test_a_slot_is_filled_once(slot: int) -> None:
    stage = Stage(4)
    assert fill_twice(stage, slot) is None
    assert stage.refused == {3: "slot-replay"}
    control = Stage(4, site=Rewinding)
    x = control.x[3]
    np.testing.assert_array_equal(fill_twice(control, slot), x)


@pytest.mark.parametrize("slot", [0, 1, 2, 2**16 - 1])
def test_slots_run_forward_and_end_with_the_epoch(slot: int) -> None:
    stage = Stage(4)
    server = stage.ready()
    stage.inputs(server, 1)
    assert not stage.ask(stage.fork().round(slot, OTHER_MODEL), stage.everybody, OTHER_MODEL)
    assert stage.refused == dict.fromkeys(range(4), "slot-replay")
    np.testing.assert_array_equal(stage.total(server), stage.sum_of(stage.everybody))


def open_again(stage: Stage, where: str) -> np.ndarray:
    """Opens a model with the help of as few sites as will do, then once more without site 3, and subtracts."""
    first = stage.ready()
    stage.inputs(first, 0)
    everybody = stage.total(first, range(stage.plan.t))
    if where == "after a restart":
        stage.restart()
    again = stage.fork() if where == "in the next slot" else stage.ready(2)
    stage.inputs(again, 1, of={0, 1, 2})
    return everybody - stage.total(again)


@pytest.mark.parametrize("where", ["in the next slot", "in the next epoch", "after a restart"])
def test_a_model_is_opened_once(where: str) -> None:
    stage = Stage(4)
    with refused("below-threshold"):
        open_again(stage, where)
    assert stage.refused == dict.fromkeys(range(3), "model-replay")
    control = Stage(4, record=Forgetful)
    np.testing.assert_array_equal(open_again(control, where), control.x[3])


def two_cohorts(stage: Stage, order: str) -> np.ndarray:
    """Gives one checkpoint to sites 0 to 3 and to sites 1 to 4, each cohort in a slot of its own, and subtracts."""
    one, two, helpers = stage.ready(), stage.fork(), range(stage.plan.t)  # as few helpers as will do
    stage.inputs(one, 0, of={0, 1, 2, 3})
    if order == "at once":
        stage.inputs(two, 1, of={1, 2, 3, 4})
    first = stage.total(one, helpers)
    if order == "one by one":
        stage.inputs(two, 1, of={1, 2, 3, 4})
    return first - stage.total(two)


@pytest.mark.parametrize(("order", "code"), [("one by one", "model-replay"), ("at once", "wrong-context")])
def test_one_checkpoint_serves_one_cohort(order: str, code: str) -> None:
    stage = Stage(5)
    with refused("below-threshold"):
        two_cohorts(stage, order)
    assert stage.refused == dict.fromkeys((1, 2, 3), code)
    control = Stage(5, t=1, min_cohort=1)  # two quorums that share no site
    np.testing.assert_array_equal(two_cohorts(control, order), control.x[0] - control.x[4])


def two_plans(wide: Stage, narrow: Stage, order: str) -> np.ndarray:
    """Has one model opened under a plan of four sites and under one of the first three, both live, and subtracts."""
    one, two = wide.ready(), narrow.ready()
    wide.inputs(one, 0)
    if order == "at once":
        narrow.inputs(two, 0)
    everybody = wide.total(one)
    if order == "one by one":
        narrow.inputs(two, 0)
    return everybody - narrow.total(two)


@pytest.mark.parametrize("order", ["one by one", "at once"])
def test_a_model_is_opened_under_one_plan(order: str) -> None:
    wide, narrow = Stage(4), Stage(3)
    narrow.enlist(wide, one_record=False)
    np.testing.assert_array_equal(two_plans(wide, narrow, order), wide.x[3])  # the control comes first
    wide, narrow = Stage(4), Stage(3)
    narrow.enlist(wide, one_record=True)
    with refused("below-threshold"):
        two_plans(wide, narrow, order)
    assert narrow.refused == dict.fromkeys(range(3), "model-replay")


def milk(stage: Stage, epochs: int) -> set[bytes]:
    """Takes inputs of site 0 for new models in every slot, over epochs and restarts, and opens none."""
    inputs = set()
    for epoch in range(1, epochs + 1):
        server = stage.ready(epoch)
        for slot in range(stage.plan.slots):
            model = keys.digest(bytes([epoch, slot]))
            for _ in range(2):  # a retransmission is not another input
                inputs |= set(stage.ask(server.round(slot, model), {0}, model).values())
        if epoch % 2:
            stage.restart()
    return inputs


def test_a_site_gives_as_many_inputs_as_its_plan_says() -> None:
    stage = Stage(4, rounds=3)
    assert len(milk(stage, 4)) == 3
    assert stage.refused == {0: "rounds-spent"}
    assert len(milk(Stage(4, rounds=3, record=Forgetful), 4)) == 8


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_is_not_set_up_again(epoch: int) -> None:
    stage = Stage(4)
    server = stage.ready(2)
    stage.inputs(server, 0)
    assert not stage.ask(Server(stage.plan, epoch).start(), stage.everybody)
    np.testing.assert_array_equal(stage.total(server), stage.sum_of(stage.everybody))
    stage.restart()
    assert not stage.ask(Server(stage.plan, epoch).start(), stage.everybody)
    assert stage.refused == dict.fromkeys(range(4), "epoch-replay")
