"""Typed messages to named sites over any Flower Grid: the only view of the network that the round logic has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from nexus_common import flower as fl
from nexus_common import wire
from nexus_common.errors import Refusal
from nexus_common.journal import Journal, subject_of

from nexus_server import flower as fs
from nexus_server.metrics import RECEIVED, SENT, Metrics

DEADLINE: Final = "the deadline passed"
SILENT: Final = "the client fell silent"
RESTARTED: Final = "the client restarted"
NOT_CONNECTED: Final = "the client is not connected"
MALFORMED: Final = "the reply is malformed"
SMALL_TRIP_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Failure:
    """No usable answer of a site, and why."""

    reason: str


def problem_of(answer: wire.Message | Failure) -> str | None:
    """Why a site has no part in something: its refusal's code or what failed; None where it has answered."""
    if isinstance(answer, wire.Refused):
        return f"refused: {answer.code}"
    return answer.reason if isinstance(answer, Failure) else None


class Exchange(Protocol):
    """Ask sites and hear from each exactly once."""

    def alive(self) -> set[str]:
        """Sites that are connected now."""

    def ask(self, messages: Mapping[str, wire.Message], timeout_seconds: float) -> dict[str, wire.Message | Failure]:
        """One answer or failure for every site asked, at the latest after the timeout."""

    def bytes_up(self) -> int:
        """Bytes received from all sites so far."""


class GridExchange:
    """``Exchange`` over a Grid; ``nodes`` says which node is which site now, ``bytes_up`` what came in so far.

    ``journal`` takes every message before it leaves.
    """

    def __init__(
        self,
        grid: fs.Grid,
        nodes: Callable[[], Mapping[str, int]],
        bytes_up: Callable[[], int],
        journal: Journal,
        metrics: Metrics | None = None,
    ) -> None:
        self._grid, self._nodes, self._bytes_up, self._journal = grid, nodes, bytes_up, journal
        self._metrics = metrics or Metrics()

    def alive(self) -> set[str]:
        """Sites that are connected now."""
        connected = set(self._grid.get_node_ids())
        return {site for site, node in self._nodes().items() if node in connected}

    def ask(self, messages: Mapping[str, wire.Message], timeout_seconds: float) -> dict[str, wire.Message | Failure]:
        """Send, wait, decode; whatever a site sent, the result is a typed message or a Failure."""
        answers: dict[str, wire.Message | Failure] = {site: Failure("not enrolled any more") for site in messages}
        nodes = dict(self._nodes())
        messages = {site: message for site, message in messages.items() if site in nodes}
        site_of = {nodes[site]: site for site in messages}
        for message, sites in _recipients(messages):
            self._journal.message(message, **subject_of(message), to=sites)
        parcels = {site: wire.encode(message) for site, message in messages.items()}
        self._metrics.bytes[SENT].inc(sum(parcel.size for parcel in parcels.values()))
        sent = [fl.instruction(parcel, nodes[site], timeout_seconds + 5) for site, parcel in parcels.items()]
        for reply in self._grid.send_and_receive(sent, timeout=timeout_seconds):
            answer, size = _decoded(reply)
            answers[site_of[reply.metadata.src_node_id]] = answer
            self._count(answer, size)
        return answers

    def _count(self, answer: wire.Message | Failure, size: int) -> None:
        self._metrics.bytes[RECEIVED].inc(size)
        if isinstance(answer, wire.Refused):
            self._metrics.refusals[answer.code].inc()

    def bytes_up(self) -> int:
        """Bytes received from all sites so far."""
        return self._bytes_up()


def _recipients(messages: Mapping[str, wire.Message]) -> list[tuple[wire.Message, list[str]]]:
    """Each different message with the sites that get it."""
    found: dict[int, tuple[wire.Message, list[str]]] = {}
    for site, message in messages.items():
        found.setdefault(id(message), (message, []))[1].append(site)
    return list(found.values())


def _decoded(reply: fl.Message) -> tuple[wire.Message | Failure, int]:
    """What a site said, and how many bytes that took; none where it is no message."""
    if reply.has_error():
        return Failure(str(reply.error.reason)[:200]), 0
    try:
        parcel = fl.parcel_of(reply)
        return wire.decode(parcel), parcel.size
    except Refusal as refusal:
        return Failure(refusal.code), 0
