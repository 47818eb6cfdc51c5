"""The server's memory: sites, invitations, runs, rounds and versions, in SQLite beside content-named vector files.

A round is committed whole or not at all: its files are written to a temporary name, synced and renamed first, then one
transaction names them.  After kill -9 at any instant a run goes on from its newest committed version.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from nexus_common.errors import NexusError
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from numpy.typing import NDArray

from nexus_server.records import RUNNING, STOPPING, Invitation, Run, SiteRow, Version
from nexus_server.vectors import VectorFiles

MIGRATIONS: Final = (
    """
    CREATE TABLE sites (name TEXT PRIMARY KEY, key_hash BLOB NOT NULL UNIQUE, public_pem BLOB NOT NULL,
        identity BLOB NOT NULL UNIQUE, certificate BLOB NOT NULL, expires REAL NOT NULL, enrolled REAL NOT NULL,
        last_seen REAL, readiness TEXT) STRICT;
    CREATE TABLE invitations (secret_hash BLOB PRIMARY KEY, site TEXT NOT NULL, created REAL NOT NULL,
        expires REAL NOT NULL, request_hash BLOB) STRICT;
    CREATE TABLE runs (name TEXT PRIMARY KEY, plan BLOB NOT NULL, state TEXT NOT NULL,
        created REAL NOT NULL, optimiser TEXT) STRICT;
    CREATE TABLE versions (run TEXT NOT NULL REFERENCES runs(name), number INTEGER NOT NULL, hash TEXT NOT NULL,
        cohort TEXT NOT NULL, seconds REAL, bytes_up INTEGER, created REAL NOT NULL, PRIMARY KEY (run, number)) STRICT;
    CREATE TABLE failed_rounds (run TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, reasons TEXT NOT NULL)
        STRICT;
    """,
)


class Registry:
    """One database, one process, any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._versions, self._optimisers = VectorFiles(folder / "versions"), VectorFiles(folder / "optimiser")
        try:
            self._db = sqlite3.connect(folder / "registry.sqlite", check_same_thread=False, isolation_level=None)
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;")
        except sqlite3.Error as problem:
            raise NexusError(f"{folder}/registry.sqlite cannot be opened: {problem}") from None
        self._lock = threading.RLock()
        self._migrate()

    def _migrate(self) -> None:
        (at,) = self._db.execute("PRAGMA user_version").fetchone()
        if at > len(MIGRATIONS):
            raise NexusError(
                f"{self.folder}/registry.sqlite has schema {at}, this program knows {len(MIGRATIONS)}: "
                "it was written by a newer nexus-server"
            )
        for number, script in enumerate(MIGRATIONS[at:], at + 1):
            self._db.executescript(f"BEGIN; {script} PRAGMA user_version={number}; COMMIT;")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; NexusError where the database cannot be written."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as problem:
                raise NexusError(
                    f"{self.folder}/registry.sqlite cannot be written ({problem}); is the disk full?"
                ) from None

    def _rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        with self._lock:
            found = self._db.execute(query, values)
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]

    # -- sites and invitations

    def sites(self) -> list[SiteRow]:
        """All enrolled sites, by name."""
        return [SiteRow(**row) for row in self._rows("SELECT * FROM sites ORDER BY name")]

    def invite(self, site: str, secret_hash: bytes, expires: float) -> None:
        """Open an invitation; an older one for the same site ends."""
        with self._transaction() as db:
            db.execute("DELETE FROM invitations WHERE site = ?", (site,))
            db.execute("INSERT INTO invitations VALUES (?, ?, ?, ?, NULL)", (secret_hash, site, time.time(), expires))

    def invitation(self, secret_hash: bytes) -> Invitation | None:
        """The invitation with this secret."""
        rows = self._rows("SELECT * FROM invitations WHERE secret_hash = ?", secret_hash)
        return Invitation(**rows[0]) if rows else None

    def invitations(self) -> list[Invitation]:
        """All invitations."""
        return [Invitation(**row) for row in self._rows("SELECT * FROM invitations")]

    def open_invitations(self) -> list[str]:
        """Sites that may still come to the enrolment listener: invited, in time, and not yet seen at the main port."""
        rows = self._rows(
            "SELECT i.site FROM invitations i LEFT JOIN sites s ON s.name = i.site "
            "WHERE i.expires > ? AND s.last_seen IS NULL ORDER BY i.site",
            time.time(),
        )
        return [row["site"] for row in rows]

    def enrol(self, row: SiteRow, secret_hash: bytes, request_hash: bytes) -> None:
        """Use the invitation and enrol the site, in one step."""
        with self._transaction() as db:
            db.execute("UPDATE invitations SET request_hash = ? WHERE secret_hash = ?", (request_hash, secret_hash))
            fields = asdict(row)
            names, places = ", ".join(fields), ", ".join("?" * len(fields))
            db.execute(f"INSERT INTO sites ({names}) VALUES ({places})", tuple(fields.values()))  # noqa: S608

    def note_seen(self, seen: dict[str, float]) -> None:
        """Store when sites were last heard of."""
        with self._transaction() as db:
            db.executemany("UPDATE sites SET last_seen = ? WHERE name = ?", [(at, site) for site, at in seen.items()])

    def note_readiness(self, site: str, readiness: str | None) -> None:
        """Store ``preparing`` or ``ready``."""
        with self._transaction() as db:
            db.execute("UPDATE sites SET readiness = ? WHERE name = ?", (readiness, site))

    # -- runs and versions

    def run(self, name: str) -> Run | None:
        """A run by name."""
        rows = self._rows(
            "SELECT plan, state, (SELECT max(number) FROM versions WHERE run = name) AS round, optimiser "
            "FROM runs WHERE name = ?",
            name,
        )
        return Run(**rows[0] | {"plan": Plan.model_validate_json(rows[0]["plan"])}) if rows else None

    def active_run(self) -> Run | None:
        """The run that is running or about to stop; there is at most one."""
        rows = self._rows("SELECT name FROM runs WHERE state IN (?, ?)", RUNNING, STOPPING)
        return self.run(rows[0]["name"]) if rows else None

    def last_run(self) -> Run | None:
        """The run that was started last."""
        rows = self._rows("SELECT name FROM runs ORDER BY created DESC, rowid DESC LIMIT 1")
        return self.run(rows[0]["name"]) if rows else None

    def create_run(self, plan: Plan, first: Vector) -> None:
        """Start a run at version 0."""
        name = self._versions.store({"vector": first})
        with self._transaction() as db:
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, NULL)",
                (plan.name, plan.canonical, RUNNING, time.time()),
            )
            db.execute("INSERT INTO versions VALUES (?, 0, ?, '[]', NULL, NULL, ?)", (plan.name, name, time.time()))

    def set_state(self, run: str, state: str, *, expected: str) -> bool:
        """Change a run's state; False where another thread was faster and it is no longer as expected."""
        with self._transaction() as db:
            change = "UPDATE runs SET state = ? WHERE name = ? AND state = ?"
            return bool(db.execute(change, (state, run, expected)).rowcount)

    def commit_round(
        self,
        run: Run,
        vector: Vector,
        optimiser: dict[str, NDArray[np.float64]],
        cohort: list[str],
        seconds: float,
        bytes_up: int,
    ) -> None:
        """Make the next version durable together with the optimiser's state."""
        version, state = self._versions.store({"vector": vector}), self._optimisers.store(optimiser)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run.plan.name, run.round + 1, version, json.dumps(cohort), seconds, bytes_up, time.time()),
            )
            db.execute("UPDATE runs SET optimiser = ? WHERE name = ?", (state, run.plan.name))
        if run.optimiser and not self._rows("SELECT name FROM runs WHERE optimiser = ?", run.optimiser):
            self._optimisers.delete(run.optimiser)

    def note_failed_round(self, run: str, number: int, reasons: dict[str, str]) -> None:
        """Keep why a round came to nothing; the newest thousand are kept."""
        with self._transaction() as db:
            db.execute("INSERT INTO failed_rounds VALUES (?, ?, ?, ?)", (run, number, time.time(), json.dumps(reasons)))
            db.execute("DELETE FROM failed_rounds WHERE rowid <= (SELECT max(rowid) - 1000 FROM failed_rounds)")

    def failed_rounds(self, run: str) -> int:
        """How many rounds of a run came to nothing."""
        return int(self._rows("SELECT count(*) AS failed FROM failed_rounds WHERE run = ?", run)[0]["failed"])

    def versions(self, run: str | None = None) -> list[Version]:
        """All versions, oldest first."""
        rows = self._rows(
            "SELECT run, number, hash, cohort, seconds, bytes_up, created FROM versions "
            "WHERE ?1 IS NULL OR run = ?1 ORDER BY created, number",
            run,
        )
        return [Version(**row | {"cohort": tuple(json.loads(row["cohort"]))}) for row in rows]

    def vector(self, run: str, number: int) -> Vector:
        """A version's vector; its file must still have the bytes that it was named by."""
        (row,) = self._rows("SELECT hash FROM versions WHERE run = ? AND number = ?", run, number)
        return self._versions.load(row["hash"])["vector"]

    def optimiser_state(self, run: Run) -> dict[str, NDArray[np.float64]]:
        """The server optimiser's state after the newest round."""
        return self._optimisers.load(run.optimiser) if run.optimiser else {}

    def close(self) -> None:
        """Release the database."""
        with self._lock:
            self._db.close()
