"""From ``nexus-client serve`` to an open port: what may be opened to whom, and a clean end on SIGTERM."""

import logging
import re
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from nexus_common.address import is_loopback
from nexus_common.base_model import base_hash
from nexus_common.connection import HEAD_SECONDS, UVICORN, Connection
from nexus_common.errors import NexusError
from nexus_common.notify import notify
from nexus_common.ports import listen

from nexus_client.guard import Names
from nexus_client.index_build import graph_of
from nexus_client.index_updates import IndexUpdates
from nexus_client.light import LightEncoder
from nexus_client.serve import Service
from nexus_client.site import SiteHome
from nexus_client.snapshot import Snapshots

log = logging.getLogger(__name__)
LEAST_TOKEN: Final = 16
MOST_CONNECTIONS: Final = 256
NAME_PATTERN: Final = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
STOP_WITHIN_SECONDS: Final = 3


class Server(uvicorn.Server):
    """Ends with code 0 on SIGTERM and SIGINT, where uvicorn would send itself the signal again; systemd is told."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """The port answers from here on."""
        await super().startup(sockets)
        notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """It takes no more requests."""
        notify("STOPPING=1")
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Until the end of the process."""
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, self.handle_exit)
        yield


def serve(place: SiteHome, host: str, port: int, token: str | None, name: str | None = None) -> None:
    """Answer until SIGTERM; NexusError where that cannot be.  ``name`` is a TLS proxy's that passes requests on."""
    local = is_loopback(host)
    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        raise NexusError(f"--name {name[:100]!r} is no host name: as in search.hospital.example, no https://, no port")
    if name is not None and not local:
        raise NexusError(
            f"--name is for a proxy on this machine; with --host {host} any name is answered to: leave it out"
        )
    if token is None and (name or not local):
        opened, instead = ("--name", "leave it out") if local else (f"--host {host}", "stay on 127.0.0.1")
        raise NexusError(
            f"{opened} lets other machines ask, and what is served is as private as the text: give --token-file FILE "
            f"with a secret that clients send (openssl rand -hex 32 > FILE), or {instead}"
        )
    settings = place.settings()
    base = base_hash(settings.base_folder)
    listener = listen(host, port, "--port takes another")
    if not any((place.state / "onnx").glob("*/encoder-*.onnx")):
        log.info("making the encoder's graph, once for this site: about 20 s")
    encoder = LightEncoder(graph_of(place, settings, base), settings.base_folder, settings.cpu_threads)
    snapshots = Snapshots(place, base)
    service = Service(place.site, encoder, snapshots, IndexUpdates(place, settings, base))
    shown = f"[{host}]" if ":" in host else host
    names = Names(frozenset({shown, "localhost", "127.0.0.1", "[::1]"}), name and name.lower()) if local else None
    server = Server(
        uvicorn.Config(
            service.app(token, names),
            http=Connection,
            lifespan="on",
            timeout_keep_alive=int(HEAD_SECONDS),
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=STOP_WITHIN_SECONDS,
            **UVICORN,
        )
    )
    log.info("%s is served at http://%s:%d, model %s", place.site, shown, listener.getsockname()[1],
             snapshots.current.served)  # fmt: skip
    server.run(sockets=[listener])


def read_token(path: Path) -> str:
    """The secret in a file that only its owner and group can read; NexusError else."""
    try:
        mode, token = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise NexusError(f"{path} cannot be read as a token ({type(problem).__name__})") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise NexusError(f"{path} can be read by everybody on this machine: chmod 600 {path}")
    if len(token) < LEAST_TOKEN or not token.isprintable() or " " in token:
        raise NexusError(f"{path} holds no token of {LEAST_TOKEN} characters or more: openssl rand -hex 32 > {path}")
    return token
