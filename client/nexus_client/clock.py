"""The server's clock as a site knows it: measured over the pinned connection, and used where a time is signed.

A small board without a battery may wake up years behind.  Flower's server refuses a time that is 5 s ahead of its own.
"""

import datetime as dt
import email.utils
import time
from typing import Final

import httpx

_LATEST: Final = 2.0**33  # Unix seconds, in the year 2242


class ServerClock:
    """How far this machine's clock is ahead of the server's, in seconds; 0 until the server has answered once."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def measure(self, response: httpx.Response) -> None:
        """Take the ``Date`` line of an answer, at the moment when it comes: whole seconds, so half of one is added."""
        if (ahead := seconds_ahead(response.headers.get("date", ""), time.time())) is not None:
            self.ahead = ahead

    def now(self) -> dt.datetime:
        """The server's time."""
        return dt.datetime.fromtimestamp(time.time() - self.ahead, dt.UTC)


def seconds_ahead(date: str, here: float) -> float | None:
    """How far ``here`` (Unix seconds) is ahead of an HTTP date; None where that is no date, or of no such century.

    A time that cannot be written down would end every later request before it leaves.
    """
    try:
        there = email.utils.parsedate_to_datetime(date).timestamp()
    except (IndexError, TypeError, ValueError, OverflowError):
        return None
    return here - there - 0.5 if 0 < there < _LATEST else None
