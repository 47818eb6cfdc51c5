"""``/metrics``: a program's figures for a Prometheus on the same machine, in the text format of prometheus-client.

It has a port, a thread and an event loop of its own, so no site can reach it through the main port and no slow reader
holds up a round.  Without a password: on loopback unless an administrator says otherwise, and there it answers to this
machine's own names only, so that no web page can read it (DNS rebinding).  Where the port cannot be had the program
goes on without it and says so.
"""

import asyncio
import logging
import threading
import time
import weakref
from typing import Any, ClassVar, Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, disable_created_metrics, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nexus_common.address import OFF, is_loopback, split_address
from nexus_common.connection import UVICORN, Connection, bare_name
from nexus_common.errors import NexusError
from nexus_common.ports import listen

log = logging.getLogger(__name__)
MOST_CONNECTIONS: Final = 16
NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
disable_created_metrics()  # type: ignore[no-untyped-call]


class Exposition:
    """One program's open port; ``told`` says where it is, or why there is none."""

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        """``address`` is ``HOST:PORT``, or ``off``."""
        self.told, self._server = OFF, None
        if address == OFF:
            return
        host, port = split_address(address)
        try:
            listener = listen(host, port, f'`metrics` in the settings takes another address, or "{OFF}"')
        except NexusError as problem:
            self.told = f"not served: {problem}"
            log.error("metrics are %s", self.told)
            return
        if not is_loopback(host):
            log.warning("metrics at %s can be read by every machine that reaches it, without a password", address)
        self._server = _serve(registry, listener, frozenset({host.lower(), *NAMES}) if is_loopback(host) else None)
        self.told = f"http://{address}/metrics"
        log.info("metrics for Prometheus: %s", self.told)

    def close(self) -> None:
        """Take no more requests."""
        if self._server is not None:
            self._server.should_exit = True


class _Bounded(Connection):
    """At most ``MOST_CONNECTIONS`` at once, silent ones among them, until their time is over."""

    _open: ClassVar[weakref.WeakSet[Connection]] = weakref.WeakSet()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close it where there are too many."""
        super().connection_made(transport)
        if len(self._open) > MOST_CONNECTIONS:
            transport.abort()


def _serve(registry: CollectorRegistry, listener: Any, hosts: frozenset[str] | None) -> uvicorn.Server:
    async def metrics(request: Request) -> Response:
        foreign = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if hosts is not None and (foreign or bare_name(request.headers.get("host", "")) not in hosts):
            return PlainTextResponse(f"this port answers to {', '.join(sorted(hosts))} only\n", 403)
        try:
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
        except Exception as fault:  # noqa: BLE001  no fault of a figure is one of the program's
            log.error("metrics cannot be read: %s: %s", type(fault).__name__, fault)
            return PlainTextResponse("the program's log says why\n", 503)

    config = uvicorn.Config(
        Starlette(routes=[Route("/metrics", metrics)]),
        http=_Bounded,
        lifespan="off",
        timeout_graceful_shutdown=1,
        **UVICORN,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="metrics", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    return server
