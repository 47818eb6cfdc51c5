"""What the database says of runs: their rounds, versions and faults, beside content-named vector files.

A round is committed whole or not at all: its files are written to a temporary name, synced and renamed first, then one
transaction names them.  After kill -9 at any instant a run goes on from its newest committed version.
"""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from nexus_common.errors import NexusError
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from nexus_common.tail import Reported
from numpy.typing import NDArray
from pydantic import ValidationError

from nexus_server.database import insert
from nexus_server.recalls import Recalls, write_recalled
from nexus_server.records import MADE, MIDPOINT, ROLLED_BACK, RUNNING, STOPPING, WITHDRAWN, Rejection, Run, Version
from nexus_server.sums import Sums, write_figures, write_rejection
from nexus_server.vectors import VectorFiles

_DESCENDANT: Final = """
    SELECT own.run FROM versions own JOIN versions their
    ON own.hash = coalesce(their.control, their.hash) AND own.run <> their.run
    WHERE their.state = ? AND own.state <> ? AND own.cohort = '[]' LIMIT 1"""
"""A run that began at a withdrawn version of another one."""
_OUT: Final = """
    SELECT run, number FROM versions WHERE state IN (?, ?) AND coalesce(control, hash) NOT IN
    (SELECT coalesce(control, hash) FROM versions WHERE state = ?)
    ORDER BY out_at DESC, created DESC, number DESC LIMIT ?"""


class Runs(Sums, Recalls):
    """Runs and versions."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._versions, self._optimisers = VectorFiles(folder / "versions"), VectorFiles(folder / "optimiser")

    def run(self, name: str) -> Run | None:
        """A run by name."""
        rows = self.rows(
            "SELECT plan, state, (SELECT max(number) FROM versions WHERE run = name) AS round, "
            "(SELECT count(*) - 1 FROM versions WHERE run = name AND cohort = '[]' AND NOT adopted) AS midpoints, "
            "(SELECT stage FROM versions WHERE run = name ORDER BY number DESC LIMIT 1) AS stage, optimiser "
            "FROM runs WHERE name = ?",
            name,
        )
        return Run(**rows[0] | {"plan": _plan(rows[0]["plan"])}) if rows else None

    def is_outdated(self, name: str) -> bool:
        """Whether this program's plans have other settings than when a run's was approved: it has another hash now."""
        return any(not _is_as_written(row["plan"]) for row in self.rows("SELECT plan FROM runs WHERE name = ?", name))

    def all_runs(self) -> list[Run]:
        """Every run, the newest first."""
        names = [row["name"] for row in self.rows("SELECT name FROM runs ORDER BY created DESC, rowid DESC")]
        return [run for run in map(self.run, names) if run]

    def active_run(self) -> Run | None:
        """The run that is running or about to stop; there is at most one."""
        rows = self.rows("SELECT name FROM runs WHERE state IN (?, ?)", RUNNING, STOPPING)
        return self.run(rows[0]["name"]) if rows else None

    def last_run(self) -> Run | None:
        """The run that was started last."""
        rows = self.rows("SELECT name FROM runs ORDER BY created DESC, rowid DESC LIMIT 1")
        return self.run(rows[0]["name"]) if rows else None

    def create_run(self, plan: Plan, first: Vector, number: int = 0, stage: int = 0, state: str = RUNNING) -> None:
        """Begin a run at a version: number 0, or the one that a lost server's run had reached.

        It counts as asked for: its sites hold nothing of it from before a restore.
        """
        vector = self._versions.store({"vector": first})
        with self.transaction() as db:
            now = time.time()
            insert(db, "runs", {"name": plan.name, "plan": plan.canonical, "state": state, "created": now})
            insert(db, "versions", _version(plan.name, number, vector, stage))
            write_recalled(db, plan.name)

    def set_state(self, run: str, state: str, *, expected: str) -> bool:
        """Change a run's state; False where another thread was faster and it is no longer as expected."""
        with self.transaction() as db:
            change = "UPDATE runs SET state = ? WHERE name = ? AND state = ?"
            return bool(db.execute(change, (state, run, expected)).rowcount)

    def commit_round(
        self,
        run: Run,
        vector: Vector,
        optimiser: dict[str, NDArray[np.float64]],
        cohort: list[str],
        seconds: float | None,
        bytes_up: int | None,
        reported: Sequence[Mapping[str, Reported]],
        stage: int,
    ) -> bool:
        """Make the next version durable together with the optimiser's state and what is ``reported`` of the one before.

        ``vector`` has the form ``stage``, and ``reported`` is by arm of the form before.

        False, and nothing is kept, where a rollback or withdrawal came first: the round began from what is no more.
        """
        version, state = self._versions.store({"vector": vector}), self._optimisers.store(optimiser)
        form = run.plan.stages[stage]
        control = VectorFiles.name({"vector": form.control(vector)}) if form.is_trial else None
        with self.transaction() as db:
            if not _trainable(db, run):
                return False
            made = _version(run.plan.name, run.round + 1, version, stage) | {"control": control}
            insert(db, "versions", made | {"cohort": json.dumps(cohort), "seconds": seconds, "bytes_up": bytes_up})
            db.execute("UPDATE runs SET optimiser = ? WHERE name = ?", (state, run.plan.name))
            write_figures(db, run.plan.name, run.round, reported)
        if run.optimiser and not self.rows("SELECT name FROM runs WHERE optimiser = ?", run.optimiser):
            self._optimisers.delete(run.optimiser)
        return True

    def roll_back(
        self,
        run: Run,
        to: int,
        midpoint: Vector,
        stage: int,
        because: tuple[Rejection, Sequence[Mapping[str, Reported]]] | None = None,
    ) -> bool:
        """Take the versions after ``to`` out of use; training goes on from ``midpoint``, with a fresh optimiser.

        ``because`` of votes: they are kept with all that was reported, and the sum that they came in is done with.

        False, and nothing is changed, where a round was committed meanwhile, or what was voted on withdrawn.
        """
        vector = self._versions.store({"vector": midpoint})
        with self.transaction() as db:
            if _newest(db, run.plan.name) != run.round or (because and not _trainable(db, run)):
                return False
            db.execute(
                "UPDATE versions SET state = ?, out_at = ? WHERE run = ? AND number > ? AND state = ?",
                (ROLLED_BACK, time.time(), run.plan.name, to, MADE),
            )
            insert(db, "versions", _version(run.plan.name, run.round + 1, vector, stage) | {"state": MIDPOINT})
            db.execute("UPDATE runs SET optimiser = NULL WHERE name = ?", (run.plan.name,))
            write_recalled(db, run.plan.name)  # what the sites hold beyond it was made of what is out of use
            if because:
                write_rejection(db, *because)
        return True

    def go_around(self, run: Run, vector: Vector) -> bool:
        """Lay a version beside the newest, whose sum was lost in opening; training goes on from it, and no other way.

        False where a rollback or withdrawal came first.
        """
        version = self._versions.store({"vector": vector})
        with self.transaction() as db:
            db.execute("DELETE FROM openings WHERE run = ?", (run.plan.name,))
            if not _trainable(db, run):
                return False
            insert(db, "versions", _version(run.plan.name, run.round + 1, version, run.stage) | {"state": MIDPOINT})
        return True

    def adopt(self, run: Run, number: int, stage: int, vector: Vector) -> bool:
        """Go on from a version that the run's sites hold and this server had lost, with a fresh optimiser.

        False, and nothing is changed, where a rollback or withdrawal came first.
        """
        version = self._versions.store({"vector": vector})
        with self.transaction() as db:
            if not _trainable(db, run):
                return False
            insert(db, "versions", _version(run.plan.name, number, version, stage) | {"adopted": 1})
            db.execute("UPDATE runs SET optimiser = NULL WHERE name = ?", (run.plan.name,))
            db.execute("DELETE FROM openings WHERE run = ?", (run.plan.name,))
            write_recalled(db, run.plan.name)
        return True

    def withdraw(self, run: str, first: int, last: int) -> int:
        """Take versions out of use for good, with all that other runs made of them; the number of the newest.

        Nothing is changed where that is not ``last``: the versions behind it were trained from these.  A run that lost
        its newest version stops.  Nor is, after a restore, what their sites hold beyond asked for: it is called back.
        """
        with self.transaction() as db:
            if (newest := _newest(db, run)) == last:
                change, now = "UPDATE versions SET state = ?, out_at = ? WHERE run = ?", time.time()
                db.execute(f"{change} AND number BETWEEN ? AND ?", (WITHDRAWN, now, run, first, last))
                names = [run]
                while descendant := db.execute(_DESCENDANT, (WITHDRAWN, WITHDRAWN)).fetchone():
                    names += descendant
                    db.execute(change, (WITHDRAWN, now, *descendant))
                stop = "UPDATE runs SET state = ? WHERE state = ? AND name = ?"
                db.executemany(stop, [(STOPPING, RUNNING, name) for name in names])
                for name in names:
                    write_recalled(db, name)
        return newest

    def in_use(self, run: str) -> int | None:
        """The number of a run's newest version that is for use."""
        rows = self.rows("SELECT max(number) AS newest FROM versions WHERE run = ? AND state = ?", run, MADE)
        return rows[0]["newest"]  # type: ignore[no-any-return]

    def out_of_use(self, most: int) -> list[tuple[str, int]]:
        """Run and number of the versions that went out of use last, and are in use in no run under another number."""
        rows = self.rows(_OUT, WITHDRAWN, ROLLED_BACK, MADE, most)
        return [(row["run"], row["number"]) for row in rows]

    def spent(self, run: Run) -> bool:
        """Whether sites have given all masked inputs that a run's plan allows, failed rounds included."""
        asked = sum(self.slots_asked(protocol.hash) for protocol in run.plan.protocol_plans)
        return max(asked, run.round) >= run.plan.most_inputs

    def last_failure(self, run: Run) -> dict[str, str]:
        """Why the newest try of a run's next round came to nothing, by site; empty where none did."""
        newest = "SELECT reasons FROM failed_rounds WHERE run = ? AND number = ? ORDER BY rowid DESC LIMIT 1"
        rows = self.rows(newest, run.plan.name, run.round + 1)
        return json.loads(rows[0]["reasons"]) if rows else {}

    def versions(self, run: str | None = None) -> list[Version]:
        """All versions, oldest first."""
        rows = self.rows(
            "SELECT run, number, hash, cohort, seconds, bytes_up, created, state, stage FROM versions "
            "WHERE ?1 IS NULL OR run = ?1 ORDER BY created, number",
            run,
        )
        return [Version(**row | {"cohort": tuple(json.loads(row["cohort"]))}) for row in rows]

    def vector(self, run: str, number: int) -> Vector:
        """A version's vector; its file must still have the bytes that it was named by."""
        (row,) = self.rows("SELECT hash FROM versions WHERE run = ? AND number = ?", run, number)
        return self._versions.load(row["hash"])["vector"]

    def adapter(self, run: Run, number: int) -> tuple[int, Vector]:
        """A version for use, with the number of its stage; of a trial it is the control."""
        (row,) = self.rows("SELECT stage FROM versions WHERE run = ? AND number = ?", run.plan.name, number)
        stages = run.plan.stages
        held = stages[row["stage"]]
        return stages.index(held.alone), held.control(self.vector(run.plan.name, number))

    def optimiser_state(self, run: Run) -> dict[str, NDArray[np.float64]]:
        """The server optimiser's state after the newest round."""
        return self._optimisers.load(run.optimiser) if run.optimiser else {}


@lru_cache(maxsize=16)
def _plan(canonical: bytes) -> Plan:
    """Read once: a run is asked for many times a second, and a plan with many stages takes long to check."""
    try:
        return Plan.model_validate_json(canonical)
    except ValidationError as problem:
        raise NexusError(
            f"a run's plan has {problem.error_count()} setting(s) that this program does not take: another version of "
            "nexus-server wrote it; install that one again to go on with the run"
        ) from None


@lru_cache(maxsize=16)
def _is_as_written(canonical: bytes) -> bool:
    return _plan(canonical).canonical == canonical


def _trainable(db: sqlite3.Connection, run: Run) -> bool:
    """Whether the version that a run's round began from is still its newest, and not taken out of use."""
    newest = "SELECT number, state FROM versions WHERE run = ? ORDER BY number DESC LIMIT 1"
    found = db.execute(newest, (run.plan.name,)).fetchone()
    return found in ((run.round, MADE), (run.round, MIDPOINT))


def _newest(db: sqlite3.Connection, run: str) -> int:
    return int(db.execute("SELECT max(number) FROM versions WHERE run = ?", (run,)).fetchone()[0])


def _version(run: str, number: int, vector: str, stage: int) -> dict[str, Any]:
    """A version's row before anybody has trained it."""
    return {"run": run, "number": number, "hash": vector, "cohort": "[]", "created": time.time(), "stage": stage}
