"""What the database keeps of rounds: epochs, the sum that is being opened, what cohorts report, and failures."""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

from nexus_common.secagg.server import Opening
from nexus_common.tail import Reported

from nexus_server.database import Database, insert
from nexus_server.records import RUNNING, STOPPED, STOPPING, Rejection

_FIELDS: Final = ("adverts", "slot", "model_hash", "message", "masked")


class Sums(Database):
    """Epochs, openings, figures and failures."""

    def next_epoch(self, protocol_plan: bytes) -> int:
        """A number above all before it, on disk before it is used: a restored server does not fall behind its sites."""
        with self.transaction() as db:
            found = db.execute("SELECT last FROM epochs WHERE protocol_plan = ?", (protocol_plan,)).fetchone()
            number = max((found[0] if found else 0) + 1, int(time.time()))
            change = (
                "INSERT INTO epochs VALUES (?, ?, 0) ON CONFLICT (protocol_plan) DO UPDATE SET last = excluded.last"
            )
            db.execute(change, (protocol_plan, number))
        return number

    def count_slot(self, protocol_plan: bytes) -> None:
        """Masked inputs are about to be asked for; each site gives a bounded number of them."""
        with self.transaction() as db:
            db.execute("UPDATE epochs SET asked = asked + 1 WHERE protocol_plan = ?", (protocol_plan,))

    def slots_asked(self, protocol_plan: bytes) -> int:
        """How often masked inputs were asked for under a plan."""
        rows = self.rows("SELECT asked FROM epochs WHERE protocol_plan = ?", protocol_plan)
        return rows[0]["asked"] if rows else 0

    def keep_opening(self, run: str, number: int, opening: Opening) -> None:
        """Before ``open`` leaves: all that opening the sum of version ``number`` takes."""
        with self.transaction() as db:
            db.execute("DELETE FROM openings WHERE run = ?", (run,))
            insert(db, "openings", {"run": run, "number": number, **asdict(opening)})

    def opening(self, run: str, number: int) -> Opening | None:
        """The sum that waits to become the version after ``number`` of a run."""
        rows = self.rows("SELECT * FROM openings WHERE run = ? AND number = ?", run, number)
        return Opening(**{name: rows[0][name] for name in _FIELDS}) if rows else None

    def forget_opening(self, run: str) -> None:
        """The sum was opened, or never will be."""
        with self.transaction() as db:
            db.execute("DELETE FROM openings WHERE run = ?", (run,))

    def figures(self, run: str, least: int = 1) -> dict[int, list[dict[str, Reported]]]:
        """What cohorts reported of a run's versions, by number and arm; the first arm is the control or the only one.

        Only what at least so many sites had.  An arm of which nothing was reported is there, empty, where something was
        of a later one.
        """
        found: dict[int, list[dict[str, Reported]]] = {}
        query = "SELECT number, arm, name, value, sites FROM figures WHERE run = ? AND sites >= ? ORDER BY arm"
        for row in self.rows(query, run, least):
            arms = found.setdefault(row["number"], [])
            arms += ({} for _ in range(row["arm"] + 1 - len(arms)))
            arms[row["arm"]][row["name"]] = Reported(row["value"], row["sites"])
        return found

    def hidden_figures(self, run: str, least: int) -> int:
        """How many figures fewer sites had."""
        query = "SELECT count(*) AS hidden FROM figures WHERE run = ? AND sites < ?"
        return int(self.rows(query, run, least)[0]["hidden"])

    def note_figures(self, run: str, number: int, reported: Sequence[Mapping[str, Reported]]) -> None:
        """What a cohort reports of the version it received; the sum behind it is done with."""
        with self.transaction() as db:
            write_figures(db, run, number, reported)

    def rejections(self, run: str) -> list[Rejection]:
        """The versions of a run that were voted down, oldest first."""
        rows = self.rows("SELECT * FROM rejections WHERE run = ? ORDER BY rowid", run)
        return [Rejection(**row | {"stopped": bool(row["stopped"])}) for row in rows]

    def note_rejection(self, rejection: Rejection, reported: Sequence[Mapping[str, Reported]]) -> None:
        """A version was voted down that no other goes before."""
        with self.transaction() as db:
            write_rejection(db, rejection, reported)

    def note_failed_round(self, run: str, number: int, reasons: dict[str, str]) -> None:
        """Keep why a round came to nothing; the newest thousand are kept."""
        with self.transaction() as db:
            db.execute("INSERT INTO failed_rounds VALUES (?, ?, ?, ?)", (run, number, time.time(), json.dumps(reasons)))
            db.execute("DELETE FROM failed_rounds WHERE rowid <= (SELECT max(rowid) - 1000 FROM failed_rounds)")

    def failed_rounds(self, run: str) -> int:
        """How many rounds of a run came to nothing."""
        return int(self.rows("SELECT count(*) AS failed FROM failed_rounds WHERE run = ?", run)[0]["failed"])

    def failures(self, run: str) -> list[tuple[float, dict[str, str]]]:
        """When and why, by site, rounds of a run came to nothing, the oldest first; a site "" is the round itself."""
        rows = self.rows("SELECT at, reasons FROM failed_rounds WHERE run = ? ORDER BY rowid", run)
        return [(row["at"], json.loads(row["reasons"])) for row in rows]


def write_rejection(db: sqlite3.Connection, rejection: Rejection, reported: Sequence[Mapping[str, Reported]]) -> None:
    """Within a transaction: that a version was voted down, with all that was reported of it; it may end the run."""
    insert(db, "rejections", asdict(rejection) | {"stopped": int(rejection.stopped)})
    if rejection.stopped:
        change = "UPDATE runs SET state = ? WHERE name = ? AND state IN (?, ?)"
        db.execute(change, (STOPPED, rejection.run, RUNNING, STOPPING))
    write_figures(db, rejection.run, rejection.version, reported)


def write_figures(db: sqlite3.Connection, run: str, number: int, reported: Sequence[Mapping[str, Reported]]) -> None:
    """Within a transaction: the figures of a version's arms, and the end of its opening."""
    rows = [(run, number, n, name, one.value, one.sites) for n, arm in enumerate(reported) for name, one in arm.items()]
    db.executemany("INSERT OR REPLACE INTO figures VALUES (?, ?, ?, ?, ?, ?)", rows)
    db.execute("DELETE FROM openings WHERE run = ?", (run,))
