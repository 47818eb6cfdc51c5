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
        """The certificate decides which key is in force: where it is of the next one, a rotation is completed."""
        try:
            authorities = Authorities.read(self.files.ca.read_bytes())
            wanted, fresh = certs.key_hash(authorities.newest), _next(self.files.ca_key)
            if fresh.exists() and _hash_at(fresh) == wanted:
                fresh.replace(self.files.ca_key)
                sync_folder(self.files.folder)
            key = certs.load_transport_key(self.files.ca_key)
            if certs.key_hash(key.public_key()) != wanted:
                raise ValueError("another key")
        except (OSError, ValueError) as problem:
            raise NexusError(
                f"{self.files.ca} is not the certificate of {self.files.ca_key} ({problem}); restore both from the "
                "same backup"
            ) from None
        self._key, self.authorities = key, authorities

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
        except (FileNotFoundError, ValueError):
            return False
        now = dt.datetime.now(dt.UTC)
        lasts = found.not_valid_before_utc <= now < found.not_valid_after_utc - dt.timedelta(days=RENEW_SERVER_DAYS)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        fits = list(names) == certs.host_names(hosts) and certs.key_hash(found) == _hash_at(self.files.server_key)
        return lasts and fits and self.authorities.issued(found) and tuple(links) == self.authorities.links

    def issue(self, site: str, key: ec.EllipticCurvePublicKey, identity: bytes) -> x509.Certificate:
        """A site's certificate."""
        with self._lock:
            return certs.issue_site(self._key, self.certificate, key, site, identity, dt.datetime.now(dt.UTC))

    def rotate(self, hosts: list[str], *, distrust: bool = False) -> None:
        """A new key, for which the old one vouches unless it is distrusted; the old one is destroyed.

        Its certificates count until no valid one of it is left, or, distrusted, no more.  The server gets a new key
        too: whoever has the CA's, or an old backup, has the server's that lay beside it.
        """
        with self._lock:
            self._load()  # what a fault had cut short is completed first
            _new_key_beside(self.files.server_key).replace(self.files.server_key)
            key = certs.load_transport_key(_new_key_beside(self.files.ca_key))
            chain = self.authorities.rotated(self._key, key, dt.datetime.now(dt.UTC))
            write_durably(self.files.ca, certs.pem(chain.newest) if distrust else chain.pem)
            self._load()
            self.ensure_server_certificate(hosts)

    def forget_older(self, than: Authorities) -> bool:
        """End the overlap: only the newest key's certificates count; False where it was replaced again meanwhile."""
        with self._lock:
            if self.authorities != than:
                return False
            write_durably(self.files.ca, certs.pem(self.certificate))
            self._load()
            return True


def _next(path: Path) -> Path:
    return path.with_name(f"{path.stem}-next{path.suffix}")


def _new_key_beside(path: Path) -> Path:
    """A new key that waits to take another's place."""
    fresh = _next(path)
    fresh.unlink(missing_ok=True)  # of an attempt that was cut short
    certs.save_key(fresh, certs.new_transport_key())
    return fresh


def _hash_at(path: Path) -> bytes:
    return certs.key_hash(certs.load_transport_key(path).public_key())
