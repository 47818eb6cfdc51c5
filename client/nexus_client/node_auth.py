"""What Flower's server asks of a node at every request, by the server's clock."""

from base64 import b64encode
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from nexus_client import flower as fc
from nexus_client.clock import ServerClock


class SignedTime:
    """What Flower's server asks of a node at every request: its key, and the time under its signature."""

    def __init__(self, key: EllipticCurvePrivateKey, clock: ServerClock) -> None:
        self._key, self._clock = key, clock
        self._public = b64encode(fc.public_key_to_bytes(key.public_key())).decode("ascii")

    def intercept(self, context: Any, call_next: Any) -> httpx.Response:
        """Add the three headers."""
        timestamp = self._clock.now().isoformat()
        signature = b64encode(fc.sign_message(self._key, timestamp.encode("ascii"))).decode("ascii")
        context.request.headers[fc.FLEET_HTTP_PUBLIC_KEY_HEADER] = self._public
        context.request.headers[fc.TIMESTAMP_HEADER] = timestamp
        context.request.headers[fc.FLEET_HTTP_SIGNATURE_HEADER] = signature
        found: httpx.Response = call_next(context)
        return found
