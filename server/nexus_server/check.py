"""``nexus-server check``: everything an administrator can mend, each with its remedy; beside a running server or not.

Reads only, on this machine only: settings, keys, certificates, ports, disk, database, audit log, clock, last backup.
"""

import datetime as dt
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography import x509
from nexus_common import audit, certs
from nexus_common.authorities import Authorities
from nexus_common.backup_age import BackupAge
from nexus_common.checks import CheckLine, CheckReport, check_log, line
from nexus_common.disk import LEAST_FREE_BYTES
from nexus_common.errors import NexusError

from nexus_server.asking import start
from nexus_server.backup import KIND
from nexus_server.ca import RENEW_SERVER_DAYS, ROTATE_DAYS, CertificateFiles
from nexus_server.check_state import check_database, check_ports, check_reach, is_running
from nexus_server.enrolment import NEW_KEY
from nexus_server.settings import audit_file, read_settings

LEAST_SHARE: Final = 0.1  # of the disk, below which the alert DiskLow fires too
BACKUP_DAYS: Final = 7
CLOCK_SECONDS: Final = 60.0


class ServerReport(CheckReport):
    """All checks of a server; ``running`` is whether one holds the folder."""

    home: str
    running: bool


def check_server(home: Path, clock: Callable[[], float] = time.time) -> ServerReport:
    """Look at all of it; one fault does not hide the next."""
    now = clock()
    running = is_running(home)
    try:
        settings = read_settings(home)
    except NexusError as problem:
        remedy = "correct server.toml, or make a server: `nexus-server init`, `nexus-server restore FILE`"
        fault = line("settings", "fault", str(problem), remedy)
        return ServerReport(home=str(home), running=running, lines=[fault])
    state = "a server runs on it" if running else f"no server runs on it: start it with `{start(home)}`"
    lines = [line("settings", "ok", f"{home / 'server.toml'}; {state}")]
    parts: tuple[Callable[[], Iterator[CheckLine]], ...] = (
        lambda: _keys(CertificateFiles(home / "keys")),
        lambda: _certificates(CertificateFiles(home / "keys"), dt.datetime.fromtimestamp(now, dt.UTC), running=running),
        lambda: check_ports(settings, running=running),
        lambda: check_reach(settings),
        lambda: _disk(home),
        lambda: check_database(home / "state"),
        lambda: _log(home, now),
    )
    for part in parts:
        lines += part()
    return ServerReport(home=str(home), running=running, lines=lines)


def _keys(files: CertificateFiles) -> Iterator[CheckLine]:
    """The two private keys: there, their owner's alone, and the CA's the one of its certificate."""
    again = "restore keys/ from the newest backup"
    good = True
    for path in (files.folder, files.ca_key, files.server_key):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as problem:
            good = False
            yield line("keys", "fault", f"{path} cannot be read: {problem.strerror}", again)
            continue
        if mode & 0o077:
            good = False
            wanted = "700" if path == files.folder else "600"
            remedy = f"chmod {wanted} {path}; if somebody may have read it: `nexus-server rotate-ca --distrust`"
            yield line("keys", "fault", f"{path} has mode {mode:o}: others on this machine can use it", remedy)
    try:
        pinned = certs.key_hash(Authorities.read(files.ca.read_bytes()).newest)
        keys = [path for path in files.folder.glob("ca*.key") if path.name in ("ca.key", "ca-next.key")]
        if pinned not in [certs.key_hash(certs.load_transport_key(path).public_key()) for path in keys]:
            raise ValueError("another key's")
        certs.load_transport_key(files.server_key)
    except (OSError, ValueError, NexusError) as problem:
        yield line("keys", "fault", f"{files.ca} is not the certificate of {files.ca_key}: {problem}", again)
        return
    if good:
        yield line("keys", "ok", f"{files.folder}: its owner's alone; sites pin {pinned.hex()[:16]}…")


def _certificates(files: CertificateFiles, now: dt.datetime, *, running: bool) -> Iterator[CheckLine]:
    for name, path, due, by_itself in (
        ("CA certificate", files.ca, ROTATE_DAYS, "a running server gives the CA a new key by itself"),
        ("server certificate", files.server, RENEW_SERVER_DAYS, "a running server renews it by itself"),
    ):
        try:
            found = x509.load_pem_x509_certificates(path.read_bytes())[0]
        except FileNotFoundError:
            yield line(name, "warning", f"{path} is not there", "the server makes it at its start")
            continue
        except (OSError, ValueError) as problem:
            yield line(name, "fault", f"{path} cannot be read: {problem}", "restore keys/ from the newest backup")
            continue
        days = (found.not_valid_after_utc - now).days
        told = f"valid until {found.not_valid_after_utc:%Y-%m-%d}, {days} days left"
        if now < found.not_valid_before_utc:
            begin = f"valid only from {found.not_valid_before_utc:%Y-%m-%d}, this machine says {now:%Y-%m-%d}"
            yield line(name, "fault", begin, "set this machine's clock (`timedatectl`)")
        elif days < 0:
            yield line(name, "fault", told, "start the server" if not running else "see its log: it could not renew it")
        elif days < due:
            yield line(name, "warning", told, by_itself)
        else:
            yield line(name, "ok", told)
    if (files.folder / "ca-next.key").exists():
        told = "the CA's key is being replaced, or that was cut short"
        yield line("CA certificate", "warning", told, "`nexus-server rotate-ca` completes it")


def _disk(home: Path) -> Iterator[CheckLine]:
    found = shutil.disk_usage(home)
    told = f"{found.free / 1e9:.1f} of {found.total / 1e9:.1f} GB free at {home}"
    if found.free < LEAST_FREE_BYTES:
        yield line("disk", "fault", told, "free some space: no round begins before, and it goes on by itself then")
    elif found.free < LEAST_SHARE * found.total:
        yield line("disk", "warning", told, "free some space before it is needed")
    else:
        yield line("disk", "ok", told)


def _log(home: Path, now: float) -> Iterator[CheckLine]:
    """The audit log's chain, and what it says of the clock and of the last backup."""
    path = audit_file(home)
    found = check_log(path)
    yield found
    if found.state == "fault":
        return
    last, backups = 0.0, BackupAge(NEW_KEY)
    with suppress(audit.Unfinished):
        for one in audit.read(path):
            last = dt.datetime.fromisoformat(one["at"]).timestamp()
            backups.look(one)
    yield _clock(last, now)
    yield _backup(backups, now)


def _clock(last: float, now: float) -> CheckLine:
    if last > now + CLOCK_SECONDS:
        told = f"this machine says {_shown(now)}, the audit log's last line is of {_shown(last)}"
        return line("clock", "fault", told, "set the clock: `timedatectl set-ntp true`")
    return line("clock", "ok", "not behind the audit log; sites measure theirs against this one, so keep NTP on")


def _backup(backups: BackupAge, now: float) -> CheckLine:
    remedy = f"`{KIND} backup FILE`, every day, to another machine"
    if backups.made is None:
        return line("backup", "warning", "the audit log knows of none", remedy)
    days, told = (now - backups.made) / 86_400, f"the last was made on {_shown(backups.made)}"
    if backups.outdated:
        return line("backup", "fault", f"{told}, and the CA has another key since: sites no longer pin that", remedy)
    if days > BACKUP_DAYS:
        return line("backup", "warning", f"{told}, {days:.0f} days ago", remedy)
    return line("backup", "ok", told)


def _shown(at: float) -> str:
    return f"{dt.datetime.fromtimestamp(at, dt.UTC):%Y-%m-%dT%H:%MZ}"
