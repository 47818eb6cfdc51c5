"""All rounds that were committed and what became of trials, counted from the registry's versions: each is read once.

Versions are never deleted, only marked, so these counts never go down and a restart finds the same ones again.
"""

from collections.abc import Mapping
from typing import Any, Final

from nexus_server.registry import Registry

GROWTH: Final = ("trial_begun", "dendrite_kept", "control_kept")
_SINCE: Final = (
    "SELECT rowid, run, stage, created, cohort <> '[]' AS trained FROM versions WHERE rowid > ? ORDER BY rowid"
)


class History:
    """``committed`` rounds of all runs, when the last was, and ``growth`` by kind."""

    def __init__(self) -> None:
        self.committed, self.last_commit = 0, 0.0
        self.growth = dict.fromkeys(GROWTH, 0)
        self._read = 0
        self._stage: dict[str, int] = {}  # of a run's newest version
        self._control: dict[str, int] = {}  # the stage that a run's trial began from, while it lasts

    def catch_up(self, registry: Registry) -> None:
        """Take in what is new."""
        for row in registry.rows(_SINCE, self._read):
            self._add(row)
            self._read = row["rowid"]

    def _add(self, row: Mapping[str, Any]) -> None:
        """A round either begins a trial or ends it with the arm that stays; a rollback may end it undecided."""
        run, stage = row["run"], row["stage"]
        if row["trained"]:
            self.committed += 1
            self.last_commit = row["created"]
        before = self._stage.get(run, stage)
        self._stage[run] = stage
        if stage == before:
            return
        control = self._control.pop(run, None)
        if not row["trained"]:
            return
        if control is None:
            self._control[run] = before
            self.growth["trial_begun"] += 1
        else:
            self.growth["control_kept" if stage == control else "dendrite_kept"] += 1
