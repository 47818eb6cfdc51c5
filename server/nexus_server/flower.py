"""The server's half of the private Flower names; see ``nexus_common.flower``, which must come first."""

from nexus_common import flower as _switches  # noqa: F401  sets the off switches before flwr is imported

# isort: split
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error import http_error_translator
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router

__all__ = [
    "NOOP_FEDERATION_ID",
    "Grid",
    "InMemoryLinkState",
    "InMemoryObjectStore",
    "NoOpFederationManager",
    "NodeAuthMiddleware",
    "ProtobufTranslationMiddleware",
    "TaskType",
    "fleet_router",
    "http_error_translator",
]
