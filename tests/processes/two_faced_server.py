"""nexus-server, except that it shows hospital-a another plan than all others: what a lying operator would run."""

import sys

from nexus_common import wire
from nexus_common.plan import plan_from_wire
from nexus_server.cli import main
from nexus_server.exchange import Failure, GridExchange

honest = GridExchange.ask


Answers = dict[str, wire.Message | Failure]


def two_faced(self: GridExchange, messages: dict[str, wire.Message], timeout: float) -> Answers:
    """Let hospital-a see a plan that takes ten times as many rounds."""
    changed = dict(messages)
    if isinstance(found := messages.get("hospital-a"), wire.Propose):
        plan = plan_from_wire(found.plan)
        changed["hospital-a"] = wire.Propose(plan.model_copy(update={"rounds": 10 * plan.rounds}).canonical)
    return honest(self, changed, timeout)


GridExchange.ask = two_faced  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    sys.exit(main())
