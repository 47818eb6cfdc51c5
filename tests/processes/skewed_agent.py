"""nexus-client's agent on a machine whose clock is wrong by so many seconds, its first argument.

Wrong is what the server hears of it: the signed time of each request, and the date of each message.  (A process whose
``time.time`` itself is changed cannot run gRPC, which compares it with the system's.)
"""

import datetime
import sys
import time
from types import SimpleNamespace

from nexus_client import clock, link  # noqa: F401  before anything from flwr
from nexus_client.cli import main

from flwr.app.message import message as flowers  # isort: skip


def skew(ahead: float) -> None:
    """From now on this machine's clock is ahead by so many seconds."""

    def wrong() -> float:
        return time.time() + ahead

    clock.time = SimpleNamespace(time=wrong)  # type: ignore[assignment]
    flowers.now = lambda: datetime.datetime.fromtimestamp(wrong(), datetime.UTC)


if __name__ == "__main__":
    skew(float(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
