"""nexus-server, except that it searches its own memory for what sites encode, while Flower still holds their messages.

Its first argument is a file with parts of that, in hex and back to front; the others are those of nexus-server.
"""

import gc
import sys
from pathlib import Path
from typing import Any

from nexus_common import wire
from nexus_server.cli import main
from nexus_server.exchange import Failure, GridExchange
from nexus_server.grid import LocalGrid

from tests.federation.test_masked_search import buffers

NOTES = Path(sys.argv[1])
honest_ask, honest_forget = GridExchange.ask, LocalGrid._forget
trips: list[str] = []


def asking(self: GridExchange, messages: dict[str, wire.Message], timeout: float) -> dict[str, wire.Message | Failure]:
    """Ask, and remember for what."""
    trips.append(wire.purpose(next(iter(messages.values()))))
    return honest_ask(self, messages, timeout)


def forgetting(self: LocalGrid, pending: Any) -> None:
    """Search, and only then let Flower drop the trip's messages and objects."""
    if trips[-1] in ("round", "commit-set", "open"):
        sought = [bytes.fromhex(line)[::-1] for line in NOTES.read_text().split()]
        gc.collect()
        held = [bytes(one) for one in buffers(sought) if memoryview(one).nbytes >= 192]
        found = any(note in data for data in held for note in sought)
        print(f"searched at {trips[-1]}: {len(held)} buffers for {len(sought)} notes, found: {found}", flush=True)
    honest_forget(self, pending)


GridExchange.ask = asking  # type: ignore[method-assign,assignment]
LocalGrid._forget = forgetting  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
