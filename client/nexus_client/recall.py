"""What a site tells a server that was restored from a backup: which versions had come from it, and one of them again.

Whatever its people say to the plan by now, as with a version that is called back: it shows only what a server had sent,
and without it the server would have to keep what is withdrawn to itself.
"""

import logging
from collections.abc import Iterator

from nexus_common import wire
from nexus_common.audit import read
from nexus_common.errors import NexusError, Refusal
from nexus_common.holdings import Holding
from nexus_common.plan import Plan
from nexus_common.versions import StoredAdapter

from nexus_client.shelf import DIGITS, Shelf
from nexus_client.site import SiteHome

log = logging.getLogger(__name__)


def held(place: SiteHome, plan: Plan) -> list[Holding]:
    """The versions of a plan that came here, by rising number; one that came later with a lower number called back all
    above it.

    The log may have been begun anew since: what came last is here in any case.
    """
    found: dict[int, Holding] = {}
    for line in read(place.audit_file):
        if line["event"] == "version received" and line.get("plan") == plan.hash.hex() and "stage" in line:
            number = line["version"]
            found = {known: one for known, one in found.items() if known < number}
            found[number] = Holding(number, line["stage"], line["sha256"])
    if (newest := _came_last(place, plan)) is not None:
        found.setdefault(newest.number, Holding(newest.number, newest.stage, newest.digest))
    return [found[number] for number in sorted(found)]


def given(place: SiteHome, plan: Plan, digest: str) -> bytes:
    """A version of the plan that is still here; Refusal ``wrong-context`` where it is not."""
    for version in _kept(place, plan, digest):
        if version is not None and version.recipe == plan and version.digest == digest:
            return wire.pack(version.vector)
    raise Refusal("wrong-context", f"version {digest[:DIGITS]}… of run {plan.name} is not here any more")


def _kept(place: SiteHome, plan: Plan, digest: str) -> Iterator[StoredAdapter | None]:
    """Where a version may be: what came last, and only then the models of the list, which may be damaged."""
    yield _came_last(place, plan)
    shelf = Shelf(place)
    for one in shelf.models.held:
        if one.kind == "federated" and digest.startswith(one.digest):
            yield StoredAdapter.read(shelf.file_of(one.name))


def _came_last(place: SiteHome, plan: Plan) -> StoredAdapter | None:
    """The newest version that came, where it is one of the plan and can be read."""
    try:
        version = StoredAdapter.read(place.federated_file)
    except NexusError as problem:
        log.error("%s", problem)
        return None
    return version if version is not None and version.recipe == plan else None
