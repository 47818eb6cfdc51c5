"""State as older programs wrote it (tests/vectors/databases) is brought to schemas of today; nothing of it is lost."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from nexus_client.record import SCHEMA, ProtocolRecord
from nexus_common.audit import AuditLog
from nexus_common.errors import NexusError
from nexus_server.database import MIGRATIONS
from nexus_server.records import RUNNING, STOPPED
from nexus_server.registry import Registry
from nexus_server.vectors import VectorFiles

from tests.federation.sim import SimGrid
from tests.plans import make_plan

FOLDER = Path(__file__).parent.parent / "vectors" / "databases"
NAMES = ("bank-a", "bank-b", "hospital-a")
OLD = [3, 5, 8]
MODEL = b"m" * 32
DIES = """
import os, signal, sqlite3, sys
from pathlib import Path
from nexus_server import database
real, at = sqlite3.connect, int(sys.argv[2])
def connect(*args, **kwargs):
    made = real(*args, **kwargs)
    made.create_function("die", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return made
database.sqlite3.connect = connect
script = database.MIGRATIONS[at]
database.MIGRATIONS = (*database.MIGRATIONS[:at], script + "; SELECT die();", *database.MIGRATIONS[at + 1:])
database.Database(Path(sys.argv[1]))
"""


def written(path: Path, name: str) -> Path:
    """A database as an older program left it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.executescript((FOLDER / f"{name}.sql").read_text())
    return path


def check(registry: Registry, folder: Path) -> None:
    """Everything that was in it."""
    assert registry.rows("PRAGMA user_version") == [{"user_version": len(MIGRATIONS)}]
    run = registry.run("demo")
    assert run is not None
    assert (run.state, run.round, run.done, run.stage) == (RUNNING, 1, 1, 0)
    assert [(row.name, row.controller, row.contact) for row in registry.sites()] == [
        (name, "St Anna", "Dr X") for name in NAMES
    ]
    assert [(one.site, one.kind, one.used) for one in registry.invitations()] == [("bank-c", "join", None)]
    first, made = registry.versions("demo")
    assert (first.cohort, made.cohort, made.seconds, made.bytes_up, made.state) == ((), NAMES, 2.5, 1000, "made")
    (reported,) = registry.figures("demo")[0]
    assert {name: (one.value, one.sites) for name, one in reported.items()} == {"score": (0.5, 3), "loss": (1.0, 3)}
    assert registry.failures("demo")[0][1] == {"bank-b": "refused: no-data"}
    assert registry.next_epoch(b"p" * 32) > 1_795_000_000
    vectors = VectorFiles(folder / "versions")
    begin = run.plan.adapter.layout.first_vector(run.plan.adapter.seed_bytes)
    assert [vectors.store({"vector": begin + np.float32(n)}) for n in (0, 1)] == [first.hash, made.hash]
    np.testing.assert_array_equal(registry.vector("demo", 1), begin + np.float32(1))
    assert not registry.recall_due("demo")


@pytest.mark.parametrize("schema", OLD)
def test_a_servers_state_of_an_older_program_is_brought_up(tmp_path: Path, schema: int) -> None:
    written(tmp_path / "registry.sqlite", f"registry-{schema}")
    with closing(Registry(tmp_path)) as registry:
        check(registry, tmp_path)
    with closing(Registry(tmp_path)) as again:
        check(again, tmp_path)


@pytest.mark.parametrize(("schema", "at"), [(3, 3), (3, 5), (3, len(MIGRATIONS) - 1), (8, 8)])
def test_kill_9_within_a_migration_loses_nothing(tmp_path: Path, schema: int, at: int) -> None:
    written(tmp_path / "registry.sqlite", f"registry-{schema}")
    died = subprocess.run([sys.executable, "-c", DIES, str(tmp_path), str(at)], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    with closing(sqlite3.connect(tmp_path / "registry.sqlite")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (at,), "each step is whole or not at all"
    with closing(Registry(tmp_path)) as registry:
        check(registry, tmp_path)


def test_a_run_whose_plan_had_fewer_settings_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    from nexus_server.conductor import Conductor

    for schema, outdated in ((3, True), (8, False)):
        folder = tmp_path / str(schema)
        written(folder / "registry.sqlite", f"registry-{schema}")
        with closing(Registry(folder)) as registry:
            assert registry.is_outdated("demo") == outdated
            log = AuditLog(folder / "audit.jsonl")
            conductor = Conductor(registry, SimGrid({}).exchange(log), dict, log)
            conductor.phases.pause = lambda seconds: None  # type: ignore[method-assign]
            conductor.turn()
            run = registry.run("demo")
            assert run is not None
            assert run.state == (STOPPED if outdated else RUNNING)


def test_a_plan_that_no_program_of_today_takes_is_told(tmp_path: Path) -> None:
    written(tmp_path / "registry.sqlite", "registry-8")
    with closing(Registry(tmp_path)) as registry:
        with registry.transaction() as db:
            db.execute("UPDATE runs SET plan = ?", (b'{"name": "demo", "future": 1}',))
        with pytest.raises(
            NexusError, match="that this program does not take: another version of nexus-server wrote it"
        ):
            registry.run("demo")


@pytest.mark.parametrize("tables", [3, 5])
def test_a_sites_record_of_an_older_program_forgets_nothing(tmp_path: Path, tables: int) -> None:
    path = written(tmp_path / "protocol.sqlite", f"record-{tables}")
    (row,) = sqlite3.connect(path).execute("SELECT protocol_plan FROM epochs")
    (counted,) = sqlite3.connect(path).execute("SELECT plan FROM inputs")
    for _ in range(2):
        with closing(ProtocolRecord(path)) as record:
            assert record.number("SELECT last FROM epochs WHERE protocol_plan = ?", *row) == 1_795_000_000
            assert record.number("SELECT sent FROM inputs WHERE plan = ?", *counted) == 2
            (protocol,) = make_plan(NAMES).protocol_plans
            assert record.under(make_plan(NAMES), protocol).was_opened(MODEL)
            assert record.models_trained(b"p", MODEL) == 1
            assert record.number("PRAGMA user_version") == SCHEMA


def test_a_record_of_a_newer_program_is_refused_and_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "protocol.sqlite", "record-5")
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    before = path.read_bytes()
    with pytest.raises(
        NexusError, match=f"has schema {SCHEMA + 1}, this program knows {SCHEMA}: .* newer nexus-client"
    ):
        ProtocolRecord(path)
    assert path.read_bytes() == before
