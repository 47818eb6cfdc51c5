"""The running server: registry, Flower grid, public door, enrolment, administration, and the thread of the rounds."""

import logging
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nexus_common import rpc
from nexus_common.address import split_address
from nexus_common.audit import AuditLog
from nexus_common.audit_watch import AuditWatch
from nexus_common.disk import remove_unfinished, single_process
from nexus_common.errors import NexusError
from nexus_common.exposition import Exposition
from nexus_common.journal import Journal
from nexus_common.notify import notify

from nexus_server.admin import Administration
from nexus_server.admin_api import SERVICE
from nexus_server.ca import ROTATE_DAYS, CertificateAuthority, CertificateFiles
from nexus_server.conductor import Conductor
from nexus_server.door import SiteConnection, make_app, open_door
from nexus_server.enrolment import NEW_KEY, Enrolment
from nexus_server.exchange import GridExchange
from nexus_server.gate import Counted, KnownSite
from nexus_server.grid import LocalGrid
from nexus_server.metrics import Metrics
from nexus_server.registry import Registry
from nexus_server.renewal import Renewal
from nexus_server.settings import admin_socket, audit_file, read_settings
from nexus_server.stored import Stored
from nexus_server.tls import DoorTls

log = logging.getLogger(__name__)
STOP_WITHIN_SECONDS: Final = 5.0
ROTATE_AGAIN_SECONDS: Final = 3600.0
AFTER_FAULT_SECONDS: Final = 5.0


class Server:
    """Everything that runs in one ``nexus-server`` process."""

    def __init__(self, home: Path) -> None:
        self.settings = read_settings(home)
        self._lock = single_process(home / "server.lock", "nexus-server")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # strangers' half-open connections take descriptors
        self.registry = Registry(home / "state")
        renewed, dropped = self.registry.renew_plans()
        for name in renewed:
            log.warning("plan %s has other settings in this release; its sites have to approve it again", name)
        for name in dropped:
            log.error("plan %s has settings that this release does not take, and is dropped: propose it again", name)
        files = CertificateFiles(home / "keys")
        remove_unfinished(files.folder)
        self.authority = CertificateAuthority(files)
        self.authority.ensure_server_certificate(self.settings.hosts)
        audit = AuditLog(audit_file(home))
        self.journal = Journal(audit)
        metrics = Metrics(self.settings.name)
        self.enrolment = Enrolment(self.authority, self.registry, self.settings, audit, metrics)
        self.grid = LocalGrid()
        self._known: dict[bytes, KnownSite] = {}
        self._seen: dict[str, float] = {}
        self._rotate_from = 0.0
        self._stopping, self._refreshing = threading.Event(), threading.Lock()
        self.refresh_sites()
        received = SiteConnection.received.total
        exchange = GridExchange(self.grid, lambda: self.grid.node_of, received, self.journal, metrics)
        self.conductor = Conductor(self.registry, exchange, self._identities, audit, metrics)
        self.renewal = Renewal(self.registry, exchange, self.authority, audit)
        self.grid.state.on_restart = lambda node: self.conductor.site_left(self.grid.site_of[node])
        self._audit_watch = AuditWatch(audit.path, "nexus-server", outdated_by=NEW_KEY)
        beside = (self.authority, self.conductor, exchange, self._audit_watch)
        metrics.registry.register(Stored(self.settings.name, self.registry, *beside))
        self._metrics = Exposition(metrics.registry, self.settings.metrics)
        told = (SiteConnection.received, self.refresh_sites, self._metrics.told)
        self.administration = Administration(self.registry, self.enrolment, self.conductor, exchange, audit, *told)
        host, port = split_address(self.settings.listen)
        app = Counted(make_app(self.grid, self._lookup, self._on_seen), metrics.requests)
        self._door = open_door(app, host, port, DoorTls(files).context)
        socket = admin_socket(home)
        socket.unlink(missing_ok=True)  # the lock above says that no other process serves it
        self._admin = rpc.start_local(self.administration.methods(), SERVICE, socket)
        self._rounds = threading.Thread(target=self._run_rounds, name="rounds", daemon=True)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: self._stopping.set())
        self._rounds.start()
        self._audit_watch.start()
        log.info("nexus-server %s is ready at %s", self.settings.name, self.settings.listen)
        notify("READY=1")
        while not self._stopping.wait(1.0):
            self._tick()
        self.close()

    def _tick(self) -> None:
        for step in (
            self._keep_certificates,
            self.enrolment.watch,
            self.refresh_sites,
            self._note,
            self.journal.settle,
        ):
            try:
                step()
            except Exception as fault:  # noqa: BLE001  whatever it is, the other steps, the port and the rounds go on
                _report("the server's housekeeping met a fault; it tries again in a second", fault)

    def _keep_certificates(self) -> None:
        self.authority.ensure_server_certificate(self.settings.hosts)
        if self.authority.days_left < ROTATE_DAYS and time.monotonic() >= self._rotate_from:
            self._rotate_from = time.monotonic() + ROTATE_AGAIN_SECONDS  # there are two years to mend a fault
            self.enrolment.rotate()

    def _note(self) -> None:
        seen, self._seen = self._seen, {}
        self.registry.note_seen(seen)

    def _run_rounds(self) -> None:
        while not self._stopping.is_set():
            problems = [_problem_of(step) for step in (self.renewal.renew, self.conductor.turn)]
            self.conductor.problem = next(filter(None, problems), None)
            if self.conductor.problem:
                self._stopping.wait(AFTER_FAULT_SECONDS)

    def refresh_sites(self) -> None:
        """Let newly enrolled sites and new keys in, and revoked ones out."""
        with self._refreshing:
            rows = self.registry.sites()
            keys = {row.name: row.public_pem for row in rows}
            before, self._known = self._known, {row.key_hash: KnownSite(row.name, row.public_pem) for row in rows}
            SiteConnection.cut(before.keys() - self._known.keys())
            for site, key in self.grid.sites().items():
                if keys.get(site) != key:
                    self.grid.expel(site)
                    self.conductor.site_left(site)
            for site in keys.keys() - self.grid.sites().keys():
                self.grid.add_site(site, keys[site])

    def _lookup(self, key_hash: bytes) -> KnownSite | None:
        if key_hash not in self._known:
            self.refresh_sites()
        return self._known.get(key_hash)

    def _identities(self) -> dict[str, bytes]:
        return {row.name: row.identity for row in self.registry.sites()}

    def _on_seen(self, site: str) -> None:
        self._seen[site] = time.time()

    def close(self) -> None:
        """Stop taking requests; a round in progress is repeated at the next start."""
        log.info("stopping")
        notify("STOPPING=1")
        self._stopping.set()
        self._door.should_exit = True
        self._metrics.close()
        self._admin.stop(grace=1).wait(STOP_WITHIN_SECONDS)
        self.enrolment.close()
        self.grid.close()
        self.registry.close()
        self.journal.settle(now=True)


def _problem_of(step: Callable[[], None]) -> str | None:
    """Take a step of the round logic; what it met, in words."""
    try:
        step()
    except Exception as fault:  # noqa: BLE001  the port and the other steps go on
        return _report(f"the round logic met a fault; it tries again in {AFTER_FAULT_SECONDS:.0f} s", fault)
    return None


def _report(what: str, fault: Exception) -> str:
    """Log one line for what a person can mend, and where it arose for all else; the fault in words, for ``status``."""
    if isinstance(fault, NexusError):
        log.error("%s: %s", what, fault)
        return str(fault)
    log.error("%s: %s", what, type(fault).__name__, exc_info=fault)
    return f"{type(fault).__name__}; the server's log says more"
