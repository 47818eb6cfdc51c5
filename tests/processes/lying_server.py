"""nexus-server, except that it lies to bank-a before each honest message of secure aggregation, and prints the answers.

A refusal changes nothing at a site, so the honest rounds behind the lies come out right.
"""

import sys
from collections.abc import Callable

from nexus_common import wire
from nexus_common.secagg.labels import label, label_of
from nexus_common.secagg.messages import SET
from nexus_server.cli import main
from nexus_server.exchange import Failure, GridExchange

honest = GridExchange.ask
Answers = dict[str, wire.Message | Failure]
TARGET = "bank-a"  # site 0 of four; three are a quorum
SIGNATURE, SLOT, HASH = 64, 2, 32


def flipped(data: bytes, at: int) -> bytes:
    """One bit changed."""
    return data[: at % len(data)] + bytes([data[at] ^ 1]) + data[at % len(data) + 1 :]


def members(*sites: int) -> bytes:
    """A set of sites."""
    return sum(1 << site for site in sites).to_bytes(SET, "little")


def own_key(data: bytes) -> int:
    """Where the target's first one-time key stands in the adverts, the first of which is the target's."""
    return len(label("adverts")) + SET + len(label("advert")) + HASH + 4 + 1


def with_set(data: bytes, found: bytes) -> bytes:
    """An opening of another set, with the signatures of the true one."""
    at = len(label("open")) + HASH
    return data[:at] + found + data[at + SET :]


LIES: dict[str, dict[str, Callable[[bytes], bytes]]] = {
    "setup": {
        "plan-not-approved": lambda data: flipped(data, len(label("setup"))),
        "epoch-replay": lambda data: data[:-4] + bytes(4),
        "malformed": lambda data: data[:-1],
    },
    "adverts": {
        "own-keys-changed": lambda data: flipped(data, own_key(data)),
        "bad-signature": lambda data: flipped(data, -1),
    },
    "round": {
        "wrong-context": lambda data: flipped(data, -1),
        "slot-replay": lambda data: data[: -HASH - SLOT] + (999).to_bytes(SLOT, "little") + data[-HASH:],
    },
    "commit-set": {
        "cohort-too-small": lambda data: data[:-SET] + members(0, 1),
        "own-input-missing": lambda data: data[:-SET] + members(1, 2, 3),
        "unknown-site": lambda data: data[:-SET] + members(0, 1, 2, 63),
    },
    "open": {
        "second-set": lambda data: with_set(data, members(0, 1, 2)),
        "bad-signature": lambda data: flipped(data, -1),
    },
}
rounds: list[bytes] = []


def lie(exchange: GridExchange, ask: wire.Ask, code: str, data: bytes) -> None:
    """Ask the target, and print what it was to answer and what it did."""
    answer = honest(exchange, {TARGET: wire.Ask(ask.run, ask.round, ask.inbox, data)}, 5.0)[TARGET]
    print(f"lie {label_of(ask.data)}: expects {code}, hears {getattr(answer, 'code', answer)}", flush=True)


def lying(self: GridExchange, messages: dict[str, wire.Message], timeout: float) -> Answers:
    """Lie, then ask honestly; and ask for a slot of a model that was just opened."""
    ask = messages.get(TARGET)
    if not isinstance(ask, wire.Ask):
        return honest(self, messages, timeout)
    kind = label_of(ask.data)
    for code, change in LIES[kind].items():
        lie(self, ask, code, change(ask.data))
    answers = honest(self, messages, timeout)
    if kind == "round":
        rounds.append(ask.data)
    elif kind == "open":
        slot = int.from_bytes(rounds[-1][-HASH - SLOT : -HASH], "little") + 1
        again = rounds[-1][: -HASH - SLOT] + slot.to_bytes(SLOT, "little") + rounds[-1][-HASH:]
        lie(self, ask, "model-replay", again)
    return answers


GridExchange.ask = lying  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    sys.exit(main())
