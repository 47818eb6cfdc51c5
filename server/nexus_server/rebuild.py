"""A server that was lost without a backup, made again from the version file that any of its sites holds."""

from pathlib import Path

from nexus_common.errors import NexusError
from nexus_common.versions import StoredAdapter

from nexus_server.records import STOPPED
from nexus_server.registry import Registry


def read_version(path: Path) -> StoredAdapter:
    """A site's ``federated.safetensors``; NexusError where it is none."""
    version = StoredAdapter.read(path)
    if version is None:
        raise NexusError(f"{path} does not exist; at a site it is state/federated.safetensors")
    if not version.plan.names:  # raises for a site's own adapter
        raise NexusError(f"{path} names no site")
    return version


def adopt(state: Path, version: StoredAdapter) -> None:
    """Put the version's run into a new state folder, stopped; ``train`` goes on with it once its sites are back."""
    registry = Registry(state)
    try:
        if registry.run(version.plan.name) is None:  # an interrupted ``init`` may have come this far
            registry.propose(version.plan)
            registry.create_run(version.plan, version.vector, version.number, version.stage, STOPPED)
        registry.note_restored()  # a second time is no harm
    finally:
        registry.close()
