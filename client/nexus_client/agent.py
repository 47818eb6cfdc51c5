"""The site's agent, what systemd starts: one warm process with one outgoing connection and one local socket."""

import logging
import signal
import threading
import time
from typing import Final

from nexus_common import certs, rpc, wire
from nexus_common.audit_watch import AuditWatch
from nexus_common.authorities import Authorities
from nexus_common.disk import remove_unfinished, single_process
from nexus_common.errors import NexusError
from nexus_common.exposition import Exposition
from nexus_common.journal import Journal
from nexus_common.notify import notify

from nexus_client import agent_api as api
from nexus_client import reports
from nexus_client.certificate import renew
from nexus_client.consent import Consent
from nexus_client.data_access import data_access
from nexus_client.judging import Judging
from nexus_client.link import Link
from nexus_client.metrics import Machine, Metrics
from nexus_client.record import ProtocolRecord
from nexus_client.rounds import SiteRounds
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome
from nexus_client.status import status
from nexus_client.workspace import Workspace

log = logging.getLogger(__name__)
STOP_WITHIN_SECONDS: Final = 5.0


class Agent:
    """Everything that runs in one ``nexus-client --site NAME`` process."""

    def __init__(self, place: SiteHome) -> None:
        settings = place.settings()
        if not (place.keys / "site.crt").exists():
            raise NexusError(f"{place.site} has not joined: {place.keys}/site.crt is missing; `nexus-client join`")
        self._lock = single_process(place.state / "agent.lock", f"nexus-client for {place.site}")
        remove_unfinished(place.state)
        remove_unfinished(Shelf(place).folder)
        self.workspace = Workspace(place, settings, prunes=True)
        self.workspace.layer  # noqa: B018  an engine that is not installed is said now, not in the first round
        identity = certs.load_identity(place.keys / "identity.key")
        self.consent = Consent(place)
        record = ProtocolRecord(place.state / "protocol.sqlite")
        self._evaluating = threading.Lock()
        self.judging = Judging(self.workspace, self.consent, lambda: self.rounds.worked_at, self._evaluating)
        metrics = Metrics()
        self.rounds = SiteRounds(self.workspace, identity, self.consent, record, self.judging.version_came, metrics)
        self.journal = Journal(self.consent.audit, paced=True)
        self.link = Link(settings.server, place.keys, self._handle, self.journal, settings.proxy, metrics)
        self._audit_watch = AuditWatch(place.audit_file, f"nexus-client {place.site}")
        metrics.registry.register(Machine(place, self.link, self._audit_watch))
        self._metrics = Exposition(metrics.registry, settings.metrics)
        self.place = place
        place.socket.unlink(missing_ok=True)  # the lock above says that no other process serves it
        self._socket = rpc.start_local(self._methods(), api.SERVICE, place.socket)

    def _methods(self) -> dict[str, rpc.Method]:  # type: ignore[type-arg]
        return {
            "status": rpc.Method(rpc.Nothing, api.StatusReport, self._status),
            "preview": rpc.Method(
                api.PreviewRequest, api.PreviewReport, lambda r: reports.preview(self.workspace, r.rows)
            ),
            "evaluate": rpc.Method(rpc.Nothing, api.EvaluateReport, self._evaluate),
            "data_access": rpc.Method(rpc.Nothing, api.DataAccess, lambda _: data_access(self.place)),
        }

    def _evaluate(self, _: rpc.Nothing) -> api.EvaluateReport:
        with self._evaluating:
            return reports.evaluate(self.workspace)

    def _status(self, _: rpc.Nothing) -> api.StatusReport:
        progress = self.rounds.progress
        found = status(self.place)
        return found.model_copy(
            update={
                "running": True,
                "connection": self.link.state,
                "last_contact": self.link.last_contact,
                "phase": progress.phase,
                "done": progress.done,
                "total": progress.total,
                "last_round_at": progress.last_round_at,
                "problem": progress.problem or found.problem,
                "metrics": self._metrics.told,
            }
        )

    def _handle(self, message: wire.Message) -> wire.Message:
        """The answer to a message of the server, after a pause where that alone has made too many lines in the log."""
        logged, trained = self._logged_bytes(), self.rounds.progress.last_round_at
        try:
            return self._answer(message)
        finally:
            if self._logged_bytes() != logged and self.rounds.progress.last_round_at == trained:
                self.journal.pace()  # a training costs time enough

    def _logged_bytes(self) -> int:
        return self.place.audit_file.stat().st_size if self.place.audit_file.exists() else 0

    def _answer(self, message: wire.Message) -> wire.Message:
        if not isinstance(message, wire.Certify):
            return self.rounds.handle(message)
        certificate = renew(message.certificate, message.authorities, self.place)
        self.link.take_certificate()
        until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        pinned = certs.key_hash(Authorities.read(message.authorities).newest).hex()
        self.consent.audit.append("certificate renewed", until=until, consortium=pinned)
        log.info("the certificate of %s is renewed until %s", self.place.site, until)
        return wire.Certified.of(message.certificate)

    def _settle(self, *, now: bool = False) -> None:
        try:
            self.journal.settle(now=now)
        except NexusError as problem:
            log.error(
                "%s", problem
            )  # the counts are kept for the next try; no answer leaves until the log can be written

    def _policy_version(self) -> tuple[int, int] | None:
        """Changes when the policy's file does."""
        try:
            found = self.place.policy_file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def run(self) -> None:
        """Work until SIGTERM or SIGINT; a round in work is finished or left to be repeated."""
        stopping = threading.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: stopping.set())
        link = threading.Thread(target=self.link.run, name="link", daemon=True)
        link.start()
        threading.Thread(target=self.judging.run, name="judging", daemon=True).start()
        log.info("agent of %s is up, server %s", self.place.site, self.link.address)
        self._audit_watch.start()
        notify("READY=1")
        told = self._policy_version()
        while not stopping.wait(1.0):
            self._settle()
            if told != (found := self._policy_version()) and self.link.renew():
                log.info("policy.toml has changed: the server is told where this site stands now")
                told = found
            if not link.is_alive():
                raise NexusError("the connection's thread ended; its log says why (systemd starts the agent again)")
        log.info("stopping")
        notify("STOPPING=1")
        started = time.monotonic()
        self.link.stop()
        link.join(STOP_WITHIN_SECONDS)
        self._settle(now=True)
        self._metrics.close()
        self._socket.stop(grace=1).wait(STOP_WITHIN_SECONDS)
        log.info("stopped in %.1f s", time.monotonic() - started)
