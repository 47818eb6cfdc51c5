"""A server that shows different sites different things in one slot: sets of survivors, cohorts, models.

The difference of two sums over sets that differ in one site is that site's input, so that is what it is after.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from nexus_common.secagg import keys, shamir
from nexus_common.secagg.client import Client
from nexus_common.secagg.epoch import Slot
from nexus_common.secagg.masks import MaskedSum

from tests.attacks.stage import MODEL, OTHER_MODEL, Stage, TwoFaced, refused


def equivocate(stage: Stage, first: set[int], second: set[int]) -> np.ndarray:
    """Shows ``first`` a set with the last site in it, ``second`` one without it, both in the same slot."""
    victim = stage.plan.n - 1
    one = stage.ready()
    two = stage.fork()
    two.round(0, MODEL)
    for i, data in stage.inputs(one, 0).items():
        if i != victim:
            two.receive(data)
    return stage.total(one, first) - stage.total(two, second)


@pytest.mark.parametrize("colluders", [set(), {0}], ids=["alone", "with-a-colluder"])
@pytest.mark.parametrize("first", [set(four) for four in combinations(range(5), 4)], ids=str)
def test_two_sets_of_survivors_in_one_slot_unmask_nobody(first: set[int], colluders: set[int]) -> None:
    stage, second = Stage(5, site=TwoFaced, only=colluders), {0, 1, 2, 3}
    with refused("below-threshold"):
        equivocate(stage, first, second)
    assert stage.refused == dict.fromkeys((first & second) - colluders, "second-set")
    control = Stage(5, site=TwoFaced)
    np.testing.assert_array_equal(equivocate(control, first, second), control.x[4])


@pytest.mark.parametrize(("n", "colluders"), [(4, 1), (5, 1), (7, 2), (10, 3), (16, 5)])
def test_as_many_colluders_as_the_protocol_bears_do_not_help_the_server(n: int, colluders: int) -> None:
    stage = Stage(n, site=TwoFaced, only=range(colluders))
    t, others = stage.plan.t, list(range(colluders, n - 1))
    with_victim = {*range(colluders), n - 1, *others[: t - colluders - 1]}
    without = {*range(colluders), *others[colluders - t :]}  # as few honest sites in both as can be
    assert len(with_victim) == len(without) == t
    with refused("below-threshold"):
        equivocate(stage, with_victim, without)
    assert set(stage.refused.values()) == {"second-set"}
    one_more = Stage(n, site=TwoFaced, only=with_victim & without)
    np.testing.assert_array_equal(equivocate(one_more, with_victim, without), one_more.x[n - 1])


def test_a_threshold_of_half_the_sites_would_let_honest_sites_unmask_one() -> None:
    control = Stage(5, t=2, min_cohort=2)
    np.testing.assert_array_equal(equivocate(control, {3, 4}, {0, 1}), control.x[4])


def both_kinds(stage: Stage, order: list[set[int]]) -> np.ndarray | None:
    """Opens two sets at every site, with t true signatures under each; site 3's input by both its secrets."""
    server, kinds = stage.ready(), []
    found = stage.inputs(server, 0)
    for survivors in order:
        stage.ask(stage.commit(server, survivors), survivors)
        replies = stage.ask(stage.opening(server, survivors, {0, 1, 2}), {0, 1, 2})
        texts = {i: reply[-keys.SIGNATURE - shamir.SHARE : -keys.SIGNATURE] for i, reply in replies.items()}
        kinds.append({i: int.from_bytes(text, "little") for i, text in texts.items()})
    if min(map(len, kinds)) < stage.plan.t:
        return None
    secrets = {3 in set_: shamir.to_bytes(shamir.join(shares)) for set_, shares in zip(order, kinds, strict=True)}
    return stage.read(server, 3, found[3], secrets[False], secrets[True])


@pytest.mark.parametrize("order", [[{0, 1, 2, 3}, {0, 1, 2}], [{0, 1, 2}, {0, 1, 2, 3}]], ids=str)
def test_no_site_gives_both_kinds_of_share_of_a_site(order: list[set[int]]) -> None:
    stage = Stage(4)
    assert both_kinds(stage, order) is None
    assert {stage.refused[i] for i in (0, 1, 2)} == {"second-set"}
    for site in stage.sites[:3]:  # nor does it hold both any longer
        assert all((key == b"") != (seed == b"") for key, seed in site._dealt.shares[0].values())  # type: ignore[union-attr]
    control = Stage(4, site=TwoFaced)
    np.testing.assert_array_equal(both_kinds(control, order), control.x[3])


def shrink(stage: Stage, cohort: set[int]) -> np.ndarray:
    """Asks for the sum of a few sites, by a server that thinks them enough."""
    stage.ready()
    server = stage.fork(t=len(cohort), min_cohort=len(cohort))
    stage.inputs(server, 0, of=cohort)
    return stage.total(server)


@pytest.mark.parametrize("cohort", [{3}, {0, 3}, {0, 2, 3}], ids=len)
def test_a_sum_of_fewer_sites_than_the_quorum_is_never_opened(cohort: set[int]) -> None:
    policy = 4 if len(cohort) == 3 else 0  # above the plan's three, where it has to be
    stage = Stage(4, site=partial(Client, min_cohort=policy))
    with refused("below-threshold"):
        shrink(stage, cohort)
    assert stage.refused == dict.fromkeys(cohort, "cohort-too-small")
    control = Stage(4, t=len(cohort), min_cohort=len(cohort))
    np.testing.assert_array_equal(shrink(control, cohort), control.sum_of(cohort))


class WithoutSelfMask(Client):
    """Masks with the pairwise keys alone, as protocols without Bonawitz's second mask do."""

    def _masked(self, integers: np.ndarray, secrets: Slot, ctx: bytes) -> bytes:
        total = MaskedSum(self.plan.dim + 1, self.plan.mod_bits)
        total.add_packed(super()._masked(integers, secrets, ctx))
        total.add_mask(keys.self_key(secrets.seed, ctx, self.site), -1)
        return total.packed()


def call_late(stage: Stage) -> np.ndarray:
    """Holds the last site's input back, has its mask secret opened as a drop-out's, and takes these masks off."""
    server = stage.ready()
    late = stage.ask(server.round(0, MODEL), {3})[3]
    stage.inputs(server, 0, of={0, 1, 2})
    np.testing.assert_array_equal(stage.total(server), stage.sum_of({0, 1, 2}))
    stage.ask(stage.commit(server, {0, 1, 2}), {3})
    return stage.read(server, 3, late, server._secrets(server.heard)[3], None)


def test_a_site_that_is_left_out_keeps_its_input() -> None:
    stage = Stage(4)
    assert not np.array_equal(call_late(stage), stage.x[3])
    assert stage.refused == {3: "own-input-missing"}
    control = Stage(4, site=WithoutSelfMask, only={3})
    np.testing.assert_array_equal(call_late(control), control.x[3])


FOUR = {0, 1, 2, 3}
OPENINGS = {
    "nobody signs": (lambda stage, server, _: stage.opening(server, FOUR, set()), "too-few-set-signatures"),
    "too few sign": (lambda stage, server, _: stage.opening(server, FOUR, {0, 1, 2}), "too-few-set-signatures"),
    "an outsider signs": (lambda stage, server, _: stage.opening(server, FOUR, {1, 2, 3, 4}), "unknown-site"),
    "another set": (lambda stage, server, _: stage.opening(server, stage.everybody, stage.everybody), "second-set"),
    "other keys sign": (lambda _, server, __: Stage(5).opening(server, FOUR, FOUR), "bad-signature"),
    "one signs for all": (lambda _, __, real: real[: -4 * 64] + 4 * real[-64:], "bad-signature"),
    "signed in the slot before": (lambda stage, _, real: real[: -4 * 64] + stage.kept[-4 * 64 :], "bad-signature"),
    "the slot before": (lambda stage, _, __: stage.kept, "wrong-context"),
}


@pytest.mark.parametrize(("false", "code"), OPENINGS.values(), ids=OPENINGS)
def test_an_opening_that_no_quorum_signed_opens_nothing(false: Callable[..., bytes], code: str) -> None:
    stage = Stage(5)
    server = stage.ready()
    stage.inputs(server, 0)
    stage.kept = stage.opening(server, FOUR, FOUR)
    stage.inputs(server, 1, OTHER_MODEL, FOUR)
    real = stage.opening(server, FOUR, FOUR)
    assert not stage.ask(real, FOUR)
    assert stage.refused == dict.fromkeys(FOUR, "set-not-committed")
    stage.ask(server.commit(), FOUR)
    assert not stage.ask(false(stage, server, real), FOUR)
    assert stage.refused == dict.fromkeys(FOUR, code)
    np.testing.assert_array_equal(stage.total(server), stage.sum_of(FOUR))


def test_two_models_to_two_halves_find_no_quorum() -> None:
    stage = Stage(4)
    stage.ready()
    halves = ((stage.fork(), MODEL, {0, 1}), (stage.fork(), OTHER_MODEL, {2, 3}))
    for server, model, half in halves:
        stage.inputs(server, 0, model, half)
    for server, _, half in halves:
        with refused("below-threshold"):
            server.commit()
        stage.ask(stage.commit(server, half), half)
        assert {stage.refused[i] for i in half} == {"cohort-too-small"}
        signed = stage.ask(stage.commit(server, stage.everybody), stage.everybody)
        assert {stage.refused[i] for i in stage.everybody - half} == {"wrong-context"}
        assert set(signed) == half
        assert len(signed) < stage.plan.t


def single_out(stage: Stage, *, gullible: bool) -> np.ndarray:
    """Sends the others a model that leaves them nothing to learn, under the hash of the one that the last site has."""
    server = stage.ready()
    message = server.round(0, MODEL)
    stage.x |= dict.fromkeys(range(3), np.array([0, 0, 0, 1]))
    for i in stage.everybody:
        received = MODEL if gullible or i == 3 else OTHER_MODEL
        for reply in stage.ask(message, {i}, received).values():
            server.receive(reply)
    return stage.total(server)


def test_a_model_under_another_ones_hash_singles_nobody_out() -> None:
    stage = Stage(4)
    with refused("below-threshold"):
        single_out(stage, gullible=False)
    assert stage.refused == dict.fromkeys(range(3), "wrong-context")
    control = Stage(4)  # its sites take the server's word for what they received
    np.testing.assert_array_equal(single_out(control, gullible=True)[:3], control.x[3][:3])
