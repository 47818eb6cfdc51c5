"""The site's certificate: what one must be to be kept, and how a running agent takes a newer one."""

import datetime as dt

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from nexus_common import certs
from nexus_common.authorities import Authorities
from nexus_common.disk import write_durably
from nexus_common.errors import Refusal

from nexus_client.site import SiteHome


def checked(pem: bytes, authority: x509.Certificate, place: SiteHome) -> x509.Certificate:
    """The certificate, where ``authority`` issued it to this site for its own two keys.

    Refusal ``wrong-authority`` or ``bad-certificate``; ValueError where it cannot be read.
    """
    with certs.foreign():
        certificate = x509.load_pem_x509_certificate(pem)
    certs.check_issued_by(certificate, authority, certs.key_hash(authority), ExtendedKeyUsageOID.CLIENT_AUTH)
    own = certs.key_hash(certs.load_transport_key(place.keys / "transport.key").public_key())
    identity = certs.raw_identity(certs.load_identity(place.keys / "identity.key"))
    if certs.key_hash(certificate) != own or certs.site_and_identity(certificate) != (place.site, identity):
        raise Refusal("bad-certificate", "the server certified another site or other keys than this site's")
    return certificate


def renew(pem: bytes, authorities: bytes, place: SiteHome) -> x509.Certificate:
    """Put a certificate in the place of the one in use; Refusal where it is none of this site's, or no newer.

    Where the consortium's CA has a new key for which the pinned one vouches, that one is pinned from now on.  It is
    stored first: the server trusts certificates of both.
    """
    pinned = x509.load_pem_x509_certificate((place.keys / "ca.crt").read_bytes())
    used = x509.load_pem_x509_certificate((place.keys / "site.crt").read_bytes())
    try:
        chain = Authorities.read(authorities)
        chain.check_vouched(certs.key_hash(pinned))
        certificate = checked(pem, chain.newest, place)
    except ValueError as problem:
        raise Refusal("bad-certificate", f"the certificate that the server sent cannot be read: {problem}") from None
    if certificate.not_valid_before_utc > dt.datetime.now(dt.UTC):
        raise Refusal(
            "bad-certificate", f"it begins on {certificate.not_valid_before_utc:%Y-%m-%d}: one clock is wrong"
        )
    if certs.key_hash(chain.newest) != certs.key_hash(pinned):
        write_durably(place.keys / "ca.crt", certs.pem(chain.newest))
    elif certificate.not_valid_after_utc <= used.not_valid_after_utc:
        ends, until = certificate.not_valid_after_utc, used.not_valid_after_utc
        raise Refusal("bad-certificate", f"it ends on {ends:%Y-%m-%d}, the one in use on {until:%Y-%m-%d}")
    write_durably(place.keys / "site.crt", certs.pem(certificate))
    return certificate
