"""Keeps the index of a running ``serve`` up to date: looks now and then, and has ``nexus-client index`` do the work.

A process of its own, at a lower priority: what it takes in memory goes with it, and queries keep their processors.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
from typing import Final

from nexus_common.errors import NexusError

from nexus_client.index import Manifest
from nexus_client.index_needs import needed
from nexus_client.site import SiteHome, SiteSettings

log = logging.getLogger(__name__)
LOOKS_EVERY_SECONDS: Final = 10.0
TRIES_AGAIN_SECONDS: Final = 60.0
NICE: Final = 10
PROGRAM: Final = (sys.executable, "-P", "-c", "import sys; from nexus_client.cli import main; sys.exit(main())")


class IndexUpdates:
    """At most one update at a time."""

    def __init__(self, place: SiteHome, settings: SiteSettings, base: str) -> None:
        self._place, self._settings, self._base = place, settings, base
        self._process: subprocess.Popen[bytes] | None = None
        self._next = 0.0

    def look(self, made: Manifest | None, *, now: bool) -> None:
        """Begin an update where the index is behind; looks only every few seconds, or ``now``."""
        if self._process is not None:
            if (code := self._process.poll()) is None:
                return
            self._end(code)
            return  # ``made`` is the index before
        if time.monotonic() < self._next and not now:
            return
        self._next = time.monotonic() + LOOKS_EVERY_SECONDS
        try:
            settings = self._place.settings()
            if (settings.base_model, settings.precision) != (self._settings.base_model, self._settings.precision):
                log.warning("site.toml has another base_model or precision now: restart `nexus-client serve`")
                self._next = time.monotonic() + TRIES_AGAIN_SECONDS
                return
            if needed(self._place, settings, self._base, made, ()).covered_by(made):
                return
        except (NexusError, OSError) as problem:
            log.error("the index is not updated: %s", problem)
            self._next = time.monotonic() + TRIES_AGAIN_SECONDS
            return
        home = () if self._place.is_the_systems else ("--home", str(self._place.settings_folder.parent))
        log.info("the index is updated")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  a pipe that nobody reads meanwhile could fill
        self._process = subprocess.Popen(
            [*PROGRAM, *home, "--site", self._place.site, "index"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said,
        )  # fmt: skip
        os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)

    def stop(self) -> None:
        """End an update in progress: it goes on from there next time."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _end(self, code: int) -> None:
        with self._said as said:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
        self._process = None
        if code:
            log.error("the index was not updated: %s", last if code > 0 else f"it was ended by signal {-code}")
            self._next = time.monotonic() + TRIES_AGAIN_SECONDS
