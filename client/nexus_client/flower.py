"""The site's half of the private Flower names; see ``nexus_common.flower``, which must come first."""

from nexus_common import flower as _switches  # noqa: F401  sets the off switches before flwr is imported

# isort: split
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

__all__ = ["FleetHttpClient", "NodeAuthHttpInterceptor"]
