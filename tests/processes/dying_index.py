"""nexus-client, but it kills itself, as by kill -9, in the middle of building an index.

Its first argument names the instant: a step of the build, and before or after which call of it.  Behind it stand the
arguments of nexus-client.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from nexus_client import index_generation
from nexus_client.cli import main
from nexus_client.index_build import IndexBuild
from nexus_client.vectors import Vectors

STEPS: dict[str, tuple[Any, str]] = {
    "vectors kept": (Vectors, "put"),
    "vectors pruned": (Vectors, "keep_only"),
    "file written": (index_generation, "write_file"),
    "array written": (index_generation, "write_array"),
    "pointer set": (index_generation, "write_durably"),
    "old ones removed": (IndexBuild, "sweep"),
}


def make_mortal(step: str, when: str, call: int) -> None:
    """Let this process die before or after the n-th call of a step."""
    owner, name = STEPS[step]
    honest: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def mortal(*values: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = honest(*values, **named)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, mortal)


if __name__ == "__main__":
    step, when, call = sys.argv[1].split(",")
    make_mortal(step, when, int(call))
    sys.exit(main(sys.argv[2:]))
