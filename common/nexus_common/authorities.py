"""The consortium's CA and those before it: how the key that sites pin is replaced without anybody pasting a line.

RFC 4210, section 4.4: the old key signs a certificate of the new one ("new with old"), all under one name, and is
destroyed.  Who pins the new key trusts what it issues; who still pins an older one follows the links to it.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from nexus_common import certs
from nexus_common.errors import Refusal

MOST: Final = 8  # generations that a site follows; one lasts ten years, so far more than there will be


@dataclass(frozen=True)
class Authorities:
    """Generations, the newest first, each signed by itself; ``links[i]`` is the key of generation i, signed by i + 1's.

    As a file and on the wire: PEM, newest, link, the one before, link, and so on.
    """

    generations: tuple[x509.Certificate, ...]
    links: tuple[x509.Certificate, ...] = ()

    @classmethod
    def read(cls, pem: bytes) -> "Authorities":
        """From PEM; ValueError where it is no such chain."""
        with certs.foreign():
            found = x509.load_pem_x509_certificates(pem)
        if len(found) % 2 == 0 or len(found) >= 2 * MOST:
            raise ValueError(f"{len(found)} certificates are no chain of authorities")
        return cls(tuple(found[::2]), tuple(found[1::2]))

    @property
    def newest(self) -> x509.Certificate:
        """What issues certificates now."""
        return self.generations[0]

    @property
    def pem(self) -> bytes:
        """The whole chain."""
        pairs = zip(self.links, self.generations[1:], strict=True)
        return b"".join(map(certs.pem, (self.newest, *(one for pair in pairs for one in pair))))

    @property
    def linked(self) -> bytes:
        """The links in PEM, which a server shows below its own certificate to those who pin an older key."""
        return b"".join(map(certs.pem, self.links))

    def rotated(self, old: certs.TransportKey, new: certs.TransportKey, now: dt.datetime) -> "Authorities":
        """A chain with a new generation, for which the newest one's key vouches."""
        newest, link = (certs.authority_like(self.newest, new.public_key(), signer, now) for signer in (new, old))
        return Authorities((newest, *self.generations)[:MOST], (link, *self.links)[: MOST - 1])

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether the newest generation issued a certificate of ours, by the issuer's key that it names."""
        return certs.issuer_key(certificate) == certs.issuer_key(self.newest)

    def check_vouched(self, pinned: bytes) -> None:
        """Refusal ``wrong-authority`` unless the newest key is the pinned one, or that vouches for it over links."""
        try:
            with certs.foreign():
                vouched = pinned in self._vouching()
        except ValueError:
            vouched = False
        if not vouched:
            raise Refusal("wrong-authority", "the pinned consortium key does not vouch for the new one")

    def _vouching(self) -> Iterator[bytes]:
        """The keys, newest first, as far as each vouches for the one before; any fault ends it."""
        self.newest.verify_directly_issued_by(self.newest)  # it is stored, and TLS takes no other as an anchor
        yield (key := certs.key_hash(self.newest))
        for link, older in zip(self.links, self.generations[1:], strict=True):
            if certs.key_hash(link) != key or not certs.is_authority(link):
                return
            link.verify_directly_issued_by(older)
            yield (key := certs.key_hash(older))
