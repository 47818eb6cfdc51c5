"""Who may ask ``serve``, and how much at once: names, token, bodies and slow clients, before anything of ours runs.

On loopback the Host header is checked, or a web page could reach this port under a name of its own (DNS rebinding).
Elsewhere every request but ``/healthz`` and the empty search page needs the bearer token.
"""

import asyncio
import hmac
import logging
import time
import traceback
from dataclasses import dataclass
from typing import Any, Final

from nexus_common.connection import READS_AN_ANSWER_SECONDS, Connection, bare_name
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from nexus_client.openai_api import ApiError

log = logging.getLogger(__name__)
OPEN: Final = ("/healthz", "/")
MOST_BODY_BYTES: Final = 4 << 20
MOST_BYTES_AT_ONCE: Final = 16 << 20  # bodies of all requests that are being answered
MOST_UNREAD_BYTES: Final = 64 << 20  # answers that clients have not read yet
BODY_SECONDS: Final = 20.0


class Metrics:
    """What Prometheus may know: no text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("nexus_requests", "Requests answered", ["route", "status"], **named)
        self.seconds = Histogram("nexus_request_seconds", "Time to answer", ["route"], **named)
        self.texts = Counter("nexus_texts", "Texts encoded", **named)
        self.cut = Counter("nexus_cut_texts", "Texts longer than the base model reads", **named)
        self.rows = Gauge("nexus_index_rows", "Passages in the index", **named)
        self.model = Gauge("nexus_model_info", "Models in use", ["served", "search"], **named)


@dataclass(frozen=True)
class Names:
    """What a server on loopback goes by: its own names, in plain HTTP, and that of a TLS proxy before it."""

    own: frozenset[str]
    proxy: str | None = None

    @property
    def hosts(self) -> frozenset[str]:
        """In Host headers."""
        return self.own | ({self.proxy} if self.proxy else set())

    def has(self, origin: str) -> bool:
        """Whether a page of this origin is one of ours."""
        scheme, _, host = origin.partition("://")
        name = bare_name(host)
        return (scheme == "http" and name in self.own) or (scheme == "https" and name == self.proxy)


class Guard:
    """An ASGI layer around the application."""

    def __init__(self, app: Starlette, metrics: Metrics, token: str | None, names: Names | None) -> None:
        """``names`` is None where the token takes care of that."""
        self._app, self._metrics, self._token, self._names = app, metrics, token, names
        self._routes = paths_of(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on; count either."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, route = time.monotonic(), 500, scope["path"]
        route = route if route in self._routes else "other"

        async def sent(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            async with asyncio.timeout(READS_AN_ANSWER_SECONDS):
                await send(message)

        try:
            self._check(Headers(scope=scope), scope["path"])
            await self._app(scope, receive, sent)
        except ApiError as refused:
            head = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else None
            await JSONResponse(refused.body, refused.status, head)(scope, receive, sent)
        except Exception as fault:  # noqa: BLE001  it has been answered with 500; its words could hold a client's text
            where = traceback.extract_tb(fault.__traceback__)[-1]
            log.error("%s at %s ended with %s (%s line %s)",
                      scope["method"], route, type(fault).__name__, where.filename, where.lineno)  # fmt: skip
        finally:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - began)

    def _check(self, headers: Headers, path: str) -> None:
        if self._names is not None:
            origin = headers.get("origin")
            foreign = path != "/" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
            ours = bare_name(headers.get("host", "")) in self._names.hosts and (not origin or self._names.has(origin))
            if foreign or not ours:
                proxy = "" if self._names.proxy else "; for a TLS proxy before it: serve --name NAME --token-file FILE"
                names = ", ".join(sorted(self._names.hosts))
                raise ApiError(
                    403, f"this server answers to {names} only, and to no other web page{proxy}",
                    code="wrong_host",
                )  # fmt: skip
        given = headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self._token and path not in OPEN and not hmac.compare_digest(given, self._token.encode()):
            raise ApiError(401, "a bearer token is needed: Authorization: Bearer TOKEN", code="invalid_api_key")


def paths_of(app: Starlette) -> list[str]:
    """The paths that answer, without those that end in a name."""
    return [route.path for route in app.routes if isinstance(route, Route) and not route.param_convertors]


class Bodies:
    """Reads bodies, each and all together bounded; a context in which they count."""

    def __init__(self) -> None:
        self._bytes = 0

    async def read(self, request: Request) -> "Body":
        """The body; ApiError where it is too long, too slow, or too many are being answered."""
        length = request.headers.get("content-length", "")
        if "transfer-encoding" in request.headers or not (length.isascii() and length.isdigit()):
            raise ApiError(411, "Content-Length is needed")
        if len(length) > 9 or (size := int(length)) > MOST_BODY_BYTES:
            raise ApiError(413, f"the body is longer than {MOST_BODY_BYTES} bytes; send several requests")
        if self._bytes + size > MOST_BYTES_AT_ONCE or Connection.unread() > MOST_UNREAD_BYTES:
            raise ApiError(429, "too much is being answered at this moment; try again", code="rate_limit_exceeded")
        body = Body(self, size)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body.data = await request.body()
        except TimeoutError:
            body.done()
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:.0f} s") from None
        except ClientDisconnect:
            body.done()
            raise ApiError(499, "the client is gone") from None
        except BaseException:
            body.done()
            raise
        return body

    def count(self, size: int) -> None:
        """More, or less, is being answered."""
        self._bytes += size


class Body:
    """One body, which counts until its context ends."""

    def __init__(self, bodies: Bodies, size: int) -> None:
        self._bodies, self._size, self.data = bodies, size, b""
        bodies.count(size)

    def __enter__(self) -> bytes:
        return self.data

    def __exit__(self, *_: object) -> None:
        self.done()

    def done(self) -> None:
        """It has been answered."""
        self._bodies.count(-self._size)
