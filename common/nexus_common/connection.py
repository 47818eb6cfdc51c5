"""HTTP at our ports: what uvicorn is told at all of them, and connections that are bounded in time, which it cannot."""

import asyncio
import weakref
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS: Final = 10.0
READS_AN_ANSWER_SECONDS: Final = 60.0
UVICORN: Final[dict[str, Any]] = {
    "loop": "asyncio",
    "ws": "none",
    "proxy_headers": False,
    "server_header": False,
    "access_log": False,
    "log_config": None,
}
"""What all our ports tell uvicorn: nothing but HTTP, believe no header about who asks, say and log nothing of it."""


def bare_name(host: str) -> str:
    """A Host header's name in small letters, without the port."""
    head, _, port = host.lower().rpartition(":")
    return head if head and port.isdigit() else host.lower()


class Connection(H11Protocol):
    """One connection; closed where the head of a request does not come within ``HEAD_SECONDS`` of its beginning, or an
    answer is not read within ``READS_AN_ANSWER_SECONDS``.  uvicorn has no setting for either.
    """

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _open: ClassVar[weakref.WeakSet["Connection"]] = weakref.WeakSet()

    @classmethod
    def unread(cls) -> int:
        """Bytes of answers that wait for their clients."""
        return sum(one.transport.get_write_buffer_size() for one in cls._open)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._open.add(self)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, from its first byte on."""
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()
        super().data_received(data)
        if self._late is not None and self.cycle is not None and not self.cycle.response_complete:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is waited for."""
        super().connection_lost(exc)
        self._open.discard(self)
        for timer in (self._late, self._unread):
            if timer is not None:
                timer.cancel()

    def on_response_complete(self) -> None:
        """The answer is written; give the client time to read it."""
        super().on_response_complete()
        if self._unread is not None:
            self._unread.cancel()
        self._unread = self.loop.call_later(READS_AN_ANSWER_SECONDS, self._cut_off)

    def _cut_off(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self.transport.abort)
