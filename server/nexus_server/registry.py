"""The server's memory: sites, invitations, runs, rounds and versions, in SQLite beside content-named vector files.

A round is committed whole or not at all: its files are written to a temporary name, synced and renamed first, then one
transaction names them.  After kill -9 at any instant a run goes on from its newest committed version.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

MIGRATIONS: Final = (
    """
    CREATE TABLE sites (name TEXT PRIMARY KEY, key_hash BLOB NOT NULL UNIQUE, public_pem BLOB NOT NULL,
        identity BLOB NOT NULL UNIQUE, certificate BLOB NOT NULL, expires REAL NOT NULL, enrolled REAL NOT NULL,
        last_seen REAL, readiness TEXT) STRICT;
    CREATE TABLE invitations (secret_hash BLOB PRIMARY KEY, site TEXT NOT NULL, created REAL NOT NULL,
        expires REAL NOT NULL, request_hash BLOB) STRICT;
    CREATE TABLE runs (name TEXT PRIMARY KEY, hash BLOB NOT NULL, plan BLOB NOT NULL, state TEXT NOT NULL,
        created REAL NOT NULL, optimiser TEXT) STRICT;
    CREATE TABLE versions (run TEXT NOT NULL REFERENCES runs(name), number INTEGER NOT NULL, hash TEXT NOT NULL,
        cohort TEXT NOT NULL, seconds REAL, bytes_up INTEGER, created REAL NOT NULL, PRIMARY KEY (run, number)) STRICT;
    CREATE TABLE failed_rounds (run TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, reasons TEXT NOT NULL)
        STRICT;
    """,
)
RUNNING, STOPPING, STOPPED, FINISHED = "running", "stopping", "stopped", "finished"


@dataclass(frozen=True)
class SiteRow:
    """An enrolled site."""

    name: str
    key_hash: bytes
    public_pem: bytes
    identity: bytes
    certificate: bytes
    expires: float
    enrolled: float
    last_seen: float | None
    readiness: str | None


@dataclass(frozen=True)
class Invitation:
    """An open or used invitation; ``request_hash`` is of the key that used it."""

    secret_hash: bytes
    site: str
    created: float
    expires: float
    request_hash: bytes | None


@dataclass(frozen=True)
class Run:
    """A run and how far it came; ``round`` is the number of its newest version."""

    plan: Plan
    state: str
    round: int
    optimiser: str | None


@dataclass(frozen=True)
class Version:
    """One committed version: 0 is the first vector, n the result of round n."""

    run: str
    number: int
    hash: str
    cohort: tuple[str, ...]
    seconds: float | None
    bytes_up: int | None
    created: float


class Registry:
    """One database, one process, any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("versions", "optimiser"):
            (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
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
            raise NexusError(f"{self.folder}/registry.sqlite has schema {at}, this program knows {len(MIGRATIONS)}: "
                             "it was written by a newer nexus-server")  # fmt: skip
        for number, script in enumerate(MIGRATIONS[at:], at + 1):
            self._db.executescript(f"BEGIN; {script} PRAGMA user_version={number}; COMMIT;")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # -- sites and invitations

    def sites(self) -> list[SiteRow]:
        """All enrolled sites, by name."""
        return [SiteRow(*row) for row in self._rows("SELECT * FROM sites ORDER BY name")]  # type: ignore[arg-type]

    def invite(self, site: str, secret_hash: bytes, expires: float) -> None:
        """Open an invitation; an older one for the same site ends."""
        with self._transaction() as db:
            db.execute("DELETE FROM invitations WHERE site = ?", (site,))
            db.execute("INSERT INTO invitations VALUES (?, ?, ?, ?, NULL)", (secret_hash, site, time.time(), expires))

    def invitation(self, secret_hash: bytes) -> Invitation | None:
        """The invitation with this secret."""
        rows = self._rows("SELECT * FROM invitations WHERE secret_hash = ?", secret_hash)
        return Invitation(*rows[0]) if rows else None  # type: ignore[arg-type]

    def invitations(self) -> list[Invitation]:
        """All invitations."""
        return [Invitation(*row) for row in self._rows("SELECT * FROM invitations")]  # type: ignore[arg-type]

    def open_invitations(self) -> list[str]:
        """Sites that may still come to the enrolment listener: invited, in time, and not yet seen at the main port."""
        rows = self._rows("SELECT i.site FROM invitations i LEFT JOIN sites s ON s.name = i.site "
                          "WHERE i.expires > ? AND s.last_seen IS NULL ORDER BY i.site", time.time())  # fmt: skip
        return [str(site) for (site,) in rows]

    def enrol(self, row: SiteRow, secret_hash: bytes, request_hash: bytes) -> None:
        """Use the invitation and enrol the site, in one step."""
        with self._transaction() as db:
            db.execute("UPDATE invitations SET request_hash = ? WHERE secret_hash = ?", (request_hash, secret_hash))
            db.execute("INSERT INTO sites VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                       (row.name, row.key_hash, row.public_pem, row.identity, row.certificate, row.expires, row.enrolled,
                        row.last_seen, row.readiness))  # fmt: skip

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
        rows = self._rows("SELECT plan, state, (SELECT max(number) FROM versions WHERE run = name), optimiser "
                          "FROM runs WHERE name = ?", name)  # fmt: skip
        if not rows:
            return None
        plan, state, number, optimiser = rows[0]
        return Run(Plan.model_validate_json(plan), state, number, optimiser)  # type: ignore[arg-type]

    def active_run(self) -> Run | None:
        """The run that is running or about to stop; there is at most one."""
        rows = self._rows("SELECT name FROM runs WHERE state IN (?, ?)", RUNNING, STOPPING)
        return self.run(str(rows[0][0])) if rows else None

    def last_run(self) -> Run | None:
        """The run that was started last."""
        rows = self._rows("SELECT name FROM runs ORDER BY created DESC, rowid DESC LIMIT 1")
        return self.run(str(rows[0][0])) if rows else None

    def create_run(self, plan: Plan, first: Vector) -> None:
        """Start a run at version 0."""
        name = self._store("versions", {"vector": first})
        with self._transaction() as db:
            db.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, NULL)",
                       (plan.name, plan.hash, plan.canonical, RUNNING, time.time()))  # fmt: skip
            db.execute("INSERT INTO versions VALUES (?, 0, ?, '[]', NULL, NULL, ?)", (plan.name, name, time.time()))

    def set_state(self, run: str, state: str) -> None:
        """Change a run's state."""
        with self._transaction() as db:
            db.execute("UPDATE runs SET state = ? WHERE name = ?", (state, run))

    def commit_round(self, run: Run, vector: Vector, optimiser: dict[str, NDArray[np.float64]], cohort: list[str],
                     seconds: float, bytes_up: int) -> None:  # fmt: skip
        """Make the next version durable together with the optimiser's state."""
        version, state = self._store("versions", {"vector": vector}), self._store("optimiser", optimiser)
        with self._transaction() as db:
            db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)",
                       (run.plan.name, run.round + 1, version, json.dumps(cohort), seconds, bytes_up, time.time()))  # fmt: skip
            db.execute("UPDATE runs SET optimiser = ? WHERE name = ?", (state, run.plan.name))
        if run.optimiser and run.optimiser != state:
            (self.folder / "optimiser" / f"{run.optimiser}.safetensors").unlink(missing_ok=True)

    def note_failed_round(self, run: str, number: int, reasons: dict[str, str]) -> None:
        """Keep why a round came to nothing; the newest thousand are kept."""
        with self._transaction() as db:
            db.execute("INSERT INTO failed_rounds VALUES (?, ?, ?, ?)", (run, number, time.time(), json.dumps(reasons)))
            db.execute("DELETE FROM failed_rounds WHERE rowid <= (SELECT max(rowid) - 1000 FROM failed_rounds)")

    def failed_rounds(self, run: str) -> int:
        """How many rounds of a run came to nothing."""
        return int(str(self._rows("SELECT count(*) FROM failed_rounds WHERE run = ?", run)[0][0]))

    def versions(self, run: str | None = None) -> list[Version]:
        """All versions, oldest first."""
        rows = self._rows("SELECT run, number, hash, cohort, seconds, bytes_up, created FROM versions "
                          "WHERE ?1 IS NULL OR run = ?1 ORDER BY created, number", run)  # fmt: skip
        return [Version(r[0], r[1], r[2], tuple(json.loads(str(r[3]))), *r[4:]) for r in rows]  # type: ignore[arg-type]

    def vector(self, run: str, number: int) -> Vector:
        """A version's vector; its file must still have the bytes that it was named by."""
        ((name,),) = self._rows("SELECT hash FROM versions WHERE run = ? AND number = ?", run, number)
        return np.asarray(self._load("versions", str(name))["vector"], np.float32)

    def optimiser_state(self, run: Run) -> dict[str, NDArray[np.float64]]:
        """The server optimiser's state after the newest round."""
        return self._load("optimiser", run.optimiser) if run.optimiser else {}

    def _store(self, kind: str, tensors: dict[str, NDArray[np.float32]] | dict[str, NDArray[np.float64]]) -> str:
        data = save(tensors)  # type: ignore[arg-type]
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / kind / f"{name}.safetensors"
        write_durably(path, data)
        return name

    def _load(self, kind: str, name: str) -> dict[str, NDArray[np.float64]]:
        path = self.folder / kind / f"{name}.safetensors"
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != name:
                raise NexusError(f"{path} was changed: it no longer has the SHA-256 it is named by; restore it")
            return load_file(path)  # type: ignore[return-value]
        except FileNotFoundError:
            raise NexusError(f"{path} is missing; restore it from the backup") from None

    def close(self) -> None:
        """Release the database."""
        with self._lock:
            self._db.close()
