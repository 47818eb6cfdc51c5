"""A program's own log: lines on stderr that no peer can fill a disk with.

Much of what is logged answers to what a peer does.  A burst is let through whole, then so many lines a second, each cut
off; how many were left out is said in the next one.  Where stderr is the journal of systemd, each line has its level as
sd-daemon(3) writes it, and no time of its own.
"""

import logging
import os
import time
from typing import Final

BURST_LINES: Final = 5000
LINES_A_SECOND: Final = 2.0  # some 30 MB a day
MAX_CHARACTERS: Final = 2000
STDERR: Final = 2
PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Bounded(logging.Filter):
    """A filter of one handler: at most ``BURST_LINES`` at once, and ``LINES_A_SECOND`` in the long run."""

    def __init__(self) -> None:
        super().__init__()
        self._free, self._counted_at, self._left_out = float(BURST_LINES), time.monotonic(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; handlers ask under their lock."""
        now = time.monotonic()
        self._free = min(BURST_LINES, self._free + (now - self._counted_at) * LINES_A_SECOND)
        self._counted_at = now
        if self._free < 1:
            self._left_out += 1
            return False
        self._free -= 1
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001  the caller, often a library, must not fail over its own mistake in wording a line
            text = f"{record.msg} {record.args}"
        if self._left_out:
            text = f"({self._left_out} lines were left out before this one: too many at once) {text}"
            self._left_out = 0
        record.msg, record.args = text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…", ()
        return True


class JournalLines(logging.Formatter):
    """Each line begins with ``<N>``, its priority; those of a traceback too."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines."""
        priority = f"<{PRIORITIES.get(record.levelno, 5)}>"
        return "\n".join(priority + line for line in super().format(record).split("\n"))


def is_journal(descriptor: int) -> bool:
    """Whether it is the stream that JOURNAL_STREAM names by device and inode: how systemd.exec(5) tells to ask."""
    try:
        found = os.fstat(descriptor)
    except OSError:  # closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def begin(site: str | None = None) -> None:
    """Log to stderr from now on, as a site's program or the server's."""
    form = f"{site} %(levelname)s %(message)s" if site else "%(levelname)s %(message)s"
    handler = logging.StreamHandler()
    handler.addFilter(Bounded())
    journal = is_journal(STDERR)
    handler.setFormatter(JournalLines(form) if journal else logging.Formatter(f"%(asctime)s {form}"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
