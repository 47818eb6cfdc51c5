"""The one public port: TLS 1.3, client certificates of the consortium's CA, Flower's Fleet routes behind our gate."""

import asyncio
import asyncio.constants
import asyncio.sslproto
import errno
import logging
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, ClassVar, Final

import uvicorn
from fastapi import FastAPI
from nexus_common.connection import UVICORN
from nexus_common.errors import NexusError
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from nexus_server import flower as fs
from nexus_server.gate import BindSite, Doorbell, Gate, Lookup, Peer
from nexus_server.grid import LocalGrid

log = logging.getLogger(__name__)
MAX_CONNECTIONS: Final = 400
MAX_CONNECTIONS_OF_A_SITE: Final = 16  # an agent has two; those of a dead network stay for a minute or so
HANDSHAKE_SECONDS: Final = 5.0
MAX_HANDSHAKES: Final = 500  # at once; each takes some 70 kB, and nobody has shown who it is by then
BACKLOG: Final = 256  # connections that asyncio takes up in one go
READ_BYTES: Final = 32 << 10  # every connection's buffer, before its handshake too; asyncio takes 256 kB


class Listener(socket.socket):
    """A TCP socket whose connections may be in their handshake as long as not too many newer ones have begun theirs.

    Without a bound strangers could have this process hold as many as it may have descriptors.
    """

    begun: ClassVar[dict[int, socket.socket]] = {}  # by descriptor, the oldest first; some may have ended

    def __init__(self, family: socket.AddressFamily) -> None:
        # asyncio turns Nagle's delay, 40 ms for a small answer, off only where a socket says that it is TCP's
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)

    def accept(self) -> tuple[socket.socket, Any]:
        """A connection; the oldest that is still in its handshake makes room for it."""
        made, address = super().accept()
        self.begun.pop(made.fileno(), None)
        self.begun[made.fileno()] = made
        if len(self.begun) > MAX_HANDSHAKES:
            with suppress(OSError):  # it has ended
                self.begun.pop(next(iter(self.begun))).shutdown(socket.SHUT_RDWR)
        return made, address


class SiteConnection(H11Protocol):
    """Hand the client certificate to the application, and bound how many connections one certificate holds.

    uvicorn does not show the certificate itself.  h11 bounds headers at 16 KiB before anything of ours runs.
    """

    open_of: ClassVar[Counter[bytes]] = Counter()
    received: ClassVar[Counter[bytes]] = Counter()  # all bytes inside of TLS, by the certificate's key
    living: ClassVar[set["SiteConnection"]] = set()
    peer: Peer | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember the certificate of this connection; one too many of the same key is closed at once."""
        super().connection_made(transport)
        Listener.begun.pop(transport.get_extra_info("socket").fileno(), None)
        tls = transport.get_extra_info("ssl_object")
        shown = tls.getpeercert(binary_form=True) if tls else None
        self.peer = Peer.of(shown) if shown else None
        self.app_state = {**self.app_state, "peer": self.peer}
        if self.peer is not None:
            self.open_of[self.peer.key_hash] += 1
            self.living.add(self)
            if self.open_of[self.peer.key_hash] > MAX_CONNECTIONS_OF_A_SITE:
                transport.close()

    def data_received(self, data: bytes) -> None:
        """Count what a site sends, headers and all."""
        if self.peer is not None:
            self.received[self.peer.key_hash] += len(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        if self.peer is not None:
            self.open_of[self.peer.key_hash] -= 1
            self.living.discard(self)

    @classmethod
    def cut(cls, keys: Collection[bytes]) -> None:
        """End the connections of these keys' certificates at once, whatever is on its way to them; from any thread."""
        for one in list(cls.living):
            if one.peer is not None and one.peer.key_hash in keys:
                one.loop.call_soon_threadsafe(one._reset)

    def _reset(self) -> None:
        """Drop what the system holds to be sent as well: a close would still deliver it."""
        if (plain := self.transport.get_extra_info("socket")) is not None:
            with suppress(OSError):
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def make_app(grid: LocalGrid, lookup: Lookup, on_seen: Callable[[str], None]) -> Gate:
    """The ASGI application behind the port."""
    bell = Doorbell()
    grid.ring = bell.ring
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=fs.http_error_translator),
            Middleware(fs.ProtobufTranslationMiddleware),
            Middleware(fs.NodeAuthMiddleware),
            Middleware(BindSite, grid=grid, bell=bell, on_seen=on_seen),
        ],
    )
    app.state.linkstate_factory = SimpleNamespace(state=lambda: grid.state)
    app.state.enable_supernode_auth = True  # no self-registration
    app.include_router(fs.fleet_router)
    return Gate(app, lookup)


def open_door(app: ASGIApp, host: str, port: int, context: ssl.SSLContext) -> uvicorn.Server:
    """Listen in a thread of its own; NexusError where the port is taken, or that thread ends at once."""
    listener = Listener(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # or another process, which has bound the port too, could come first
    except OSError as problem:
        listener.close()
        taken = problem.errno == errno.EADDRINUSE
        remedy = "is another nexus-server running?" if taken else f'"0.0.0.0:{port}" is every address of this machine'
        raise NexusError(
            f"cannot listen on {host} port {port}: {problem.strerror}; {remedy} (`listen` in server.toml)"
        ) from None
    # uvicorn has no setting for it, and 60 s is long where strangers can open connections; uvloop would not look at it
    asyncio.constants.SSL_HANDSHAKE_TIMEOUT = HANDSHAKE_SECONDS
    asyncio.sslproto.SSLProtocol.max_size = READ_BYTES
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=SiteConnection,
            lifespan="off",
            timeout_keep_alive=75,
            backlog=BACKLOG,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
            ssl_context_factory=lambda *_: context,
            **UVICORN,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="door", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise NexusError(f"the port {port} of {host} could not be served; the lines above say why")
        time.sleep(0.01)
    return server
