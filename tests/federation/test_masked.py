"""Rounds through secure aggregation: whatever dies, restarts or drops out, sums are exact and no model opens twice."""

import collections
import functools
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nexus_common import wire
from nexus_common.errors import Refusal
from nexus_common.secagg import keys
from nexus_common.secagg.labels import label_of
from nexus_server import sums
from nexus_server.pauses import FIRST_SECONDS
from nexus_server.records import FINISHED, MADE, MIDPOINT, STOPPED
from nexus_server.registry import Registry
from nexus_server.vectors import VectorFiles

from tests.federation.staged import FIVE, Site, Staged, die, staged
from tests.federation.test_rounds import plan_of

pytestmark = pytest.mark.usefixtures("narrow")
SIZES = pytest.mark.parametrize("n", [3, 5])
TRIPS = ("prepare", "setup", "adverts", "train", "round", "commit-set", "open")
POINTS = [(when, trip) for trip in TRIPS for when in ("before", "after")]


@SIZES
@pytest.mark.parametrize("point", POINTS, ids=" ".join)
def test_a_server_that_dies_in_every_round_loses_no_training_and_no_version(
    tmp_path: Path, n: int, point: tuple[str, str]
) -> None:
    federation = staged(tmp_path, n)
    federation.once_a_round(point, die)
    federation.finish()
    assert federation.states == [MADE] * 3
    assert all(site.trained == 2 and len(site.opened) >= 2 for site in federation.sites.values())


def test_a_server_that_dies_before_the_closing_round_hears_what_sites_report(tmp_path: Path) -> None:
    federation = staged(tmp_path, 3)
    federation.turns(2)
    federation.restart_server()
    federation.finish()
    assert federation.registry.figures("sim").keys() == {0, 1, 2}


@SIZES
@pytest.mark.parametrize("point", POINTS[2:], ids=" ".join)
def test_a_site_that_restarts_in_every_round_costs_a_model_only_where_its_share_was_asked_and_is_needed(
    tmp_path: Path, n: int, point: tuple[str, str]
) -> None:
    federation = staged(tmp_path, n)
    federation.once_a_round(point, lambda: federation.restart("bank-b"))
    federation.finish()
    needed = n == 3 and point in (("after", "commit-set"), ("before", "open"))
    around = [MADE, MIDPOINT, MADE, MIDPOINT, MADE]  # beside version 0, then between two
    assert federation.states == (around if needed else [MADE] * 3)
    others = [site for name, site in federation.sites.items() if name != "bank-b"]
    assert all(site.trained == (4 if needed else 2) for site in others), "nobody else trained a model twice"


def test_a_restarted_site_sits_out_until_the_next_epoch_which_is_dealt_when_no_slot_is_open(tmp_path: Path) -> None:
    federation = staged(tmp_path, 5, rounds=3)
    federation.turns(1)
    federation.grid.hook = lambda when, trip: (
        federation.restart("bank-b") if (when, trip) == ("before", "round") else None
    )
    federation.grid.away = lambda trip: ["bank-a"] if trip == "open" else []
    federation.turns(3)  # three of the four signers answered: the slot stays open
    assert (federation.conductor.phase.name, federation.grid.trips.count("setup")) == ("opening", 1)
    federation.grid.hook, federation.grid.away = lambda when, trip: None, lambda trip: []
    federation.turns(1)
    assert federation.grid.trips.count("setup") == 1
    federation.finish()
    assert federation.grid.trips.count("setup") == 2
    assert federation.cohorts == [FIVE, tuple(name for name in FIVE if name != "bank-b"), FIVE]


@SIZES
def test_a_site_that_dies_in_training_costs_no_slot(tmp_path: Path, n: int) -> None:
    federation = staged(tmp_path, n)
    federation.grid.away = lambda trip: FIVE[: n - 2] if trip == "train" else []  # below the quorum
    federation.turns(1)
    assert [site.sent for site in federation.sites.values()] == [0] * n
    assert (federation.registry.failed_rounds("sim"), federation.states) == (1, [MADE])
    federation.grid.away = lambda trip: []
    federation.finish()
    assert all(site.sent == 3 and site.trained == 2 for site in federation.sites.values())


@pytest.mark.parametrize("trip", TRIPS[1:])
def test_one_drop_out_of_five_leaves_a_correct_sum(tmp_path: Path, trip: str) -> None:
    federation = staged(tmp_path, 5)
    federation.grid.away = lambda now: ["bank-c"] if now == trip else []
    federation.finish()
    has_input = trip in ("commit-set", "open")
    assert all(("bank-c" in cohort) == has_input for cohort in federation.cohorts)
    assert (len(federation.cohorts), federation.registry.failed_rounds("sim")) == (2, 0)


@pytest.mark.parametrize("trip", TRIPS[1:-1])
def test_two_drop_outs_of_five_fail_a_round_that_changes_nothing(tmp_path: Path, trip: str) -> None:
    federation = staged(tmp_path, 5)
    federation.grid.away = lambda now: ["bank-c", "bank-a"] if now == trip else []
    federation.turns(1)
    assert (federation.states, federation.registry.failed_rounds("sim")) == ([MADE], 1)
    assert not any(site.opened for site in federation.sites.values())
    federation.grid.away = lambda now: []
    federation.finish()
    assert federation.cohorts == [FIVE] * 2
    assert all(site.trained == 2 for site in federation.sites.values()), "a kept update waits for the next slot"


@SIZES
def test_below_t_shares_the_run_waits_for_the_sites_it_names(tmp_path: Path, n: int) -> None:
    federation = staged(tmp_path, n)
    away = ["bank-a", "bank-c"] if n == 5 else ["bank-a"]
    federation.grid.away = lambda trip: away if trip == "open" else []
    federation.turns(4)
    phase = federation.conductor.phase
    assert (phase.name, phase.missing, phase.round, federation.states) == ("opening", tuple(away), 1, [MADE])
    federation.restart_server()  # which waits for them, too
    federation.turns(2)
    assert (federation.conductor.phase.name, federation.conductor.phase.missing) == ("opening", tuple(away))
    away.pop()
    federation.turns(1)
    assert federation.cohorts == [FIVE[:n]]
    federation.finish()


def test_while_a_sum_waits_to_be_opened_sites_hear_what_is_out_of_use(tmp_path: Path) -> None:
    federation = staged(tmp_path, 5)
    federation.grid.away = lambda trip: ["bank-a", "bank-c"] if trip == "open" else []
    federation.turns(2)
    assert federation.conductor.phase.name == "opening"
    registry, plan = federation.registry, federation.plan
    registry.create_run(
        plan.model_copy(update={"name": "older"}), np.ones(plan.stages[0].dim, np.float32), state=STOPPED
    )
    registry.withdraw("older", 0, 0)
    federation.turns(1)
    assert federation.conductor.phase.name == "opening"
    assert all(site.received == [0] for site in federation.sites.values())
    federation.grid.away = lambda _: []
    federation.finish()


def test_epoch_numbers_rise_even_when_the_servers_clock_goes_backwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []
    for now in (1000.0, 1000.5, 2000.0, 5.0, 5.0, 1999.0, 3000.0):
        monkeypatch.setattr(sums, "time", SimpleNamespace(time=lambda now=now: now))
        registry = Registry(tmp_path)  # after a restart, each time
        numbers.append(registry.next_epoch(b"p"))
        registry.close()
    assert numbers == [1000, 1001, 2000, 2001, 2002, 2003, 3000]


class Boaster(Site):
    """Its first update is longer than any may be."""

    def update(self, vector: np.ndarray) -> np.ndarray:
        return super().update(vector) if self.trained > 1 else np.ones_like(vector)


def test_an_update_beyond_the_norm_bound_makes_no_version_and_the_run_goes_on_beside_it(tmp_path: Path) -> None:
    federation = Staged(tmp_path, plan_of(FIVE, rounds=2, local={"clip_norm": 6.0}), bank_b=Boaster)
    federation.finish()
    assert federation.states == [MADE, MIDPOINT, MADE, MADE]
    assert federation.cohorts == [FIVE] * 2


def test_fifty_sites_that_drop_out_at_every_trip_still_do_twenty_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "is_signed", functools.cache(keys.is_signed))  # fifty sites check the same signatures
    names, chance = tuple(f"site-{i:02}" for i in range(50)), random.Random(7)  # noqa: S311  which sites, not keys
    federation = Staged(tmp_path, plan_of(names, rounds=20, aggregation={"slots": 8, "range": 1.0}))
    odds = collections.defaultdict(lambda: 0.05, propose=0, setup=0.003, adverts=0.003)
    federation.grid.away = lambda trip: [name for name in names if chance.random() < odds[trip]]
    federation.finish(60)
    assert len(federation.cohorts) == 20
    assert 34 <= min(map(len, federation.cohorts)) < 50


def test_a_round_that_changes_nothing_is_gone_around_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = staged(tmp_path, 3, rounds=4)
    tries = iter(range(1, 100))
    monkeypatch.setattr(federation.registry._versions, "name", lambda found: next(tries) and VectorFiles.name(found))
    federation.turns(1)
    for site in federation.sites.values():
        site.update = np.zeros_like  # type: ignore[method-assign]
    federation.turns(3)  # the last of them trains on the weights of the version before
    assert MIDPOINT in federation.states


class Unwilling(Site):
    """Takes no keys."""

    def say(self, message: wire.Ask) -> wire.Message:
        raise Refusal("site-failed")


def test_a_site_that_refuses_its_keys_does_not_cost_all_others_new_ones_in_every_round(tmp_path: Path) -> None:
    federation = Staged(tmp_path, plan_of(FIVE, rounds=3), bank_c=Unwilling)
    federation.conductor = federation.new_conductor()  # with pauses
    federation.turns(3)
    assert len(federation.cohorts) == 3
    assert federation.grid.trips.count("setup") == 1


@pytest.mark.parametrize(("slots", "done", "state"), [(1, 1, STOPPED), (2, 2, FINISHED)])
def test_a_run_that_has_spent_all_inputs_ends(tmp_path: Path, slots: int, done: int, state: str) -> None:
    federation = staged(tmp_path, 5)
    (protocol,) = federation.plan.protocol_plans
    federation.registry.next_epoch(protocol.hash)
    for _ in range(protocol.rounds - slots):
        federation.registry.count_slot(protocol.hash)
    federation.turns(3)
    federation.restart_server()
    federation.turns(1)
    assert (federation.state, federation.done) == (state, done)
    assert federation.registry.spent(federation.registry.run("sim"))


def test_a_run_of_midpoints_ends_where_sites_refuse_further_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = staged(tmp_path, 3)
    federation.grid.hook = lambda *now: now == ("before", "open") and federation.restart("bank-b")
    (protocol,) = federation.plan.protocol_plans
    federation.turns(2 * protocol.rounds)
    assert (federation.state, federation.done) == (STOPPED, 0)
    assert federation.registry.run("sim").round <= protocol.rounds


class Spoilt(Site):
    """What a test makes of its replies in secure aggregation."""

    spoil: Callable[[wire.Ask, Callable[[], wire.Message]], wire.Message]

    def say(self, message: wire.Ask) -> wire.Message:
        return self.spoil(message, lambda: super(Spoilt, self).say(message))


def with_a_spoilt_site(folder: Path, spoil: Callable[[wire.Ask, Callable[[], wire.Message]], wire.Message]) -> Staged:
    federation = Staged(folder, plan_of(FIVE, rounds=3), bank_c=Spoilt)
    federation.sites["bank-c"].spoil = spoil  # type: ignore[attr-defined]
    return federation


def test_a_site_whose_replies_do_not_decode_is_left_alone_and_costs_no_new_keys(tmp_path: Path) -> None:
    federation = with_a_spoilt_site(tmp_path, lambda *_: wire.Trained(b"short"))
    federation.conductor = federation.new_conductor()  # with pauses
    federation.turns(3)
    assert len(federation.cohorts) == 3
    assert federation.grid.trips.count("setup") == 1
    assert federation.conductor.gathering.pauses.length("bank-c") > 0


def test_a_site_that_trains_but_gives_no_input_is_left_alone_ever_longer(tmp_path: Path) -> None:
    def spoil(message: wire.Ask, honest: Callable[[], wire.Message]) -> wire.Message:
        return wire.Refused("site-failed") if label_of(message.data) == "round" else honest()

    federation = with_a_spoilt_site(tmp_path, spoil)
    federation.conductor = federation.new_conductor()
    pauses, lengths = federation.conductor.gathering.pauses, []
    for _ in range(3):
        federation.turns(1)
        lengths.append(pauses.length("bank-c"))
        pauses._until["bank-c"] = (0.0, lengths[-1])  # it is over
    assert lengths == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]


def test_a_site_whose_keys_were_spoilt_is_in_the_next_epoch(tmp_path: Path) -> None:
    spoilt = [1]

    def spoil(message: wire.Ask, honest: Callable[[], wire.Message]) -> wire.Message:
        return wire.Refused("share-decrypt") if message.inbox and spoilt and spoilt.pop() else honest()

    federation = with_a_spoilt_site(tmp_path, spoil)
    federation.finish()
    assert federation.cohorts == [tuple(name for name in FIVE if name != "bank-c"), FIVE, FIVE]
    assert federation.grid.trips.count("setup") == 2


def test_the_third_try_to_deal_keys_counts(tmp_path: Path) -> None:
    names = (*FIVE, "hospital-c", "hospital-d")  # t = 5
    federation, away = Staged(tmp_path, plan_of(names, rounds=2)), ["hospital-c", "hospital-d"]
    federation.grid.away = lambda trip: [away.pop()] if trip == "adverts" and away else []
    federation.turns(1)
    assert federation.cohorts == [FIVE]


def test_a_site_that_restarts_in_a_slot_is_not_left_alone_for_it(tmp_path: Path) -> None:
    federation = staged(tmp_path, 5)
    federation.conductor = federation.new_conductor()  # with pauses
    federation.once_a_round(("before", "round"), lambda: federation.done or federation.restart("bank-b"))
    federation.turns(2)
    assert federation.cohorts[1] == FIVE
