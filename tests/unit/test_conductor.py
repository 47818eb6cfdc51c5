"""The conductor and the plan's bounds in time, and rounds whose ground was taken away."""

import datetime as dt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nexus_common import audit, wire
from nexus_common.versions import vector_hash
from nexus_server import conductor as module
from nexus_server.admin_api import Rollback, Withdrawal
from nexus_server.admin_models import ModelAdministration
from nexus_server.records import RUNNING, STOPPED

from tests.federation.sim import SimSite
from tests.federation.test_rounds import Federation, plan_of

NAMES = ("bank-a", "bank-b", "hospital-a", "hospital-b")


def at(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day at the server, in UTC."""

    clock = SimpleNamespace(now=dt.datetime.fromisoformat(f"{moment}+00:00").astimezone)
    monkeypatch.setattr(module, "dt", SimpleNamespace(datetime=clock, UTC=dt.UTC))


class Recorder:
    """A site that keeps what it was asked."""

    def __init__(self, federation: Federation, name: str) -> None:
        self.site: SimSite = federation.sites[name]
        self.asked: list[wire.Message] = []
        federation.grid.handle[federation.grid.nodes[name]] = self

    def __call__(self, message: wire.Message) -> wire.Message:
        self.asked.append(message)
        return self.site(message)

    def trained_on(self) -> list[tuple[int, int]]:
        """Number of each version to train on, and whether it was for use."""
        return [(one.round, one.use) for one in self.asked if isinstance(one, wire.TrainRound)]


def models(federation: Federation) -> ModelAdministration:
    return ModelAdministration(federation.registry, federation.conductor, federation.audit)


def test_outside_of_the_plans_hours_the_run_rests_and_goes_on_when_they_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path, plan_of(NAMES, hours_utc="20:00-06:00"))
    at("2026-11-25T12:00", monkeypatch)
    federation.turns(2)
    assert (federation.conductor.phase.name, federation.round, federation.state) == ("resting", 0, RUNNING)
    at("2026-11-25T20:00", monkeypatch)
    federation.turns(1)
    assert (federation.conductor.phase.name, federation.round) == ("adding", 1)


def test_after_its_last_day_a_plan_is_not_trained_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, plan_of(NAMES, end_date="2026-11-25"))
    at("2026-11-25T23:59", monkeypatch)
    federation.turns(1)
    at("2026-11-26T00:00", monkeypatch)
    federation.turns(2)
    assert (federation.state, federation.round) == (STOPPED, 1)


def test_a_site_that_approved_nothing_is_not_even_asked_to_prepare(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    federation.sites["bank-b"].standing = wire.PENDING
    recorder = Recorder(federation, "bank-b")
    federation.turns(2)
    assert {type(one) for one in recorder.asked} == {wire.Propose}
    assert federation.registry.versions("sim")[-1].cohort == ("bank-a", "hospital-a", "hospital-b")


def test_after_a_rollback_the_version_between_is_trained_on_and_not_for_use(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES, rounds=6, server={"optimiser": "fedavgm", "step": 1.0}))
    recorder = Recorder(federation, "bank-b")
    federation.turns(3)
    models(federation).rollback(Rollback(run=None, version=1))
    run = federation.registry.run("sim")
    assert run is not None
    assert federation.registry.optimiser_state(run) == {}, "momentum gained on what was rolled back is not kept"
    federation.turns(2)
    assert recorder.trained_on() == [(0, 1), (1, 1), (2, 1), (4, 0), (5, 1)]
    assert [v.state for v in federation.registry.versions("sim")] == [
        "made", "made", "rolled back", "rolled back", "midpoint", "made", "made",
    ]  # fmt: skip


def test_after_a_second_rollback_training_starts_at_another_place_in_between(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES, rounds=9))
    federation.turns(3)
    for _ in range(2):
        models(federation).rollback(Rollback(run=None, version=1))
        federation.turns(1)
    assert (federation.registry.in_use("sim"), federation.state) == (7, RUNNING)
    one, other = (np.abs(federation.registry.vector("sim", n) - federation.registry.vector("sim", 1)) for n in (4, 6))
    assert other.mean() == pytest.approx(one.mean() / 2, rel=0.01), "half as far from the version gone back to"


def test_where_every_version_is_withdrawn_sites_get_the_base_models_own_output(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    recorder = Recorder(federation, "bank-b")
    federation.turns(2)
    models(federation).withdraw(Withdrawal(run=None, first=1, last=2))
    federation.turns(3)
    delivered = [one for one in recorder.asked if isinstance(one, wire.Deliver)]
    assert [(one.round, one.vector == wire.pack(federation.registry.vector("sim", 0))) for one in delivered] == [
        (0, True),
    ]  # fmt: skip
    assert federation.state == STOPPED


def test_sites_hear_what_is_out_of_use_of_a_run_and_of_one_that_began_from_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    recorder, registry = Recorder(federation, "bank-b"), federation.registry
    federation.turns(2)
    begins, made = registry.vector("sim", 2), registry.vector("sim", 1)
    registry.set_state("sim", STOPPED, expected=RUNNING)
    later = plan_of(NAMES, name="later", origin={"plan": federation.plan.hash.hex(), "version": 2})
    registry.create_run(later, begins)
    run = registry.run("later")
    assert run is not None
    registry.commit_round(run, made * 2, {}, list(NAMES), 1.0, 0, [], 0)
    models(federation).withdraw(Withdrawal(run="sim", first=1, last=2))
    federation.turns(3)
    (delivered,) = (one for one in recorder.asked if isinstance(one, wire.Deliver))
    assert (delivered.run, delivered.round) == (later.hash, 0), "the base model's own output"
    out = {vector_hash(wire.pack(vector)) for vector in (made, begins, made * 2)}
    assert {*wire.unpack_hashes(delivered.withdrawn)} == out


def test_a_version_whose_file_is_damaged_holds_no_delivery_up(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    recorder = Recorder(federation, "bank-b")
    federation.turns(2)
    first, second = federation.registry.versions("sim")[1:]
    kept = vector_hash(wire.pack(federation.registry.vector("sim", 1)))
    (tmp_path / "versions" / f"{second.hash}.safetensors").write_bytes(b"damaged")
    models(federation).withdraw(Withdrawal(run=None, first=first.number, last=second.number))
    federation.turns(3)
    (delivered,) = (one for one in recorder.asked if isinstance(one, wire.Deliver))
    assert wire.unpack_hashes(delivered.withdrawn) == [kept]


@pytest.mark.parametrize("change", [Rollback(run=None, version=0), Withdrawal(run=None, first=1, last=1)], ids=str)
def test_a_round_that_began_before_a_rollback_or_withdrawal_makes_no_version(
    tmp_path: Path, change: Rollback | Withdrawal
) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    federation.turns(1)
    site, done = federation.sites["bank-a"], []

    def interrupted(message: wire.Message) -> wire.Message:
        if isinstance(message, wire.TrainRound) and not done:
            done.append(message)
            admin = models(federation)
            admin.rollback(change) if isinstance(change, Rollback) else admin.withdraw(change)
        return site(message)

    federation.grid.handle[federation.grid.nodes["bank-a"]] = interrupted
    federation.turns(1)
    states = [(v.number, v.state) for v in federation.registry.versions("sim")]
    if isinstance(change, Rollback):
        assert states == [(0, "made"), (1, "rolled back"), (2, "midpoint")]
    else:
        assert states == [(0, "made"), (1, "withdrawn")]
    assert [line["version"] for line in audit.read(federation.audit.path) if line["event"] == "version void"] == [2]


def test_a_version_is_logged_before_it_is_made_and_not_made_where_it_cannot_be(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    federation.turns(1)
    (line,) = [line for line in audit.read(federation.audit.path) if line["event"] == "version"]
    assert (line["version"], line["cohort"]) == (1, list(NAMES))
    federation.audit.path.rename(tmp_path / "moved")
    federation.audit.path.mkdir()
    with pytest.raises(Exception, match="what cannot be logged is not sent"):
        federation.turns(1)
    assert federation.round == 1
