"""What a program writes into its audit log about messages: one line before each leaves, and a line for all the rest.

A peer cannot fill the disk with it: a message equal to one that was logged within the last hour is counted instead of
logged again, and where the peer decides what is answered (``paced``), ever new answers become slow.  ``settle`` writes
what was counted.
"""

import hashlib
import json
import threading
import time
from typing import Final

from nexus_common import wire
from nexus_common.audit import AuditLog
from nexus_common.plan import hash_of

REMEMBERED: Final = 1024
SETTLE_SECONDS: Final = 3600.0
BURST_LINES: Final = 200
PACE_SECONDS: Final = 10.0  # a line, once the burst is used up: about 5 MB a day


class Journal:
    """An audit log, and the counters between its lines."""

    def __init__(self, log: AuditLog, *, paced: bool = False) -> None:
        self.log, self._paced = log, paced
        self._free, self._counted_at = float(BURST_LINES), time.monotonic()
        self._lock = threading.Lock()
        self._known: dict[bytes, None] = {}
        self._repeats = self._requests = self._bytes = 0
        self._settled = time.monotonic()

    def message(self, message: wire.Message, **facts: str | int | list[str] | None) -> None:
        """A message that is about to leave; NexusError where it cannot be logged, and then it must not leave."""
        parcel = wire.encode(message)
        content = json.dumps([parcel.kind, parcel.fields], default=bytes.hex).encode() + (parcel.vector or b"")
        digest = hashlib.sha256(content)
        key = hashlib.sha256(digest.digest() + json.dumps(facts).encode()).digest()
        with self._lock:
            if key in self._known:
                self._repeats += 1
                return
        if self._paced and not _is_bounded(message):
            self.pace()
        with self._lock:
            code = message.code if isinstance(message, wire.Refused) else None
            self.log.append(
                "refused" if code else "sent",
                purpose=wire.purpose(message),
                code=code,
                bytes=parcel.size,
                sha256=digest.hexdigest(),
                **facts,
            )
            self._known[key] = None
            if len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]

    def pace(self) -> None:
        """Use one line of the burst (a token bucket); wait where it is used up.

        For lines, too, that a peer's messages make in the audit log otherwise than through ``message``.
        """
        now = time.monotonic()
        self._free = min(BURST_LINES, self._free + (now - self._counted_at) / PACE_SECONDS)
        self._counted_at = now
        if self._free < 1:
            time.sleep((1 - self._free) * PACE_SECONDS)
        self._free -= 1

    def request(self, size: int) -> None:
        """All bytes of a request, whatever it carries: headers, polls and signs of life too."""
        with self._lock:
            self._requests, self._bytes = self._requests + 1, self._bytes + size

    def settle(self, *, now: bool = False) -> None:
        """Once an hour, or ``now``: the sum of what went over the line since the last time."""
        with self._lock:
            if not now and time.monotonic() - self._settled < SETTLE_SECONDS:
                return
            self._settled = time.monotonic()
            self._known.clear()
            if self._requests or self._repeats:
                self.log.append("traffic", requests=self._requests, bytes=self._bytes, repeated_messages=self._repeats)
                self._repeats = self._requests = self._bytes = 0


def subject_of(message: wire.Message | None) -> dict[str, str | int]:
    """Which plan and round a server's message is about; nothing for any other."""
    if isinstance(message, wire.Propose | wire.Prepare):
        return {"plan": hash_of(message.plan).hex()}
    if isinstance(message, wire.Recall):
        return {"plan": message.run.hex()}
    if isinstance(message, wire.TrainRound | wire.Ask | wire.Deliver):
        return {"plan": message.run.hex(), "round": message.round}
    return {}


def _is_bounded(message: wire.Message) -> bool:
    """Whether a peer cannot ask for ever new ones: they cost a training, or belong to one of the plan's inputs."""
    return isinstance(message, wire.Trained | wire.Masked) or wire.purpose(message) in ("set-sig", "shares")
