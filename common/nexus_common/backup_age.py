"""How old the last backup is, by what the lines of an audit log say of backups."""

from datetime import datetime
from typing import Final

from nexus_common.audit import Record

BACKED_UP: Final = "backed up"
RESTORED: Final = "restored"  # with ``made``, the time of that backup: it holds no line of itself


class BackupAge:
    """``made`` is when the last backup was made, in Unix seconds, None where there was none; ``began`` the log's
    beginning.  ``outdated`` says that an event ``outdated_by`` has made it worthless since.
    """

    def __init__(self, outdated_by: str | None = None) -> None:
        self._outdated_by = outdated_by
        self.made: float | None = None
        self.began: float | None = None
        self.outdated = False

    def look(self, line: Record) -> None:
        """One more line of the log."""
        event = line["event"]
        if self.began is None:
            self.began = _time(line["at"])
        if event == BACKED_UP:
            self.made, self.outdated = _time(line["at"]), False
        elif event == RESTORED and type(line.get("made")) is int:
            self.made, self.outdated = float(line["made"]), False
        elif event == self._outdated_by:
            self.outdated = self.made is not None


def _time(at: str) -> float | None:
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return None
