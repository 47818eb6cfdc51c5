"""What a site tells a server that was restored from a backup: which versions had come from it, and one of them again.

Whatever its people say to the plan by now, as with a version that is called back: it shows only what a server had sent,
and without it the server would have to keep what is withdrawn to itself.
"""

from nexus_common import wire
from nexus_common.audit import read
from nexus_common.errors import Refusal
from nexus_common.holdings import Holding
from nexus_common.plan import Plan
from nexus_common.versions import StoredAdapter

from nexus_client.shelf import DIGITS, Shelf
from nexus_client.site import SiteHome


def held(place: SiteHome, plan: Plan) -> list[Holding]:
    """The versions of a plan that came here, by rising number; one that came later with a lower number called back all
    above it."""
    found: dict[int, Holding] = {}
    for line in read(place.audit_file):
        if line["event"] == "version received" and line.get("plan") == plan.hash.hex() and "stage" in line:
            number = line["version"]
            found = {known: one for known, one in found.items() if known < number}
            found[number] = Holding(number, line["stage"], line["sha256"])
    return list(found.values())


def given(place: SiteHome, plan: Plan, digest: str) -> bytes:
    """A version of the plan that is still here; Refusal ``wrong-context`` where it is not."""
    shelf = Shelf(place)
    like = (one.name for one in shelf.models.held if one.kind == "federated" and digest.startswith(one.digest))
    for file in (place.federated_file, *map(shelf.file_of, like)):
        version = StoredAdapter.read(file)
        if version is not None and version.recipe == plan and version.digest == digest:
            return wire.pack(version.vector)
    raise Refusal("wrong-context", f"version {digest[:DIGITS]}… of run {plan.name} is not here any more")
