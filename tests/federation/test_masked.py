"""Rounds through secure aggregation: whatever dies, restarts or drops out, sums are exact and no model opens twice."""

import collections
import functools
import gc
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nexus_common import flower as fl
from nexus_common import layout, wire
from nexus_common.errors import Refusal
from nexus_common.plan import Plan
from nexus_common.secagg import keys
from nexus_common.secagg.masks import MaskedSum
from nexus_common.versions import perturbed, trained_from
from nexus_server import sums
from nexus_server.pauses import Pauses
from nexus_server.records import FINISHED, MADE, MIDPOINT
from nexus_server.registry import Registry
from nexus_server.vectors import VectorFiles

from tests.federation.sim import SimGrid, SimSite
from tests.federation.test_rounds import Federation, plan_of

FIVE = ("bank-a", "bank-b", "bank-c", "hospital-a", "hospital-b")
SIZES = pytest.mark.parametrize("n", [3, 5])
TRIPS = ("prepare", "setup", "adverts", "train", "round", "commit-set", "open")
POINTS = [(when, trip) for trip in TRIPS for when in ("before", "after")]
STEP = 1.02 / (2**17 - 1)  # of the codec, and the rounding of float32


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter of 2,352 parameters, and processes that die but no disk that does: faster, and the same otherwise."""
    monkeypatch.setattr(layout, "WIDTH", 48)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class Died(Exception):
    """The server's process ends here."""


class Once(set[bytes]):
    """Models that a site helped to open, each of them once."""

    def add(self, model: bytes) -> None:
        assert model not in self, "opened twice"
        super().add(model)


class Site(SimSite):
    """Refuses what comes before its preparation, as ``nexus_client`` does, and keeps under which numbers it trained."""

    def __init__(self, name: str, plan: Plan) -> None:
        super().__init__(name, plan)
        self.opened, self.numbers = Once(), collections.defaultdict[bytes, set[int]](set)

    @property
    def sent(self) -> int:
        return sum(record.sent for record in self.records.values())

    def __call__(self, message: wire.Message) -> wire.Message:
        if self.client is None and isinstance(message, wire.TrainRound | wire.Ask):
            raise Refusal("wrong-context")
        answer = super().__call__(message)
        if isinstance(answer, wire.Trained):
            self.numbers[answer.model].add(message.round)
        return answer


class Stage(SimGrid):
    """A grid with a hook before and after every trip, and sites that are away for single trips."""

    def __init__(self, sites: dict[str, SimSite]) -> None:
        super().__init__(dict(sites))
        self.trips: list[str] = []
        self.hook: Callable[[str, str], None] = lambda when, trip: None
        self.away: Callable[[str], Iterable[str]] = lambda trip: ()
        self.kept: list[fl.Message] | None = None  # a list keeps all that went over the wire

    def send_and_receive(self, messages: Iterable[fl.Message], *, timeout: float | None = None) -> list[fl.Message]:
        sent = list(messages)
        trip = wire.purpose(wire.decode(fl.parcel_of(sent[0])))
        self.trips.append(trip)
        self.hook("before", trip)
        self.silent = set(self.away(trip))
        answers = super().send_and_receive(sent)
        self.silent = set()
        if self.kept is not None:
            self.kept += [*sent, *answers]
        self.hook("after", trip)
        return answers


class NoPauses(Pauses):
    """Whoever was to be left alone for a time is asked at once: time is a parameter of tests."""

    def begin(self, site: str) -> None:
        """It does not begin."""


class Staged(Federation):
    """A federation on such a grid, whose server may die; no site is ever left alone for a time."""

    grid: Stage

    def __init__(self, folder: Path, plan: Plan, **others: type[Site]) -> None:
        super().__init__(folder, plan)
        self.sites = {name: others.get(name.replace("-", "_"), Site)(name, plan) for name in plan.names}
        self.grid, self.hashes = Stage(self.sites), list[str]()
        self.restart_server()

    def restart_server(self) -> None:
        self.registry.close()
        self.registry = Registry(self.folder)
        self.conductor = self.new_conductor()
        self.conductor._pauses = NoPauses()

    def restart(self, name: str) -> None:
        self.sites[name].restart()
        self.conductor.site_left(name)

    @property
    def done(self) -> int:
        return self.registry.run("sim").done

    @property
    def states(self) -> list[str]:
        return [version.state for version in self.registry.versions("sim")]

    @property
    def cohorts(self) -> list[tuple[str, ...]]:
        return [version.cohort for version in self.registry.versions("sim") if version.cohort]

    def once_a_round(self, point: tuple[str, str], happen: Callable[[], None]) -> None:
        """Let something happen at a point of each round, but not again when that round is tried again."""
        rounds = set[int]()

        def hook(*now: str) -> None:
            if now == point and (done := self.done) not in rounds:
                rounds.add(done)
                happen()

        self.grid.hook = hook

    def turns(self, count: int) -> None:
        """Turns of the server, which starts anew where it dies; every committed version stays."""
        for _ in range(count):
            try:
                self.conductor.turn()
            except Died:
                self.restart_server()
            hashes = [version.hash for version in self.registry.versions("sim")]
            assert hashes[: len(self.hashes)] == self.hashes
            self.hashes = hashes

    def finish(self, turns: int = 20) -> None:
        """To the run's end, and what holds of every run."""
        for _ in range(turns):
            self.turns(self.state != FINISHED)
        assert (self.state, self.done) == (FINISHED, self.plan.rounds)
        self.check()

    def check(self) -> None:
        """All sums are exact, midpoints follow the fixed rule, and no weights were trained under two numbers."""
        vectors: list[np.ndarray] = []
        for number, version in enumerate(self.registry.versions("sim")):
            vector = self.registry.vector("sim", number)
            if version.state == MIDPOINT:
                middle = np.mean(vectors[-2:], axis=0, dtype="f8").astype("f4")
                expected = perturbed(self.plan, 1, vectors[0]) if number == 1 else middle
                np.testing.assert_array_equal(vector, expected)
            elif number:
                begins = trained_from(self.plan, number - 1, vectors[-1])
                updates = [self.sites[name].update(begins) for name in version.cohort]
                np.testing.assert_allclose(vector, begins + np.mean(updates, axis=0, dtype="f8"), atol=STEP, rtol=0)
            vectors.append(vector)
        assert all(len(numbers) == 1 for site in self.sites.values() for numbers in site.numbers.values())


def staged(folder: Path, n: int, rounds: int = 2, **settings: object) -> Staged:
    return Staged(folder, plan_of(FIVE[:n], rounds=rounds, adapter={"salience": False}, **settings))


def die() -> None:
    raise Died


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


class Watched(Site):
    """Notes parts of what it encodes, back to front, so that a search does not find the notes."""

    plain = b""

    def __init__(self, name: str, plan: Plan) -> None:
        super().__init__(name, plan)
        self.notes: list[bytes] = []

    def encoded(self) -> np.ndarray:
        found = super().encoded()
        for part in (found[at : at + 64] for at in (100, 1000, 2000)):
            ways = packed(part), part.tobytes(), part.astype("<u4").tobytes()
            self.notes += [way[::-1] for way in ways]
        return found


class Bare(Watched):
    """Masks nothing."""

    def encoded(self) -> np.ndarray:
        found = super().encoded()
        self.plain = packed(found)
        return found

    def say(self, message: wire.Ask) -> wire.Message:
        made, plain, self.plain = super().say(message), self.plain, b""
        return wire.Masked(keys.signed(self.key, made.vector[:50] + plain)) if isinstance(made, wire.Masked) else made


def packed(integers: np.ndarray) -> bytes:
    total = MaskedSum(len(integers), 24)
    total.add(integers)
    return total.packed()


def buffers(hidden: list[bytes]) -> Iterator[Any]:
    """Whatever else holds bytes in this process's memory, in containers of any depth."""
    seen, ahead = set(map(id, hidden)), gc.get_objects()
    while ahead:
        one = ahead.pop()
        if id(one) not in seen:
            seen.add(id(one))
            if type(one) in (bytes, bytearray, np.ndarray):
                yield one
            else:
                ahead += gc.get_referents(one)


def places(federation: Staged) -> set[str]:
    """Where anything of what a site encoded is found: in memory, Flower's messages included, or on disk."""
    notes = [note[::-1] for site in federation.sites.values() for note in site.notes]
    assert len(notes) >= 27
    memory = (bytes(one) for one in buffers(notes) if memoryview(one).nbytes >= 192)
    disk = (path.read_bytes() for path in federation.folder.rglob("*") if path.is_file())
    where = {"disk": disk, "memory": memory}
    return {place for place, found in where.items() if any(note in data for data in found for note in notes)}


@pytest.mark.parametrize("kind", [Watched, Bare])
def test_what_a_site_encodes_is_nowhere_at_the_server_unless_the_site_sends_it_bare(
    tmp_path: Path, kind: type[Watched]
) -> None:
    federation = Staged(tmp_path, plan_of(FIVE[:3], rounds=2), bank_a=Watched, bank_b=kind, bank_c=Watched)
    federation.grid.kept, found = [], list[set[str]]()
    federation.grid.hook = lambda *now: found.append(places(federation)) if now == ("after", "open") else None
    federation.turns(1)
    assert found == [{"memory"} if kind is Bare else set()], "no file has a single site's vector, masked or not"
    (tmp_path / "stray").write_bytes(b"..." + federation.sites["bank-b"].notes[0][::-1])
    assert "disk" in places(federation), "the search reads the folder"


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
