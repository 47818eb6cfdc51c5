"""The server's memory after every kind of end: rounds whole or not at all, files by content, schema."""

import dataclasses
import json
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from nexus_common import wire
from nexus_common.errors import NexusError
from nexus_common.plan import hash_of
from nexus_common.tail import Reported
from nexus_server import database as module
from nexus_server.database import MIGRATIONS
from nexus_server.records import FINISHED, MADE, MIDPOINT, ROLLED_BACK, RUNNING, STOPPED, STOPPING, WITHDRAWN, Run
from nexus_server.registry import Registry

from tests.plans import make_plan, of_another_release

PLAN = make_plan("abc", name="demo")
APPROVAL = wire.Standing(wire.APPROVED, "", b"")
VECTORS = [np.full(4, number, np.float32) for number in range(4)]


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path)
    made.create_run(PLAN, VECTORS[0])
    return made


def run(registry: Registry) -> Run:
    found = registry.run("demo")
    assert found is not None
    return found


def commit(registry: Registry, number: int) -> None:
    state = {"velocity": np.full(4, number / 10)}
    registry.commit_round(run(registry), VECTORS[number], state, ["a", "b", "c"], 1.5, 99, [], 0)


def velocity(registry: Registry) -> float | None:
    state = registry.optimiser_state(run(registry))
    return float(state["velocity"][0]) if state else None


def reopened(registry: Registry) -> Registry:
    registry.close()
    return Registry(registry.folder)


def sql(registry: Registry, statement: str, *values: object) -> None:
    """Change the database beside the registry."""
    with sqlite3.connect(registry.folder / "registry.sqlite") as database:
        database.execute(statement, values)
    database.close()


def test_a_run_begins_at_its_first_vector(registry: Registry) -> None:
    assert run(reopened(registry)) == Run(PLAN, RUNNING, 0, 0, 0, None)
    np.testing.assert_array_equal(Registry(registry.folder).vector("demo", 0), VECTORS[0])


def test_a_committed_round_is_there_after_the_restart(registry: Registry) -> None:
    commit(registry, 1)
    again = reopened(registry)
    np.testing.assert_array_equal(again.vector("demo", 1), VECTORS[1])
    assert (run(again).round, velocity(again)) == (1, 0.1)
    last = again.versions("demo")[-1]
    assert (last.number, last.cohort, last.seconds, last.bytes_up) == (1, ("a", "b", "c"), 1.5, 99)


@pytest.mark.parametrize("place", ["BEGIN", "INSERT INTO versions", "UPDATE runs", "COMMIT"])
def test_a_crash_between_files_and_commit_leaves_the_last_round_whole(registry: Registry, place: str) -> None:
    commit(registry, 1)

    class Dying:
        """The database until a statement that begins with ``place``."""

        def __init__(self, real: sqlite3.Connection) -> None:
            self.real = real

        def execute(self, statement: str, *values: object) -> object:
            if statement.startswith(place):
                raise Crash
            return self.real.execute(statement, *values)

        def executemany(self, *given: object) -> object:
            return self.real.executemany(*given)

    database = registry._db
    registry._db = Dying(database)  # type: ignore[assignment]
    with pytest.raises(Crash):
        commit(registry, 2)
    database.close()
    again = Registry(registry.folder)
    assert (run(again).round, velocity(again)) == (1, 0.1)
    np.testing.assert_array_equal(again.vector("demo", 1), VECTORS[1])
    commit(again, 2)
    np.testing.assert_array_equal(again.vector("demo", 2), VECTORS[2])
    assert velocity(again) == 0.2


def test_a_round_cannot_be_committed_twice(registry: Registry) -> None:
    stale = run(registry)
    commit(registry, 1)
    assert not registry.commit_round(stale, VECTORS[2], {}, ["a"], 1.0, 0, [], 0)
    assert velocity(registry) == 0.1
    np.testing.assert_array_equal(registry.vector("demo", 1), VECTORS[1])


def test_only_the_newest_optimiser_state_is_kept(registry: Registry) -> None:
    for number in (1, 2, 3):
        commit(registry, number)
    assert len(list((registry.folder / "optimiser").iterdir())) == 1
    assert len(list((registry.folder / "versions").iterdir())) == 4


def test_a_state_that_another_run_has_too_is_kept(registry: Registry) -> None:
    registry.create_run(PLAN.model_copy(update={"name": "other"}), VECTORS[0])
    commit(registry, 1)
    other = registry.run("other")
    registry.commit_round(other, VECTORS[1], {"velocity": np.full(4, 0.1)}, ["a"], 1.0, 0, [], 0)
    commit(registry, 2)
    other = registry.run("other")
    assert registry.optimiser_state(other)["velocity"][0] == 0.1


def test_a_changed_vector_file_is_named(registry: Registry) -> None:
    (path,) = (registry.folder / "versions").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(NexusError, match=f"{path.name} was changed"):
        registry.vector("demo", 0)


def test_a_missing_vector_file_is_named(registry: Registry) -> None:
    (path,) = (registry.folder / "versions").iterdir()
    path.unlink()
    with pytest.raises(NexusError, match=f"{path.name} is missing; restore it from the backup"):
        registry.vector("demo", 0)


@pytest.mark.parametrize(("state", "active"), [(RUNNING, 1), (STOPPING, 1), (STOPPED, 0), (FINISHED, 0)])
def test_a_run_is_active_until_it_has_stopped(registry: Registry, state: str, active: int) -> None:
    registry.set_state("demo", state, expected=RUNNING)
    again = reopened(registry)
    assert bool(again.active_run()) == active
    assert again.last_run() == Run(PLAN, state, 0, 0, 0, None)


def test_a_second_run_of_a_name_changes_nothing(registry: Registry) -> None:
    with pytest.raises(NexusError, match="UNIQUE"):
        registry.create_run(PLAN, VECTORS[1])
    np.testing.assert_array_equal(registry.vector("demo", 0), VECTORS[0])


def test_a_rollback_takes_later_versions_out_of_use_and_trains_on_from_between(registry: Registry) -> None:
    for number in (1, 2, 3):
        commit(registry, number)
    registry.roll_back(run(registry), 1, np.full(4, 1.5, np.float32), 0)
    again = reopened(registry)
    assert [v.state for v in again.versions("demo")] == [MADE, MADE, ROLLED_BACK, ROLLED_BACK, MIDPOINT]
    assert (again.in_use("demo"), run(again).round, run(again).done, velocity(again)) == (1, 4, 3, None)
    np.testing.assert_array_equal(again.vector("demo", 4), np.full(4, 1.5))
    assert again.commit_round(run(again), VECTORS[0], {}, ["a", "b", "c"], 1.0, 0, [], 0)
    assert (again.in_use("demo"), run(again).done) == (5, 4)


def test_a_round_that_began_before_a_rollback_or_withdrawal_is_void(registry: Registry) -> None:
    for number in (1, 2):
        commit(registry, number)
    stale = run(registry)
    registry.roll_back(stale, 1, VECTORS[1], 0)
    assert not registry.commit_round(stale, VECTORS[3], {}, ["a"], 1.0, 0, [], 0)
    current = run(registry)
    registry.withdraw("demo", 1, current.round)
    assert not registry.commit_round(current, VECTORS[3], {}, ["a"], 1.0, 0, [], 0)
    assert [v.state for v in registry.versions("demo")] == [MADE, *[WITHDRAWN] * 3]
    assert registry.in_use("demo") == 0


def test_a_rollback_or_withdrawal_of_what_is_not_the_newest_any_more_changes_nothing(registry: Registry) -> None:
    commit(registry, 1)
    stale = run(registry)
    commit(registry, 2)
    assert not registry.roll_back(stale, 0, VECTORS[1], 0)
    assert registry.withdraw("demo", 1, 1) == 2
    assert [v.state for v in registry.versions("demo")] == [MADE] * 3
    assert velocity(registry) == 0.2


def test_a_withdrawn_version_is_withdrawn_where_another_run_began_at_it_too(registry: Registry) -> None:
    commit(registry, 1)
    registry.create_run(PLAN.model_copy(update={"name": "other"}), registry.vector("demo", 1))
    assert registry.withdraw("demo", 1, 1) == 1
    assert [(v.run, v.number, v.state) for v in registry.versions() if v.state == WITHDRAWN] == [
        ("demo", 1, WITHDRAWN),
        ("other", 0, WITHDRAWN),
    ]


def test_what_is_out_of_use_is_named_newest_first_but_not_what_another_run_uses(registry: Registry) -> None:
    for number in (1, 2, 3):
        commit(registry, number)
    assert registry.out_of_use(9) == []
    registry.create_run(PLAN.model_copy(update={"name": "other"}), registry.vector("demo", 2))
    registry.roll_back(run(registry), 0, VECTORS[0] / 2, 0)
    assert registry.out_of_use(9) == [("demo", 3), ("demo", 1)]
    assert registry.out_of_use(1) == [("demo", 3)]


def test_what_went_out_of_use_last_is_named_first_however_old_it_is(registry: Registry) -> None:
    commit(registry, 1)
    for name in ("second", "third"):
        registry.create_run(PLAN.model_copy(update={"name": name}), VECTORS[2] * len(name))
    registry.withdraw("third", 0, 0)
    registry.withdraw("demo", 0, 1)
    registry.withdraw("second", 0, 0)
    assert registry.out_of_use(9) == [("second", 0), ("demo", 1), ("demo", 0), ("third", 0)]
    assert registry.out_of_use(1) == [("second", 0)]


def test_failed_rounds_are_counted_a_run_and_bounded(registry: Registry) -> None:
    row = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500) "
    sql(registry, f"INSERT INTO failed_rounds {row} SELECT 'demo', 1, 0, '{{}}' FROM n")
    registry.note_failed_round("other", 2, {"a": "norm-bound"})
    registry.note_failed_round("demo", 2, {"a": "norm-bound"})
    assert (registry.failed_rounds("demo"), registry.failed_rounds("other")) == (999, 1)
    (newest,) = registry.rows("SELECT reasons FROM failed_rounds WHERE number = 2 AND run = 'demo'")
    assert json.loads(newest["reasons"]) == {"a": "norm-bound"}


def test_a_newer_schema_is_refused(registry: Registry) -> None:
    sql(registry, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(NexusError, match=f"has schema {len(MIGRATIONS) + 1}.*newer nexus-server"):
        reopened(registry)


def test_an_older_schema_is_migrated_and_keeps_its_rows(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    more = "ALTER TABLE sites ADD COLUMN note TEXT; CREATE TABLE notes (text TEXT) STRICT;"
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, more))
    again = reopened(registry)
    assert again.rows("PRAGMA user_version") == [{"user_version": len(MIGRATIONS) + 1}]
    assert again.rows("SELECT * FROM notes") == []
    assert run(again).plan == PLAN


def test_a_migration_that_fails_leaves_the_old_schema(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE notes (text TEXT) STRICT; nonsense;"))
    with pytest.raises(NexusError, match='cannot be opened: near "nonsense": syntax error'):
        reopened(registry)
    monkeypatch.undo()
    again = Registry(registry.folder)
    assert again.rows("SELECT name FROM sqlite_master WHERE name = 'notes'") == []


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(NexusError, match=r"registry\.sqlite cannot be opened"):
        Registry(tmp_path)


def test_records_cannot_be_changed(registry: Registry) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        run(registry).round = 9  # type: ignore[misc]


def test_figures_and_versions_from_before_growth_are_the_control_of_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS[:5])
    old = Registry(tmp_path)
    with old.transaction() as db:
        db.execute("INSERT INTO runs VALUES ('demo', ?, 'running', 1.0, NULL)", (PLAN.canonical,))
        row = "INSERT INTO versions (run, number, hash, cohort, created) VALUES ('demo', 0, 'x', '[]', 1.0)"
        db.execute(row)
        db.execute("INSERT INTO figures VALUES ('demo', 0, 'score', 0.5, 3)")
    old.close()
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS)
    new = Registry(tmp_path)
    assert new.figures("demo") == {0: [{"score": Reported(0.5, 3)}]}
    assert [version.stage for version in new.versions("demo")] == [0]
    run = new.run("demo")
    assert run is not None
    assert run.form == PLAN.stages[0]


def test_a_plan_of_another_release_is_proposed_in_this_ones_words_and_approved_again(registry: Registry) -> None:
    plan = PLAN.model_copy(update={"name": "next"})
    old = of_another_release(plan)
    registry.propose(plan, wanted=True)
    registry.note_standing(plan, "a", APPROVAL)
    sql(registry, "PRAGMA foreign_keys = OFF")
    sql(registry, "UPDATE plans SET plan = ?, hash = ? WHERE name = 'next'", old, hash_of(old))
    sql(registry, "UPDATE standings SET plan = ?", hash_of(old))
    sql(registry, "UPDATE plans SET proposed = 1000.0")
    again = reopened(registry)
    assert not again.note_standing(plan, "a", APPROVAL), "nobody is waited for under the new hash yet"
    assert again.renew_plans() == (["next"], [])
    assert again.proposals()[0].at > time.time() - 60, "nobody could approve this text earlier"
    assert again.standings(plan) == []
    assert again.note_standing(plan, "a", APPROVAL)
    assert again.renew_plans() == ([], [])


def test_a_proposal_that_this_release_cannot_read_is_dropped_and_holds_up_no_start(registry: Registry) -> None:
    for name in ("next", "later"):
        registry.propose(PLAN.model_copy(update={"name": name}))
    registry.note_standing(PLAN.model_copy(update={"name": "next"}), "a", APPROVAL)
    sql(registry, "UPDATE plans SET plan = ? WHERE name = 'next'", b'{"name": "next", "newer": 1}')
    again = reopened(registry)
    assert again.renew_plans() == ([], ["next"])
    assert [one.plan.name for one in again.proposals()] == ["later"]
