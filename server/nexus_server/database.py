"""The server's SQLite database: opened, brought to the newest schema, written in whole transactions."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from nexus_common.disk import room
from nexus_common.errors import NexusError

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
    # Runs of schema 1 had no plan that people could approve, so none of them can go on.
    """
    DELETE FROM failed_rounds; DELETE FROM versions; DELETE FROM runs;
    ALTER TABLE versions ADD COLUMN state TEXT NOT NULL DEFAULT 'made';
    ALTER TABLE sites ADD COLUMN controller TEXT NOT NULL DEFAULT '';
    ALTER TABLE sites ADD COLUMN contact TEXT NOT NULL DEFAULT '';
    ALTER TABLE invitations ADD COLUMN controller TEXT NOT NULL DEFAULT '';
    ALTER TABLE invitations ADD COLUMN contact TEXT NOT NULL DEFAULT '';
    CREATE TABLE plans (hash BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, plan BLOB NOT NULL, wanted INTEGER NOT NULL,
        proposed REAL NOT NULL) STRICT;
    CREATE TABLE standings (plan BLOB NOT NULL REFERENCES plans(hash) ON DELETE CASCADE, site TEXT NOT NULL,
        state TEXT NOT NULL, code TEXT NOT NULL, signature BLOB NOT NULL, at REAL NOT NULL, PRIMARY KEY (plan, site))
        STRICT;
    """,
    # Secure aggregation: the last key epoch of each protocol plan, sums that are being opened, what cohorts report.
    """
    CREATE TABLE epochs (protocol_plan BLOB PRIMARY KEY, last INTEGER NOT NULL) STRICT;
    CREATE TABLE openings (run TEXT PRIMARY KEY REFERENCES runs(name), number INTEGER NOT NULL,
        adverts BLOB NOT NULL, slot INTEGER NOT NULL, model_hash BLOB NOT NULL, message BLOB NOT NULL,
        masked BLOB NOT NULL) STRICT;
    CREATE TABLE figures (run TEXT NOT NULL REFERENCES runs(name), number INTEGER NOT NULL, name TEXT NOT NULL,
        value REAL NOT NULL, sites INTEGER NOT NULL, PRIMARY KEY (run, number, name)) STRICT;
    """,
    "ALTER TABLE epochs ADD COLUMN asked INTEGER NOT NULL DEFAULT 0;",  # times masked inputs were asked for
    # Invitations also renew a certificate or replace lost keys; their listener closes once the site came since.
    """
    ALTER TABLE invitations ADD COLUMN kind TEXT NOT NULL DEFAULT 'join';
    ALTER TABLE invitations ADD COLUMN used REAL;
    UPDATE invitations SET used = created WHERE request_hash IS NOT NULL;
    """,
    # Growth: which form a version has, and figures of each arm of a trial.
    """
    ALTER TABLE versions ADD COLUMN stage INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE figures RENAME TO earlier_figures;
    CREATE TABLE figures (run TEXT NOT NULL REFERENCES runs(name), number INTEGER NOT NULL, arm INTEGER NOT NULL,
        name TEXT NOT NULL, value REAL NOT NULL, sites INTEGER NOT NULL, PRIMARY KEY (run, number, arm, name)) STRICT;
    INSERT INTO figures SELECT run, number, 0, name, value, sites FROM earlier_figures;
    DROP TABLE earlier_figures;
    """,
    # Versions that their cohort voted down.
    """
    CREATE TABLE rejections (run TEXT NOT NULL REFERENCES runs(name), version INTEGER NOT NULL, votes REAL NOT NULL,
        sites INTEGER NOT NULL, back_to INTEGER, stopped INTEGER NOT NULL, at REAL NOT NULL) STRICT;
    """,
    # What another run would begin at: in a trial another vector than the version's own.
    "ALTER TABLE versions ADD COLUMN control TEXT;",
    # When a version was taken out of use; of those from before this was noted, when it was made.
    """
    ALTER TABLE versions ADD COLUMN out_at REAL;
    UPDATE versions SET out_at = created WHERE state IN ('withdrawn', 'rolled back');
    """,
    # A server that was restored asks each run's sites, once a restore, for versions that the backup does not have.
    """
    CREATE TABLE restores (at REAL NOT NULL) STRICT;
    ALTER TABLE runs ADD COLUMN recalled INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE versions ADD COLUMN adopted INTEGER NOT NULL DEFAULT 0;
    """,
)


class NewerSchema(NexusError):
    """A database that a newer program has written."""


def require_known(schema: int, where: Path, newer: str = "a newer nexus-server") -> None:
    """NewerSchema where this program does not know the schema; ``where`` the database lies, and what wrote it."""
    if schema > len(MIGRATIONS):
        raise NewerSchema(
            f"{where} has schema {schema}, this program knows {len(MIGRATIONS)}: it was written by {newer}; install "
            "that one"
        )


class Database:
    """One file, one process, any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(folder / "registry.sqlite", check_same_thread=False, isolation_level=None)
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;")
            self._migrate()
        except sqlite3.Error as problem:
            raise NexusError(f"{folder}/registry.sqlite cannot be opened: {_told(problem, folder)}") from None

    def _migrate(self) -> None:
        (at,) = self._db.execute("PRAGMA user_version").fetchone()
        require_known(at, self.folder / "registry.sqlite")
        for number, script in enumerate(MIGRATIONS[at:], at + 1):
            self._db.executescript(f"BEGIN; {script} PRAGMA user_version={number}; COMMIT;")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
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
                told = _told(problem, self.folder)
                raise NexusError(f"{self.folder}/registry.sqlite cannot be written: {told}") from None

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """What a query finds, by column name."""
        with self._lock:
            try:
                found = self._db.execute(query, values)
                names = [column[0] for column in found.description]
                return [dict(zip(names, row, strict=True)) for row in found]
            except sqlite3.OperationalError as problem:
                # Reading takes a little space too, for the first of all readers.
                told = _told(problem, self.folder)
                raise NexusError(f"{self.folder}/registry.sqlite cannot be read: {told}") from None

    def close(self) -> None:
        """Release the database."""
        with self._lock:
            self._db.close()


def _told(problem: sqlite3.Error, folder: Path) -> str:
    """What SQLite says, and how much space there is, since it seldom tells that this is why."""
    return f"{problem}; {room(folder)}; free some space where that is too little"


def insert(db: sqlite3.Connection, table: str, fields: dict[str, Any]) -> None:
    """Add one row."""
    names, places = ", ".join(fields), ", ".join("?" * len(fields))
    db.execute(f"INSERT INTO {table} ({names}) VALUES ({places})", tuple(fields.values()))  # noqa: S608  our own names
