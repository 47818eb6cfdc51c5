"""nexus-client's agent, but it kills itself, as by kill -9, between a write of its record and the reply; and again.

Its first argument names the writes, methods of ``PlanRecord``, one for each death; behind it are those of nexus-client.
A new process begins at once, as systemd would begin it, and helps to open one sum before its own death is due.  All are
forks of one that has loaded the program, which is slow; that one is the last, and lives on.
"""

import ctypes
import os
import signal
import sys

from nexus_client import agent  # noqa: F401  all of the program, loaded before the first fork
from nexus_client.cli import main
from nexus_client.record import PlanRecord

PR_SET_PDEATHSIG = 1


def make_mortal(write: str) -> None:
    """Let this process die at a write."""
    honest_write, opened = getattr(PlanRecord, write), list[bytes]()

    def mortal(self: PlanRecord, *values: object) -> None:
        honest_write(self, *values)
        if opened:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(PlanRecord, write, mortal)
    open_here = PlanRecord.note_opened  # the mortal one, where that is the write

    def counted(self: PlanRecord, *names: bytes) -> None:
        open_here(self, *names)
        opened.extend(names)

    PlanRecord.note_opened = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    for due in sys.argv[1].split(","):
        if not (child := os.fork()):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the test ends the parent
            make_mortal(due)
            sys.exit(main(sys.argv[2:]))
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended != -signal.SIGKILL:
            sys.exit(f"it ended with {ended}, not at {due}")
        print(f"died at {due}", flush=True)
    sys.exit(main(sys.argv[2:]))
