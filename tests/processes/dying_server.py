"""nexus-server, but it kills itself once, as by kill -9: before or after a trip, when it has made so many versions.

Its arguments are ``before`` or ``after``, the trip's name, that number, and then those of nexus-server.
"""

import os
import signal
import sys
from typing import Any

from nexus_common import wire
from nexus_server.cli import main
from nexus_server.exchange import Failure, GridExchange
from nexus_server.registry import Registry

WHEN, TRIP, VERSIONS = sys.argv[1], sys.argv[2], int(sys.argv[3])
honest_ask, honest_commit = GridExchange.ask, Registry.commit_round
made: list[bool] = []
Answers = dict[str, wire.Message | Failure]


def mortal(self: GridExchange, messages: dict[str, wire.Message], timeout: float) -> Answers:
    """Ask, and die where it is time: nothing was sent yet, or all whom it asked have answered."""
    due = len(made) >= VERSIONS and TRIP in {wire.purpose(message) for message in messages.values()}
    if due and WHEN == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answers = honest_ask(self, messages, timeout)
    if due and WHEN == "after" and not any(isinstance(answer, Failure) for answer in answers.values()):
        os.kill(os.getpid(), signal.SIGKILL)
    return answers


def counted(self: Registry, *values: Any) -> bool:
    """Commit, and count."""
    made.append(honest_commit(self, *values))
    return made[-1]


GridExchange.ask = mortal  # type: ignore[method-assign,assignment]
Registry.commit_round = counted  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main(sys.argv[4:]))
