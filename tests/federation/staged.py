"""A simulated federation whose server dies, and whose sites restart and are away, at chosen trips."""

import collections
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from nexus_common import flower as fl
from nexus_common import wire
from nexus_common.plan import Plan
from nexus_common.stages import Stage as Form
from nexus_common.stages import moved
from nexus_common.versions import perturbed, trained_from
from nexus_server.pauses import Pauses
from nexus_server.records import FINISHED, MIDPOINT
from nexus_server.registry import Registry

from tests.federation.sim import MemoryRecords, SimGrid, SimSite
from tests.federation.test_rounds import Federation, plan_of

FIVE = ("bank-a", "bank-b", "bank-c", "hospital-a", "hospital-b")
STEP = 1.02 / (2**17 - 1)  # of the codec, and the rounding of float32


class Died(Exception):
    """The server's process ends here."""


class Once(set[bytes]):
    """Models that a site helped to open, each of them once."""

    def add(self, model: bytes) -> None:
        assert model not in self, "opened twice"
        super().add(model)


class Site(SimSite):
    """Keeps which models it opened, and under which numbers it trained each."""

    def __init__(self, name: str, plan: Plan) -> None:
        self.memory, self.numbers = MemoryRecords(), collections.defaultdict[bytes, set[int]](set)
        self.memory.opened = self.opened = Once()
        super().__init__(name, plan, records=self.memory)

    @property
    def sent(self) -> int:
        return sum(record.sent for record in self.memory.plans.values())

    def __call__(self, message: wire.Message) -> wire.Message:
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
        self.conductor.gathering.pauses = NoPauses()

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
        vectors, forms, seed = list[np.ndarray](), list[Form](), self.plan.adapter.seed_bytes
        for number, version in enumerate(self.registry.versions("sim")):
            vector, form = self.registry.vector("sim", number), self.plan.stages[version.stage]
            if version.state == MIDPOINT:
                last = zip(vectors[-2:], forms[-2:], strict=True)
                two = [one if held == form else held.control(one) for one, held in last if form in (held, held.alone)]
                middle = np.mean(two, axis=0, dtype="f8").astype("f4")
                expected = middle if len(two) == 2 else perturbed(self.plan, number, vectors[-1])
                np.testing.assert_array_equal(vector, expected)
            elif number:
                begins = trained_from(self.plan, number - 1, vectors[-1])
                updates = [self.sites[name].updates(forms[-1], begins) for name in version.cohort]
                sum_of = (begins + np.mean(updates, axis=0, dtype="f8")).astype("f4")
                expected = moved(sum_of, forms[-1], form, seed)
                np.testing.assert_allclose(vector, expected, atol=STEP, rtol=0)
            vectors.append(vector)
            forms.append(form)
        assert all(len(numbers) == 1 for site in self.sites.values() for numbers in site.numbers.values())


def staged(folder: Path, n: int, rounds: int = 2, **settings: object) -> Staged:
    return Staged(folder, plan_of(FIVE[:n], rounds=rounds, adapter={"salience": False}, **settings))


def die() -> None:
    raise Died
