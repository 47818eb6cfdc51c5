"""nexus-server with a narrow adapter that prints, after each round, how many bytes Python holds for it.

Its first arguments say how many bytes it leaks a round, on purpose, and from which round on; the others are those of
nexus-server.
"""

import gc
import sys
import tracemalloc
from typing import Any

from nexus_common import layout
from nexus_server.cli import main
from nexus_server.registry import Registry

LEAK, LEAKY = int(sys.argv[1]), int(sys.argv[2])
honest_commit = Registry.commit_round
leaked: list[bytes] = []


def committing(self: Registry, *args: Any, **kwargs: Any) -> bool:
    """Commit the round, and count."""
    done = honest_commit(self, *args, **kwargs)
    leaked.append(bytes(LEAK * (len(leaked) >= LEAKY)))
    gc.collect()
    print(f"holds {tracemalloc.get_traced_memory()[0]}", flush=True)
    return done


Registry.commit_round = committing  # type: ignore[method-assign]
layout.WIDTH = 48

if __name__ == "__main__":
    tracemalloc.start()
    sys.exit(main(sys.argv[3:]))
