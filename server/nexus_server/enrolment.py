"""The enrolment of sites: invitations, and the listener that is there only while one is open.

An invitation is one line with a one-time secret; one-time means one *key*: the same request gets the same certificate
again (the answer may have been lost), another key is refused.
"""

import hashlib
import logging
import re
import secrets
import threading
import time
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nexus_common import certs, rpc
from nexus_common.audit import AuditLog
from nexus_common.config import SITE_PATTERN
from nexus_common.enrolment import (
    SERVICE,
    Authority,
    EnrolAnswer,
    EnrolRequest,
    Invite,
    request_bytes,
)
from nexus_common.errors import NexusError, Refusal

from nexus_server.ca import CertificateAuthority
from nexus_server.metrics import Metrics
from nexus_server.records import JOIN, RENEW, REPLACE, Invitation, SiteRow
from nexus_server.registry import Registry
from nexus_server.settings import ServerSettingsFile

log = logging.getLogger(__name__)
RESERVED: Final = "server"  # /var/lib/nexus/server is this program's own
INVITE_DAYS: Final = 7
NEW_KEY: Final = "authority replaced"  # the line in the audit log
_DONE: Final = {JOIN: "enrolled", RENEW: "certificate renewed", REPLACE: "keys replaced"}


class Enrolment:
    """Invitations, the requests that use them, and the listener that takes those requests."""

    def __init__(
        self,
        authority: CertificateAuthority,
        registry: Registry,
        settings: ServerSettingsFile,
        audit: AuditLog,
        metrics: Metrics | None = None,
    ) -> None:
        self.authority, self.registry, self.settings, self.audit = authority, registry, settings, audit
        self._metrics = metrics or Metrics()
        self._lock = threading.Lock()  # one request at a time: an invitation is used once
        self._opening = threading.RLock()  # the listener is opened and closed by two threads
        self._listener: grpc.Server | None = None

    def invite(self, site: str, controller: str = "", contact: str = "", kind: str = JOIN) -> Invite:
        """A fresh invitation to join, to renew a certificate, or to replace lost keys; an older one for the site ends.

        ``controller`` and ``contact`` answer for the site's data in plans.
        """
        enrolled = site in {row.name for row in self.registry.sites()}
        if not re.fullmatch(SITE_PATTERN, site) or (site == RESERVED and not enrolled):
            raise NexusError(f"{site!r} cannot be a site's name: up to 63 of a-z, 0-9, inner hyphens, not {RESERVED!r}")
        if enrolled and kind == JOIN:
            raise NexusError(
                f"{site} is already enrolled: `invite {site} --renew` where its certificate ran out, `--replace` where "
                "its keys are lost; `nexus-server sites` lists the sites"
            )
        if not enrolled and kind != JOIN:
            raise NexusError(f"{site} is not enrolled; `nexus-server invite {site}` without --{kind} lets it join")
        secret = secrets.token_bytes(16)
        now = time.time()
        secret_hash, expires = hashlib.sha256(secret).digest(), now + INVITE_DAYS * 86_400
        self.registry.invite(Invitation(secret_hash, site, now, expires, None, controller, contact, kind))
        self.audit.append("invited", site=site, purpose=kind)
        self.watch()
        return Invite(self.settings.enrol_address, site, certs.key_hash(self.authority.certificate), secret)

    def rotate(self, *, distrust: bool = False) -> list[str]:
        """Replace the CA's key; invitations pin the old one and end: those whose sites have not come are returned."""
        with self._lock:
            self.authority.rotate(self.settings.hosts, distrust=distrust)
            ended = self.registry.end_invitations()
        self.close()  # what it shows is of the key before; an invitation from now on opens it again
        self.audit.append(NEW_KEY, key=certs.key_hash(self.authority.certificate).hex(), vouched=not distrust)
        log.info("the CA has a new key; invitations ended: %s", ", ".join(ended) or "none")
        return ended

    def watch(self) -> None:
        """Open or close the listener as invitations open and close; called every second."""
        with self._opening:
            wanted = bool(self.registry.open_invitations())
            if wanted and self._listener is None:
                self._open()
            elif not wanted and self._listener is not None:
                self.close()

    def _open(self) -> None:
        files = self.authority.files
        credentials = grpc.ssl_server_credentials([(files.server_key.read_bytes(), files.server.read_bytes())])
        methods: dict[str, rpc.Method[Any, Any]] = {
            "authority": rpc.Method(rpc.Nothing, Authority, self._authority),
            "enrol": rpc.Method(EnrolRequest, EnrolAnswer, self.enrol),
        }
        self._listener = rpc.start(methods, SERVICE, self.settings.enrol_listen, credentials)
        log.info("enrolment listener open at %s", self.settings.enrol_listen)

    def close(self) -> None:
        """Close the listener."""
        with self._opening:
            if self._listener is not None:
                self._listener.stop(grace=1).wait()
                self._listener = None
                log.info("enrolment listener closed")

    def _authority(self, _: rpc.Nothing) -> Authority:
        return Authority(certificate=certs.pem(self.authority.certificate).decode())

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        """Check a request against its invitation; the certificate, or the refusal's code with its facts."""
        with self._lock:
            answer = self._enrol(request)
        if answer.refused:
            self._metrics.refusals[answer.refused].inc()
        return answer

    def _enrol(self, request: EnrolRequest) -> EnrolAnswer:
        contact = self.settings.contact
        secret_hash = hashlib.sha256(request.secret).digest()
        invitation = self.registry.invitation(secret_hash)
        if invitation is None or invitation.site != request.site:
            return EnrolAnswer(refused="invite-unknown", contact=contact)
        try:
            key = _checked_key(request)
        except Refusal as refusal:
            log.warning("enrolment of %s refused: %s", request.site, refusal)
            return EnrolAnswer(refused=refusal.code, contact=contact)
        request_hash = hashlib.sha256(certs.spki(key) + request.identity).digest()
        if invitation.request_hash is not None:
            return self._again(invitation.site, invitation.request_hash, request_hash)
        if time.time() > invitation.expires:
            return EnrolAnswer(refused="invite-expired", expired=invitation.expires, contact=contact)
        if (code := self._objection(invitation, request.identity, certs.key_hash(key))) is not None:
            return EnrolAnswer(refused=code, contact=contact)
        certificate = self.authority.issue(request.site, key, request.identity)
        row = SiteRow(
            request.site,
            certs.key_hash(key),
            certs.public_pem(key),
            request.identity,
            certs.pem(certificate),
            certificate.not_valid_after_utc.timestamp(),
            time.time(),
            None,
            None,
            invitation.controller,
            invitation.contact,
        )
        (self.registry.enrol if invitation.kind == JOIN else self.registry.certify)(row, secret_hash, request_hash)
        self.audit.append(_DONE[invitation.kind], site=request.site, key=request.identity.hex())
        log.info("%s: %s", request.site, _DONE[invitation.kind])
        return EnrolAnswer(certificate=certs.pem(certificate).decode(), server=self.settings.address)

    def _objection(self, invitation: Invitation, identity: bytes, key_hash: bytes) -> str | None:
        """Why these keys are not those that the invitation is for; a refusal's code."""
        rows = {row.name: row for row in self.registry.sites()}
        if invitation.kind == RENEW:
            own = rows[invitation.site]
            return None if (identity, key_hash) == (own.identity, own.key_hash) else "other-key"
        taken = any(identity == row.identity or key_hash == row.key_hash for row in rows.values())
        return "key-in-use" if taken else None

    def _again(self, site: str, used_by: bytes, request_hash: bytes) -> EnrolAnswer:
        if used_by != request_hash:
            log.warning("the invitation of %s was presented again with another key", site)
            return EnrolAnswer(refused="invite-used", contact=self.settings.contact)
        row = next(row for row in self.registry.sites() if row.name == site)
        return EnrolAnswer(certificate=row.certificate.decode(), server=self.settings.address)


def _checked_key(request: EnrolRequest) -> ec.EllipticCurvePublicKey:
    """The P-384 key of a request that both of its keys signed; Refusal ``request-signature`` otherwise."""
    try:
        with certs.foreign():
            csr = x509.load_der_x509_csr(request.csr)
            key = csr.public_key()
            if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
                raise ValueError("not a P-384 key")
            if not csr.is_signature_valid:
                raise ValueError("the request is not signed by its own key")
            signed = request_bytes(request.site, request.secret, request.csr)
            Ed25519PublicKey.from_public_bytes(request.identity).verify(request.signature, signed)
    except ValueError as problem:
        raise Refusal("request-signature", str(problem)) from None
    return key
