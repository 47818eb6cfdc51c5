"""How a site meets the server: TLS 1.3 only, trust in the pinned consortium CA alone, its own certificate."""

import http.client
import socket
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from nexus_common import certs
from nexus_common.address import split_address, split_proxy
from nexus_common.errors import NexusError, Refusal

CONNECT_SECONDS: Final = 10.0
OTHER_HOST_OR_TIME: Final = (9, 10, 62, 64)  # X509_V_ERR_...: what OpenSSL finds once the issuer is known


def tls_context(keys: Path) -> ssl.SSLContext:
    """The context of every connection to the main port; NexusError where keys or certificates cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(keys / "ca.crt")
        context.load_cert_chain(keys / "site.crt", keys / "transport.key")
    except OSError as problem:
        raise NexusError(
            f"ca.crt, site.crt and transport.key in {keys} cannot be used ({problem.strerror or problem}); restore all "
            "three from one backup, or join again with a line of `nexus-server invite SITE --renew`"
        ) from None
    return context


def dial(address: str, proxy: str | None, seconds: float) -> socket.socket:
    """A plain connection, through the site's proxy where it has one; OSError, also where the proxy refuses."""
    if proxy is None:
        return socket.create_connection(split_address(address), seconds)
    tunnel = http.client.HTTPConnection(*split_proxy(proxy), timeout=seconds)
    tunnel.set_tunnel(*split_address(address))
    try:
        tunnel.connect()
    except http.client.HTTPException as problem:
        raise OSError(f"what answers there is no proxy ({type(problem).__name__})") from None
    return tunnel.sock


def shown_certificate(
    address: str, proxy: str | None = None, protocols: tuple[str, ...] = ()
) -> x509.Certificate | None:
    """The certificate that the other end shows, trusted for nothing yet; OSError where nobody answers with TLS."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    host, _ = split_address(address)
    with (
        dial(address, proxy, CONNECT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        shown = tls.getpeercert(binary_form=True)
    with certs.foreign():
        return x509.load_der_x509_certificate(shown) if shown else None


def foreign_issuer(problem: BaseException, address: str, proxy: str | None, keys: Path) -> str | None:
    """Who issued the certificate shown at ``address``, where that is why TLS failed with ``problem``; None where not.

    OSError where nobody answers with TLS, ValueError for a certificate that cannot be read.
    """
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in OTHER_HOST_OR_TIME:
            return None
        cause = cause.__cause__ or cause.__context__
    authority = x509.load_pem_x509_certificate((keys / "ca.crt").read_bytes())
    shown = shown_certificate(address, proxy)
    if shown is None:
        return None
    try:
        certs.check_issued_by(shown, authority, certs.key_hash(authority), ExtendedKeyUsageOID.SERVER_AUTH)
    except Refusal:
        return certs.issuer_of(shown)
    return None
