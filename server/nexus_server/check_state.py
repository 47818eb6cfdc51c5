"""The part of ``check`` that looks at what a running server may hold: its socket, its ports, its database."""

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from nexus_common.address import OFF, is_loopback, split_address
from nexus_common.checks import CheckLine, line
from nexus_common.errors import NexusError
from nexus_common.ports import listen

from nexus_server.backup import check_copy, files_named
from nexus_server.database import MIGRATIONS, NewerSchema, require_known
from nexus_server.settings import ServerSettingsFile, admin_socket

CONNECT_SECONDS: Final = 2.0


def is_running(home: Path) -> bool:
    """Whether a server answers at the folder's socket; its lock is left to servers that start."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(CONNECT_SECONDS)
        try:
            admin.connect(str(admin_socket(home)))
        except PermissionError:
            return True  # another account's
        except OSError:
            return False
    return True


def check_ports(settings: ServerSettingsFile, *, running: bool) -> Iterator[CheckLine]:
    """What a running server has open answers; what a stopped one will open is free."""
    for name, key, address, always in (
        ("port", "listen", settings.listen, True),
        ("enrolment port", "enrol_listen", settings.enrol_listen, False),
        ("metrics port", "metrics", settings.metrics, True),
    ):
        if address == OFF:
            continue
        host, port = split_address(address)
        if running and _answers(host, port):
            yield line(name, "ok", f"{address} answers")
        elif running and always:
            yield line(name, "fault", f"a server runs, but nothing answers at {address}", "see its log; restart it")
        else:
            yield _free(name, key, host, port)


def check_reach(settings: ServerSettingsFile) -> Iterator[CheckLine]:
    """That other machines reach what they dial: in its own /etc/hosts a machine's name is often loopback."""
    for name, key, listens, dialled in (
        ("port", "listen", settings.listen, settings.address),
        ("enrolment port", "enrol_listen", settings.enrol_listen, settings.enrol_address),
    ):
        host, port = split_address(listens)
        found = _address_of(host)
        if is_loopback(found) and not is_loopback(split_address(dialled)[0]):
            told = f"{key} = {listens} is {found}: this machine alone reaches it, and sites dial {dialled}"
            yield line(name, "warning", told, f'{key} = "0.0.0.0:{port}" in server.toml, and restart the server')


def _address_of(host: str) -> str:
    """What the port will be bound to; the host itself where nobody knows it, which the port's own line says."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return str(socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return host


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _free(name: str, key: str, host: str, port: int) -> CheckLine:
    try:
        listen(host, port, f"`ss -ltnp` shows who has it; or change {key} in server.toml").close()
    except NexusError as problem:
        return line(name, "fault", *str(problem).split("; ", 1))
    return line(name, "ok", f"{host} port {port} is free")


def check_database(state: Path) -> Iterator[CheckLine]:
    """SQLite's own check, the schema, and that every file of vectors is there."""
    path = state / "registry.sqlite"
    if not path.exists():
        remedy = "`nexus-server restore FILE` into a new folder, or start the server for an empty one"
        yield line("database", "fault", f"{path} is missing", remedy)
        return
    try:
        check_copy(path, path)
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as db:
            (schema,) = db.execute("PRAGMA user_version").fetchone()
        require_known(schema, path)
        missing = [name for name in files_named(path) if not (state / f"{name}.safetensors").exists()]
    except NewerSchema as problem:
        yield line("database", "fault", str(problem), "install the nexus-server that wrote it")
        return
    except (NexusError, sqlite3.Error) as problem:
        yield line("database", "fault", str(problem), "stop the server and restore the newest backup")
        return
    if missing:
        told = f"{missing[0]}.safetensors is missing, and {len(missing) - 1} more"
        yield line("database", "fault", told, "put it back from a backup")
    elif schema < len(MIGRATIONS):
        told = f"schema {schema}, this program's is {len(MIGRATIONS)}"
        yield line("database", "ok", f"{told}: brought up to it at the next start")
    else:
        yield line("database", "ok", f"{path}: whole, schema {schema}")
