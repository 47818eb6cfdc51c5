"""The consortium's certificate authority: its key, the certificates it issues, and how a new key takes its place."""

import datetime as dt
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from nexus_common import certs
from nexus_common.authorities import Authorities
from nexus_common.disk import sync_folder, write_durably
from nexus_common.errors import NexusError

RENEW_SERVER_DAYS: Final = 120
ROTATE_DAYS: Final = 730  # left of the CA's ten years: by then every certificate has run out twice


@dataclass(frozen=True)
class CertificateFiles:
    """Where the CA's and the server's keys and certificates lie."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The CA's certificate, and after a rotation those before it (``Authorities``); public."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """The CA's private key."""
        return self.folder / "ca.key"

    @property
    def server(self) -> Path:
        """The server's certificate, with what vouches for its issuer below it."""
        return self.folder / "server.crt"

    @property
    def server_key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"


class CertificateAuthority:
    """Issues certificates; needs the CA's private key on this machine.  Any thread."""

    def __init__(self, files: CertificateFiles) -> None:
        self.files, self._lock = files, threading.RLock()
        self._load()

    def _load(self) -> None:
        """The key decides which generation is in force: a rotation that was cut short has not happened."""
        self._key = certs.load_transport_key(self.files.ca_key)
        try:
            self.authorities = Authorities.read(self.files.ca.read_bytes()).since(self._key)
        except (OSError, ValueError) as problem:
            raise NexusError(
                f"{self.files.ca} is not the certificate of {self.files.ca_key} ({problem}); restore both from the "
                "backup"
            ) from None

    @classmethod
    def create(cls, files: CertificateFiles, name: str) -> "CertificateAuthority":
        """Make the CA and the server's key; what an interrupted attempt has left is kept and completed."""
        files.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (files.ca_key, files.server_key):
            if not path.exists():
                certs.save_key(path, certs.new_transport_key())
        if not files.ca.exists():
            key = certs.load_transport_key(files.ca_key)
            write_durably(files.ca, certs.pem(certs.make_authority(key, name, dt.datetime.now(dt.UTC))))
        return cls(files)

    @property
    def certificate(self) -> x509.Certificate:
        """The CA's certificate, whose key sites pin."""
        return self.authorities.newest

    @property
    def days_left(self) -> int:
        """Of that certificate."""
        return (self.certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)).days

    def ensure_server_certificate(self, hosts: list[str]) -> bool:
        """Issue the server's certificate where it is missing, runs out, or says something else; whether it did."""
        with self._lock:
            if self._is_good(hosts):
                return False
            key, now = certs.load_transport_key(self.files.server_key).public_key(), dt.datetime.now(dt.UTC)
            issued = certs.pem(certs.issue_server(self._key, self.certificate, key, hosts, now))
            write_durably(self.files.server, issued + self.authorities.linked)
            return True

    def _is_good(self, hosts: list[str]) -> bool:
        try:
            found, *links = x509.load_pem_x509_certificates(self.files.server.read_bytes())
        except FileNotFoundError:
            return False
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        named = {str(n) for n in names.get_values_for_type(x509.IPAddress)}
        named |= set(names.get_values_for_type(x509.DNSName))
        lasts = found.not_valid_after_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=RENEW_SERVER_DAYS)
        chained = self.authorities.issued(found) and tuple(links) == self.authorities.links
        return named == set(hosts) and lasts and chained

    def issue(self, site: str, key: ec.EllipticCurvePublicKey, identity: bytes) -> x509.Certificate:
        """A site's certificate."""
        with self._lock:
            return certs.issue_site(self._key, self.certificate, key, site, identity, dt.datetime.now(dt.UTC))

    def rotate(self, *, distrust: bool = False) -> None:
        """A new key, for which the old one vouches unless it is distrusted; the old one is destroyed.

        Its certificates count until all connected sites have one of the new key, or, distrusted, no more.
        """
        with self._lock:
            fresh = self.files.ca_key.with_name("ca-next.key")
            fresh.unlink(missing_ok=True)  # of an attempt that was cut short
            certs.save_key(fresh, key := certs.new_transport_key())
            write_durably(self.files.ca, self.authorities.rotated(self._key, key, dt.datetime.now(dt.UTC)).pem)
            fresh.replace(self.files.ca_key)
            sync_folder(self.files.folder)
            self._load()
            if distrust:
                self.forget_older()

    def forget_older(self) -> None:
        """End the overlap: only the newest key's certificates count."""
        with self._lock:
            write_durably(self.files.ca, certs.pem(self.certificate))
            self._load()
