"""What the database says of restores from a backup: which runs have to ask their sites before they go on."""

import sqlite3
import time

from nexus_server.database import Database, insert


class Recalls(Database):
    """Restores, and the runs whose sites were asked since."""

    def note_restored(self) -> None:
        """This state is older than what the sites may hold."""
        with self.transaction() as db:
            insert(db, "restores", {"at": time.time()})

    def recall_due(self, run: str) -> bool:
        """Whether a run's sites have not been asked since the last restore."""
        query = "SELECT 1 FROM runs WHERE name = ? AND recalled < (SELECT count(*) FROM restores)"
        return bool(self.rows(query, run))

    def note_recalled(self, run: str) -> None:
        """They were, and hold nothing newer that can be adopted."""
        with self.transaction() as db:
            write_recalled(db, run)


def write_recalled(db: sqlite3.Connection, run: str) -> None:
    """Within a transaction: a run's sites were asked."""
    db.execute("UPDATE runs SET recalled = (SELECT count(*) FROM restores) WHERE name = ?", (run,))
