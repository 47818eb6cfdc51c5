"""How the commands of ``nexus-server`` reach the running server: its socket in the state folder."""

from pathlib import Path
from typing import Final

import typer
from nexus_common import rpc
from nexus_common.cli import options
from nexus_common.errors import NexusError
from nexus_common.notify import booted

from nexus_server.admin_api import SERVICE
from nexus_server.settings import admin_socket

DEFAULT_HOME: Final = Path("/var/lib/nexus/server")  # of nexus-server.service


def home_of(context: typer.Context) -> Path:
    """The server's folder."""
    return options(context).home or DEFAULT_HOME


def start(home: Path, verb: str = "start") -> str:
    """What starts a server: systemd where it does, for root's own would not be the service's account."""
    return f"systemctl {verb} nexus-server" if home == DEFAULT_HOME and booted() else f"nexus-server --home {home}"


def call(context: typer.Context, name: str, request: rpc.Body, answer: type[rpc.Ans]) -> rpc.Ans:
    """Ask the running server; NexusError with the remedy where none runs."""
    home = home_of(context)
    with rpc.channel(rpc.local_address(admin_socket(home))) as channel:
        try:
            return rpc.call(channel, SERVICE, name, request, answer)
        except rpc.Unavailable:
            gone = f"the server on {home} ended without good-bye, or this account may not use its socket"
            found = gone if admin_socket(home).exists() else f"no nexus-server is running on {home}"
            raise NexusError(f"{found}; start it: {start(home)}") from None
        except ConnectionError as problem:
            raise NexusError(f"the server on {home} failed at {name} ({problem}); its log says why") from None
