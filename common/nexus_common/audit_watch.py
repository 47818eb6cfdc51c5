"""An audit log verified every hour in a thread of its own, for the metrics: a chain that broke should wake somebody.

A whole log takes time, some 15 s a million lines, so it is not verified when Prometheus asks.  Each head found goes to
the system's log, to compare with once the log cannot be trusted any more.
"""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from nexus_common.audit import Head, Unfinished, verify
from nexus_common.backup_age import BackupAge
from nexus_common.errors import NexusError, Unreadable
from nexus_common.syslog import announce

log = logging.getLogger(__name__)
EVERY_SECONDS: Final = 3600.0
AFTER_FAULT_SECONDS: Final = 60.0
WHILE_EMPTY_SECONDS: Final = 5.0


class AuditWatch:
    """``valid`` is None until the log was verified once, and while it cannot be read: nothing is known of it then.

    Of backups it tells too, which an event ``outdated_by`` makes worthless.
    """

    def __init__(self, path: Path, program: str, outdated_by: str | None = None) -> None:
        self._path, self._program, self._outdated_by = path, program, outdated_by
        self._backups = BackupAge(outdated_by)
        self._head: str | None = None
        self._was_broken = False
        self._broken: int | None = None  # the file that was found so, by its inode; None where it was not there
        self.valid: bool | None = None
        self._said = ""
        self._at = 0.0

    def start(self) -> None:
        """Verify from now on, for this process's life."""
        threading.Thread(target=self._run, name="audit", daemon=True).start()

    def _run(self) -> None:
        while True:
            if self.look() is None:
                time.sleep(AFTER_FAULT_SECONDS)
            else:
                time.sleep(EVERY_SECONDS if self._backups.began is not None else WHILE_EMPTY_SECONDS)

    def look(self) -> bool | None:
        """Verify every line, and that the log still has the head that it had the time before; ``valid``.

        A broken file is moved aside, as its error says: then another one has begun, which has no head to keep yet.
        """
        file = None
        try:
            file = self._path.stat().st_ino if self._path.exists() else None
            if self._was_broken and file != self._broken:
                self._head, self._was_broken = None, False
            head = self._verified()
        except (OSError, Unreadable) as problem:
            self._say(problem)
            self.valid = None
        except NexusError as problem:
            self._say(problem)
            self.valid, self._was_broken, self._broken = False, True, file
        else:
            self._said, self._head, self.valid, self._was_broken = "", head.hash, True, False
            if head.lines and not announce(self._program, head):
                log.info("the audit log has %d lines, head %s (no system log answers here)", head.lines, head.hash)
        self._at = time.time()
        return self.valid

    def _verified(self) -> Head:
        """Part of a last line is what a power cut leaves, or a full disk: the next append cuts it off and says so."""
        backups = BackupAge(self._outdated_by)
        try:
            head = verify(self._path, self._head, backups.look)
        except Unfinished as problem:
            log.warning("%s", problem)
            head = problem.head
        self._backups = backups
        return head

    def _say(self, problem: Exception) -> None:
        """Log it once."""
        if str(problem) != self._said:
            log.error("the audit log was not verified: %s", problem)
        self._said = str(problem)

    def families(self, prefix: str) -> Iterator[Metric]:
        """Whether the chain holds, and when that was found; since when nothing was backed up."""
        if self.valid is None:
            return
        yield GaugeMetricFamily(f"{prefix}_audit_chain_valid", "1: the audit log is whole; 0: not", self.valid)
        told = "When the audit log was last verified"
        yield GaugeMetricFamily(f"{prefix}_audit_chain_verified_timestamp_seconds", told, self._at)
        if (since := self._backups.made or self._backups.began) is not None:
            told = "When the last backup was made, or where none was, the audit log begun"
            yield GaugeMetricFamily(f"{prefix}_backed_up_timestamp_seconds", told, since)
        if self._outdated_by is not None:
            told = "1: the last backup has keys that are no longer in use"
            yield GaugeMetricFamily(f"{prefix}_backup_outdated", told, self._backups.outdated)
