"""Certificates that renew themselves: at a third of their life left a connected site gets a new one for its key.

So it does at once where the CA's key was replaced; when no certificate of the old key is left, it is forgotten.
"""

import datetime as dt
import logging
from dataclasses import replace
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from nexus_common import certs, wire
from nexus_common.audit import AuditLog
from nexus_common.authorities import Authorities

from nexus_server.ca import CertificateAuthority
from nexus_server.exchange import SMALL_TRIP_SECONDS, Exchange, problem_of
from nexus_server.pauses import Pauses
from nexus_server.records import SiteRow
from nexus_server.registry import Registry

log = logging.getLogger(__name__)
LEFT: Final = dt.timedelta(days=certs.LEAF_DAYS) / 3


class Renewal:
    """Used by the round logic's thread, between its turns."""

    def __init__(
        self, registry: Registry, exchange: Exchange, authority: CertificateAuthority, audit: AuditLog
    ) -> None:
        self.registry, self.exchange, self.authority, self.audit = registry, exchange, authority, audit
        self._pauses = Pauses()

    def renew(self) -> None:
        """Send a certificate to each connected site that needs one; the site keeps it, then the registry does."""
        authorities = self.authority.authorities  # before the sites: nobody joins under an older key after this
        now, alive, sites = dt.datetime.now(dt.UTC), self.exchange.alive(), self.registry.sites()
        outdated = self._outdated(authorities, sites, now.timestamp())
        until = (now + LEFT).timestamp()
        due = [row for row in sites if (row.expires < until or row.name in outdated) and row.name in alive]
        rows = {row.name: self._certified(row) for row in due if self._pauses.over(row.name)}
        if not rows:
            return
        asked = {name: wire.Certify(row.certificate, self.authority.authorities.pem) for name, row in rows.items()}
        for name, answer in self.exchange.ask(asked, SMALL_TRIP_SECONDS).items():
            if answer != wire.Certified.of(rows[name].certificate):
                self._pauses.begin(name)
                log.warning("the certificate of %s is not renewed: %s", name, problem_of(answer) or "another answer")
                continue
            self._pauses.forget(name)
            if not self.registry.renew(rows[name]):
                log.warning("%s was revoked or has other keys since: its renewed certificate does not count", name)
                continue
            self.audit.append("certificate renewed", site=name, key=rows[name].identity.hex())
            log.info("the certificate of %s is renewed", name)

    def _outdated(self, authorities: Authorities, sites: list[SiteRow], now: float) -> set[str]:
        """Whose certificate still counts and is of an older key of the CA; forgets those keys where there is none."""
        if not authorities.links:
            return set()
        certificates = {row.name: x509.load_pem_x509_certificate(row.certificate) for row in sites if row.expires > now}
        found = {name for name, certificate in certificates.items() if not authorities.issued(certificate)}
        if not found and self.authority.forget_older(authorities):
            self.audit.append("older authorities forgotten", keys=len(authorities.links))
            log.info("every site has a certificate of the CA's new key: the one before counts no more")
        return found

    def _certified(self, row: SiteRow) -> SiteRow:
        key = cast(ec.EllipticCurvePublicKey, load_pem_public_key(row.public_pem))
        certificate = self.authority.issue(row.name, key, row.identity)
        return replace(row, certificate=certs.pem(certificate), expires=certificate.not_valid_after_utc.timestamp())
