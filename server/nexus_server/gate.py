"""Who may ask what at the public port: eight Fleet paths, bounded bodies, and one site a certificate.

``Gate`` maps the certificate to a site at every request, so expiry reaches open connections too.  ``BindSite`` holds
certificate, Flower key, node id and claimed sender to that one site, and holds an idle site's question for work until
there is some (long polling).
"""

import asyncio
import datetime as dt
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from fastapi import HTTPException
from nexus_common import flower as fl
from nexus_common.certs import foreign, key_hash
from nexus_common.errors import Refusal
from prometheus_client import Counter
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nexus_server.grid import LocalGrid

log = logging.getLogger(__name__)
FLEET_PATHS: Final = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)
OBJECTS: Final = "/v1/fleet/push-object"


@dataclass(frozen=True)
class KnownSite:
    """What the registry says of a certificate's key: whose it is, and that site's Flower key (PEM)."""

    site: str
    public_pem: bytes


Lookup = Callable[[bytes], KnownSite | None]
"""SHA-256 of a certificate's public key -> the enrolled site, or None."""


@dataclass(frozen=True)
class Peer:
    """What a connection's client certificate says, worked out once a connection."""

    key_hash: bytes
    begins: dt.datetime
    ends: dt.datetime

    @classmethod
    def of(cls, der: bytes) -> "Peer":
        """From a certificate that the TLS layer has verified; ValueError where it cannot be read all the same."""
        with foreign():
            certificate = x509.load_der_x509_certificate(der)
            return cls(key_hash(certificate), certificate.not_valid_before_utc, certificate.not_valid_after_utc)


class Gate:
    """Outermost layer: known certificate in its validity, known path, bounded body.  All else is a bare 404."""

    def __init__(self, app: ASGIApp, lookup: Lookup) -> None:
        self.app, self.lookup = app, lookup

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass or refuse one request."""
        known = self._known(scope["state"].get("peer"))
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        wanted = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in FLEET_PATHS
        most = fl.MAX_BODY_BYTES if scope["path"] == OBJECTS else fl.MAX_SMALL_BODY_BYTES
        # Where both are named chunks count and not the length: such a body could go on for ever.
        small = b"transfer-encoding" not in headers and len(length) < 10 and length.isdigit() and int(length) <= most
        if known is None or not wanted or not small:
            who = f"of {known.site}" if known else "with a certificate that is not enrolled, or not valid now"
            log.info("refused a request %s: path %r, length %r", who, scope["path"][:60], length[:10].decode("latin-1"))
            await Response(status_code=404)(scope, receive, send)
            return
        scope["state"]["site"] = known
        await self.app(scope, receive, send)

    def _known(self, peer: Peer | None) -> KnownSite | None:
        if peer is None or not peer.begins <= dt.datetime.now(dt.UTC) <= peer.ends:
            return None
        return self.lookup(peer.key_hash)


class Counted:
    """Counts answers by route and status: the paths of the Fleet API, and all others as one."""

    def __init__(self, app: ASGIApp, requests: Counter) -> None:
        self.app, self._requests = app, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on."""
        route = scope["path"] if scope["path"] in FLEET_PATHS else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(route, message["status"]).inc()
            await send(message)

        await self.app(scope, receive, counted)


class Doorbell:
    """Wakes the held question of a node when work for it is stored, from whichever thread stores it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[int, asyncio.Event] = {}

    def ring(self, node: int) -> None:
        """Called by the round's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._waiting[node].set() if node in self._waiting else None)

    def drop(self, node: int) -> None:
        """End an older question of the node: its connection may be dead, and work given to it would be lost."""
        if (older := self._waiting.pop(node, None)) is not None:
            older.set()

    async def wait(self, node: int, has_work: Callable[[int], bool]) -> bool:
        """Return when there is work, or after HOLD_SECONDS; False where a newer question took this one's place."""
        self._loop = asyncio.get_running_loop()
        self.drop(node)
        bell = self._waiting[node] = asyncio.Event()
        try:
            if not has_work(node):
                await asyncio.wait_for(bell.wait(), fl.HOLD_SECONDS)
        except TimeoutError:
            pass
        newest = self._waiting.get(node) is bell
        if newest:
            del self._waiting[node]
        return newest


class BindSite(BaseHTTPMiddleware):
    """Tie the TLS certificate to the Flower key, the node id and the claimed sender of a reply."""

    def __init__(self, app: ASGIApp, grid: LocalGrid, bell: Doorbell, on_seen: Callable[[str], None]) -> None:
        super().__init__(app)
        self.grid, self.bell, self.on_seen = grid, bell, on_seen

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """Check, hold where idle, pass on, note the sign of life."""
        known: KnownSite = request.state.site
        message = request.state.protobuf_request
        node = self._node(message, known)
        if isinstance(message, fl.PullMessagesRequest):
            self.grid.touch(node)
            if not await self.bell.wait(node, self.grid.has_work):
                raise HTTPException(409, "a newer connection of this site asks")
        elif isinstance(message, fl.ActivateNodeRequest | fl.DeactivateNodeRequest):
            self.bell.drop(node)
        response = await call_next(request)
        if isinstance(message, fl.DeactivateNodeRequest):
            self.grid.left(node)
        elif response.status_code == 200:
            # Only now: Flower refuses instructions to a node before its activation is complete.
            self.grid.touch(node)
            self.on_seen(known.site)
        return response

    def _node(self, message: Any, known: KnownSite) -> int:
        node = self.grid.node_of.get(known.site)
        if isinstance(message, fl.ActivateNodeRequest):
            honest = message.public_key == known.public_pem
        else:
            honest = node == (message.node.node_id if hasattr(message, "node") else message.node_id)
        if isinstance(message, fl.PushMessagesRequest):
            honest = honest and _is_own_reply(message, node)
        if not honest or node is None:
            log.warning("refused %s of %s: certificate and claimed identity differ", type(message).__name__, known.site)
            raise HTTPException(403, "certificate and claimed identity differ")
        return node


def _is_own_reply(message: Any, node: int | None) -> bool:
    """Check what Flower's handler takes on trust: sender, one reply, its tree and its size."""
    if len(message.messages_list) != 1 or len(message.message_object_trees) != 1:
        return False
    metadata, tree = message.messages_list[0].metadata, message.message_object_trees[0]
    return bool(metadata.src_node_id == node and metadata.message_id == tree.object_id and _is_small(tree))


def _is_small(tree: Any) -> bool:
    try:
        return bool(fl.part_ids(tree))
    except Refusal:
        return False
