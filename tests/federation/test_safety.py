"""A version that its cohort votes down is taken back by the server; a run that is spoilt twice stops and says why."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nexus_client.consent import Consent
from nexus_client.policy import change_policy, write_policy
from nexus_client.receiving import Receiving
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome
from nexus_common import audit, certs, wire
from nexus_common.layout import Layout
from nexus_common.plan import Plan
from nexus_common.tail import Reported
from nexus_common.versions import StoredAdapter, trained_from
from nexus_server.admin_models import ModelAdministration
from nexus_server.lineage import back_to
from nexus_server.records import FINISHED, MADE, MIDPOINT, ROLLED_BACK, RUNNING, STOPPED, WITHDRAWN, Rejection
from nexus_server.registry import Registry
from nexus_server.run_report import report_of
from nexus_server.safety import voted_down

from tests.federation.sim import SimSite
from tests.federation.test_rounds import NAMES, Federation, plan_of

SPOILT = 0.3  # of the largest value: an honest round moves none so far


class Voter(SimSite):
    """A site that votes by what it received, with a hold-out or without; ``spoils`` names rounds that it breaks."""

    def __init__(self, name: str, plan: Plan) -> None:
        super().__init__(name, plan)
        self.spoils: set[int] = set()
        self.votes = True
        self.meanwhile: Callable[[], object] = lambda: None
        self.opened: list[bytes] = []
        self._round = 0

    def __call__(self, message: wire.Message) -> wire.Message:
        if isinstance(message, wire.TrainRound):
            self.meanwhile()
            self._round = message.round
            begins = trained_from(self.plan, message.round, wire.unpack(message.vector, self.plan.stages[0]))
            self.opened.append(wire.pack(begins))
        return super().__call__(message)

    def update(self, vector: np.ndarray) -> np.ndarray:
        return np.full(len(vector), 0.9, np.float32) if self._round in self.spoils else super().update(vector)

    def report(self, layout: Layout, weights: np.ndarray) -> dict[str, float]:
        first = layout.first_vector(self.plan.adapter.seed_bytes)
        good = float(np.median(np.abs(weights - first))) < SPOILT / 2
        return {"score": 0.5} | ({"vote": 1.0 if good else -1.0} if self.votes else {})


def federation_of(folder: Path, spoils: set[int], names: tuple[str, ...] = NAMES, **settings: object) -> Federation:
    """Sites of which bank-a is broken or hostile in these rounds."""
    plan = plan_of(names, adapter={"salience": False}, **settings)
    made = Federation(folder, plan)
    for name in names:
        site = made.sites[name] = Voter(name, plan)
        made.grid.handle[made.grid.nodes[name]] = site
    voter(made, "bank-a").spoils = spoils
    return made


def voter(federation: Federation, name: str) -> Voter:
    site = federation.sites[name]
    assert isinstance(site, Voter)
    return site


def states(federation: Federation) -> list[str]:
    return [version.state for version in federation.registry.versions("sim")]


def test_a_spoilt_version_is_taken_back_and_training_goes_on_between(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, {1})
    federation.turns(2)
    assert states(federation) == [MADE, MADE, MADE], "nobody knows yet what version 2 is worth"
    federation.turns(1)
    assert states(federation) == [MADE, MADE, ROLLED_BACK, MIDPOINT]
    assert federation.registry.in_use("sim") == 1
    (rejection,) = federation.registry.rejections("sim")
    assert (rejection.version, rejection.votes, rejection.sites, rejection.back_to) == (2, -4, 4, 1)
    between = (federation.registry.vector("sim", 1) + federation.registry.vector("sim", 2)) / 2
    np.testing.assert_allclose(federation.registry.vector("sim", 3), between, atol=1e-6)
    logged = [line for line in audit.read(federation.audit.path) if line["event"] == "version voted down"]
    assert [(line["version"], line["votes"], line["sites"], line["back_to"]) for line in logged] == [(2, -4, 4, 1)]


def test_sites_get_the_last_good_version_back_at_once(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, {1})
    federation.turns(4)
    assert all(site.received[0] == 1 for site in federation.sites.values())


class Shelved(Voter):
    """A voter that keeps versions as a site does, and takes each at once."""

    def __init__(self, name: str, plan: Plan, home: Path) -> None:
        super().__init__(name, plan)
        self.place = SiteHome.of(home, name)
        self.place.keys.mkdir(parents=True)
        certs.save_key(self.place.keys / "identity.key", self.key)
        write_policy(self.place.policy_file, name)
        allowed = {"accept_no_record_privacy": True, "max_clip_norm": 1000.0, "approved_plans": [plan.hash.hex()]}
        change_policy(self.place.policy_file, **allowed)
        consent, self.shelf = Consent(self.place), Shelf(self.place)
        consent.offer(plan.canonical)
        self.receiving = Receiving(self.place, consent, self._take)

    def __call__(self, message: wire.Message) -> wire.Message:
        answer = super().__call__(message)
        if isinstance(message, wire.TrainRound) and message.use:
            vector, layout = wire.unpack(message.vector, self.plan.stages[0]), self.plan.adapter.layout
            self.receiving.store(StoredAdapter(self.plan, message.round, vector, layout))
        return self.receiving.deliver(message) if isinstance(message, wire.Deliver) else answer

    def _take(self) -> None:
        version = StoredAdapter.read(self.place.federated_file)
        assert version is not None
        if version.number:
            self.shelf.put(version, "federated", accepted=True, reason="", chosen=True)

    @property
    def held(self) -> list[str]:
        return [held.name for held in self.shelf.models.held]


@pytest.mark.parametrize("restarts", [False, True], ids=["the same server", "a server that restarts"])
def test_a_site_that_was_away_hears_what_was_taken_back_before_it_trains_again(tmp_path: Path, restarts: bool) -> None:
    federation = federation_of(tmp_path, {1}, rounds=8)
    away = Shelved("hospital-b", federation.plan, tmp_path / "sites")
    federation.sites["hospital-b"] = federation.grid.handle[federation.grid.nodes["hospital-b"]] = away
    federation.turns(2)
    federation.conductor.rounds.masked.forget("hospital-b")
    give = wire.pack(federation.registry.vector("sim", 2))
    away(wire.Deliver(federation.plan.hash, 2, 0, b"", give))
    away.shelf.pin("sim-2")
    federation.grid.silent.add("hospital-b")
    federation.conductor.site_left("hospital-b")
    federation.turns(4)
    assert states(federation)[2] == ROLLED_BACK
    assert federation.registry.in_use("sim") == federation.round > 3, "a new version is in use"
    assert away.shelf.models.in_use == "sim-2"
    away.restart()
    federation.grid.silent.clear()
    if restarts:
        federation.conductor = federation.new_conductor()
    federation.turns(2)
    assert "sim-2" not in away.held
    assert away.shelf.models.pinned is None
    assert f"sim-{federation.round - 1}" in away.held, "and it has part in the rounds again"


def test_a_site_is_told_once_and_again_when_it_comes_anew(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, {1}, rounds=12)
    federation.turns(8)
    received = voter(federation, "bank-b").received
    assert received == [1], "with the version before the one that was taken back"
    federation.conductor.site_left("bank-b")
    federation.turns(2)
    assert len(received) == 2


def test_no_weights_are_opened_twice_whatever_is_taken_back(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, {1, 4}, rounds=6)
    federation.turns(12)
    for site in federation.sites.values():
        assert isinstance(site, Voter)
        assert len(set(site.opened)) == len(site.opened)


def test_a_run_that_goes_back_to_the_same_version_again_stops_and_a_person_lets_it_go_on(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, {1, 3}, rounds=6)
    federation.turns(8)
    first, second = federation.registry.rejections("sim")
    assert (first.back_to, first.stopped) == (1, False)
    assert (second.back_to, second.stopped) == (1, True)
    assert federation.state == STOPPED
    assert "it was not the first time, so the run has stopped" in str(second)
    voter(federation, "bank-a").spoils = set()
    federation.registry.set_state("sim", RUNNING, expected=STOPPED)
    federation.turns(12)
    assert federation.state == FINISHED
    assert federation.registry.in_use("sim") == federation.registry.versions("sim")[-1].number


def test_where_nothing_goes_before_what_is_voted_down_it_stays_in_use_and_the_run_stops(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, set())
    for site in federation.sites.values():
        site.report = lambda *_: {"score": 0.5, "vote": -1.0}  # type: ignore[method-assign]
    federation.turns(2)
    assert (federation.state, states(federation), federation.registry.in_use("sim")) == (STOPPED, [MADE], 0)
    (rejection,) = federation.registry.rejections("sim")
    assert str(rejection).startswith(
        "version 0 was voted down: the votes of 4 sites on it add up to -4; there is none before it to go back to, so "
        "it stays in use and the run has stopped: find out what spoils it"
    )


def test_the_third_time_a_run_stops_whichever_version_it_goes_back_to(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, {1})
    for number in (90, 91):
        federation.registry.note_rejection(Rejection("sim", number + 5, -4, 4, number, False, 0.0), [])
    federation.turns(3)
    assert federation.registry.rejections("sim")[-1].stopped
    assert federation.state == STOPPED


def test_the_end_of_a_run_is_durable_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = federation_of(tmp_path, {1, 3}, rounds=6)

    def dies(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Registry, "set_state", dies)
    with pytest.raises(KeyboardInterrupt):
        federation.turns(8)
    assert federation.registry.rejections("sim")[-1].stopped
    assert federation.state == STOPPED


@pytest.mark.parametrize("back", [True, False], ids=["rolled back", "withdrawn"])
def test_what_a_person_does_meanwhile_is_not_undone_by_votes(tmp_path: Path, back: bool) -> None:
    federation = federation_of(tmp_path, {1})
    federation.turns(2)
    run, done = federation.registry.run("sim"), list[bool]()
    assert run is not None

    def meanwhile() -> None:
        if not done:
            done.append(True)
            if back:
                federation.registry.roll_back(run, 0, *back_to(federation.registry, run, 0))
            else:
                federation.registry.withdraw("sim", 2, 2)

    voter(federation, "bank-a").meanwhile = meanwhile
    federation.turns(1)
    assert states(federation) == ([MADE, ROLLED_BACK, ROLLED_BACK, MIDPOINT] if back else [MADE, MADE, WITHDRAWN])
    assert federation.registry.rejections("sim") == []
    assert "version voted down void" in [line["event"] for line in audit.read(federation.audit.path)]


def test_the_last_version_of_a_run_is_taken_back_too(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, {1}, rounds=2)
    federation.turns(4)
    assert (federation.state, federation.registry.in_use("sim")) == (FINISHED, 1)
    assert [site.received[-1] for site in federation.sites.values()] == [1] * 4


def test_what_is_said_of_it_stands_in_models_report_and_status(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, {1})
    federation.turns(3)
    told = "version 2 was taken back: the votes of 4 sites on it add up to -4; version 1 is in use"
    run = federation.registry.run("sim")
    assert run is not None
    assert told in report_of(federation.registry, run).notes
    models = ModelAdministration(federation.registry, federation.conductor, federation.audit)
    assert models.models(None).notes == (f"run sim: {told}",)  # type: ignore[arg-type]


def test_after_a_crash_in_the_instant_before_the_same_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = federation_of(tmp_path, {1})
    federation.turns(2)

    def dies(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Registry, "roll_back", dies)
    with pytest.raises(KeyboardInterrupt):
        federation.turns(1)
    monkeypatch.undo()
    assert states(federation) == [MADE, MADE, MADE]
    federation.registry.close()
    federation.registry = Registry(tmp_path)
    federation.conductor = federation.new_conductor()
    federation.turns(1)
    assert states(federation) == [MADE, MADE, ROLLED_BACK, MIDPOINT]
    assert len(federation.registry.rejections("sim")) == 1


def test_few_rejections_or_sites_without_a_hold_out_take_nothing_back(tmp_path: Path) -> None:
    federation = federation_of(tmp_path, {1})
    for name in NAMES[:3]:
        voter(federation, name).votes = False
    federation.turns(3)
    assert states(federation) == [MADE] * 4
    assert federation.registry.rejections("sim") == []


@pytest.mark.parametrize(
    ("votes", "sites", "bound", "down"),
    [(-2, 4, 0.5, True), (-1, 4, 0.5, False), (-2, 3, 0.5, True), (-1, 3, 0.5, False), (-4, 4, 1.0, True),
     (-3, 4, 1.0, False), (-1, 64, 0.01, True), (0, 4, 0.01, False), (4, 4, 0.5, False), (-5, 4, 0.5, False)],
)  # fmt: skip
def test_the_bound(tmp_path: Path, votes: float, sites: int, bound: float, down: bool) -> None:
    federation = Federation(tmp_path, plan_of(NAMES, safety={"max_rejections": bound}))
    run = federation.registry.run("sim")
    assert run is not None
    assert (voted_down(run, [{"vote": Reported(votes, sites)}]) is not None) == down
    assert voted_down(run, []) is None
    assert voted_down(run, [{}]) is None
