"""The site's half of the private Flower names; see ``nexus_common.flower``, which must come first."""

from nexus_common import flower as _switches  # noqa: F401  sets the off switches before flwr is imported

# isort: split
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supernode.fleet_http_client import FleetHttpClient

__all__ = [
    "FLEET_HTTP_PUBLIC_KEY_HEADER",
    "FLEET_HTTP_SIGNATURE_HEADER",
    "TIMESTAMP_HEADER",
    "FleetHttpClient",
    "public_key_to_bytes",
    "sign_message",
]
