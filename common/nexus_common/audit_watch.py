"""An audit log verified every hour in a thread of its own, for the metrics: a chain that broke should wake somebody.

A whole log takes time, some 15 s a million lines, so it is not verified when Prometheus asks.
"""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from nexus_common.audit import verify
from nexus_common.errors import NexusError

log = logging.getLogger(__name__)
EVERY_SECONDS: Final = 3600.0
AFTER_FAULT_SECONDS: Final = 60.0  # an unfinished line, after a crash, is mended by the next one


class AuditWatch:
    """``valid`` is None until the log was verified once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._head: str | None = None
        self._broken: int | None = None  # the file that was found so, by its inode
        self.valid: bool | None = None
        self._at = 0.0

    def start(self) -> None:
        """Verify from now on, for this process's life."""
        threading.Thread(target=self._run, name="audit", daemon=True).start()

    def _run(self) -> None:
        while True:
            if self.look() is False:
                time.sleep(AFTER_FAULT_SECONDS)
                self.look()
            time.sleep(EVERY_SECONDS)

    def look(self) -> bool | None:
        """Verify every line, and that the log still has the head that it had the time before; ``valid``.

        A broken file is moved aside, as its error says: then another one has begun, which has no head to keep yet.
        """
        file = self._path.stat().st_ino if self._path.exists() else None
        if self.valid is False and file != self._broken:
            self._head = None
        try:
            self._head = verify(self._path, self._head).hash
            self.valid = True
        except NexusError as problem:
            if self.valid is not False:
                log.error("%s", problem)
            self.valid, self._broken = False, file
        except OSError as problem:
            log.error("the audit log cannot be read: %s", problem)
            self.valid = None
        self._at = time.time()
        return self.valid

    def families(self, prefix: str) -> Iterator[Metric]:
        """Whether the chain holds, and when that was found."""
        if self.valid is not None:
            yield GaugeMetricFamily(f"{prefix}_audit_chain_valid", "1: the audit log is whole; 0: not", self.valid)
            told = "When the audit log was last verified"
            yield GaugeMetricFamily(f"{prefix}_audit_chain_verified_timestamp_seconds", told, self._at)
