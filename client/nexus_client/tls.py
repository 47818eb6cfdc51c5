"""How a site meets the server: TLS 1.3 only, trust in the pinned consortium CA alone, its own certificate."""

import http.client
import socket
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509
from nexus_common.address import split_address, split_proxy

CONNECT_SECONDS: Final = 10.0


def tls_context(keys: Path) -> ssl.SSLContext:
    """The context of every connection to the main port; OSError where keys or certificates cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(keys / "ca.crt")
    context.load_cert_chain(keys / "site.crt", keys / "transport.key")
    return context


def dial(address: str, proxy: str | None, seconds: float) -> socket.socket:
    """A plain connection, through the site's proxy where it has one; OSError, also where the proxy refuses."""
    if proxy is None:
        return socket.create_connection(split_address(address), seconds)
    tunnel = http.client.HTTPConnection(*split_proxy(proxy), timeout=seconds)
    tunnel.set_tunnel(*split_address(address))
    tunnel.connect()
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
    return x509.load_der_x509_certificate(shown) if shown else None
