"""What a site must never forget of secure aggregation: epochs, inputs sent, models opened (specification, "Restart").

One SQLite file, synced at every change before the reply that it belongs to leaves, and held by one process alone.  It
is not part of any backup: an old record would let a server open a model twice.
"""

import hmac
import os
import sqlite3
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from nexus_common.disk import room
from nexus_common.errors import NexusError, Refusal
from nexus_common.plan import Plan
from nexus_common.secagg.plan import ProtocolPlan

SCHEMA: Final = 1  # tables that are new are added to an older file; whatever else changes needs a step of its own
_TABLES: Final = f"""
    BEGIN EXCLUSIVE;
    CREATE TABLE IF NOT EXISTS epochs (protocol_plan BLOB PRIMARY KEY, last INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS inputs (plan BLOB PRIMARY KEY, sent INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS trained (plan BLOB, model BLOB, PRIMARY KEY (plan, model)) STRICT;
    CREATE TABLE IF NOT EXISTS weights (plan BLOB, name BLOB, PRIMARY KEY (plan, name)) STRICT;
    CREATE TABLE IF NOT EXISTS secret (value BLOB NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS opened (model BLOB PRIMARY KEY, at REAL NOT NULL) STRICT;
    PRAGMA user_version = {SCHEMA};
    COMMIT;
"""
_FAULTS: Final = (sqlite3.Error, UnicodeDecodeError)  # the second where SQLite's words repeat damaged bytes


class ProtocolRecord:
    """The record of one site, over all its plans."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=1)
            path.chmod(0o600)
            self._db.executescript("PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = FULL;")
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found <= SCHEMA:
                self._db.executescript(_TABLES)  # takes the lock, which is kept
        except _FAULTS as problem:
            remedy = (
                f"{room(path.parent)}: is another process using it, or the disk full?"
                if isinstance(problem, sqlite3.OperationalError)
                else "it is damaged; do not delete it or put an older one in its place, for then the server could have "
                "one model opened twice: invite and join this site under a new name"
            )
            raise NexusError(
                f"{path} cannot be opened ({problem}), and without it no update leaves this site; {remedy}"
            ) from None
        if found > SCHEMA:
            self._db.close()
            raise NexusError(
                f"{path} has schema {found}, this program knows {SCHEMA}: it was written by a newer nexus-client; "
                "install that one again (do not delete the file or put an older one in its place)"
            )

    def under(self, plan: Plan, protocol: ProtocolPlan) -> "PlanRecord":
        """The part that counts for one protocol plan; inputs are counted over all that derive from ``plan``."""
        return PlanRecord(self, plan.hash, protocol.hash)

    def draws(self, model: bytes) -> int:
        """256 bits for batches and dropout on a model: the same each time, and known to nobody else.

        Whoever knew them could take what two sites do with two nearly equal models apart exactly.
        """
        row = self._found("SELECT value FROM secret")
        if row is None:
            row = (os.urandom(32),)
            self.write("INSERT INTO secret VALUES (?)", *row)
        return int.from_bytes(hmac.digest(row[0], model, "sha256"), "little")

    def begin_model(self, plan: Plan, model: bytes, weights: Sequence[bytes]) -> None:
        """A plan is about to have this model trained here, whose arms' weights have these names.

        Refusal for more different models than a run of the plan can have, and for weights of another plan's: each one
        trained shows how long it takes; and two plans start apart, so that no two sums are of one model.
        """
        if self.trained_elsewhere(plan.hash, (model, *weights)):
            raise Refusal("model-replay", f"another plan has trained on weights that plan {plan.name} comes with")
        most = plan.most_inputs + 1  # and the closing one
        if (count := self.models_trained(plan.hash, model)) > most:
            raise Refusal("rounds-spent", f"{count} different models to train on, plan {plan.name} has at most {most}")
        self.note_trained(plan.hash, model, weights)

    def trained_elsewhere(self, plan: bytes, names: Sequence[bytes]) -> bool:
        """Whether another plan has had a model or weights of these names trained here.

        A sum of them may be open without this site's help.
        """
        every = "SELECT plan, model AS name FROM trained UNION ALL SELECT plan, name FROM weights"
        places = ", ".join("?" * len(names))
        query = f"SELECT count(*) FROM ({every}) WHERE plan <> ? AND name IN ({places})"  # noqa: S608  our own words
        return self.number(query, plan, *names) > 0

    def models_trained(self, plan: bytes, model: bytes) -> int:
        """How many different models a plan has had trained here, this one among them, which ``note_trained`` notes."""
        every = "SELECT model FROM trained WHERE plan = ? UNION SELECT ?"
        return self.number(f"SELECT count(*) FROM ({every})", plan, model)  # noqa: S608  our own words

    def note_trained(self, plan: bytes, model: bytes, weights: Sequence[bytes]) -> None:
        """A plan is about to have this model trained here, whose arms' weights have these names."""
        self.add("weights", [(plan, name) for name in weights])
        self.add("trained", [(plan, model)])

    def add(self, table: str, rows: Sequence[tuple[object, object]]) -> None:
        """Rows that are not there yet, all in one change."""
        places = ", ".join(["(?, ?)"] * len(rows))
        self.write(f"INSERT OR IGNORE INTO {table} VALUES {places}", *chain.from_iterable(rows))  # noqa: S608

    def number(self, query: str, *values: bytes) -> int:
        """The one number that a query finds, 0 where it finds none."""
        found = self._found(query, *values)
        return int(found[0]) if found else 0

    def _found(self, query: str, *values: bytes) -> tuple[Any, ...] | None:
        """The first row that a query finds; NexusError where the file cannot be read."""
        try:
            row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        except _FAULTS as problem:
            raise NexusError(f"{self.path} cannot be read ({problem}); without it no update leaves this site") from None
        return row

    def write(self, change: str, *values: object) -> None:
        """One change, on disk when this returns; NexusError where it cannot be written."""
        try:
            self._db.execute(change, values)
        except _FAULTS as problem:
            told = f"{problem}; {room(self.path.parent)}"
            raise NexusError(f"{self.path} cannot be written ({told}); is the disk full?") from None

    def close(self) -> None:
        """Let another process have it."""
        self._db.close()


class PlanRecord:
    """``secagg.client.Record`` of one protocol plan."""

    def __init__(self, record: ProtocolRecord, plan: bytes, protocol: bytes) -> None:
        self._record, self._plan, self._protocol = record, plan, protocol

    def last_epoch(self) -> int:
        """The last epoch set up."""
        return self._record.number("SELECT last FROM epochs WHERE protocol_plan = ?", self._protocol)

    def begin_epoch(self, number: int) -> None:
        """An epoch is being set up."""
        self._record.write("INSERT OR REPLACE INTO epochs VALUES (?, ?)", self._protocol, number)

    def inputs_sent(self) -> int:
        """Masked inputs under any layout of the consortium plan."""
        return self._record.number("SELECT sent FROM inputs WHERE plan = ?", self._plan)

    def count_input(self) -> None:
        """One more."""
        change = "INSERT INTO inputs VALUES (?, 1) ON CONFLICT (plan) DO UPDATE SET sent = sent + 1"
        self._record.write(change, self._plan)

    def was_opened(self, model_hash: bytes) -> bool:
        """Under any plan."""
        return self._record.number("SELECT count(*) FROM opened WHERE model = ?", model_hash) > 0

    def note_opened(self, *names: bytes) -> None:
        """A sum for the model and weights of these names is about to be opened."""
        self._record.add("opened", [(name, time.time()) for name in names])
