"""How a site meets the server: TLS 1.3 only, trust in the pinned consortium CA alone, its own certificate."""

import ssl
from pathlib import Path


def tls_context(keys: Path) -> ssl.SSLContext:
    """The context of every connection to the main port; OSError where keys or certificates cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(keys / "ca.crt")
    context.load_cert_chain(keys / "site.crt", keys / "transport.key")
    return context
