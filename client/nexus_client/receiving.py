"""A version that comes from the server, for the site's own use: stored, and what it overtakes called back.

With a round or without one.  What the site has logged as received comes back whatever its people say by then, and so
does the base model's own output: so versions are called back, and nothing else comes.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from nexus_common import wire
from nexus_common.audit import read
from nexus_common.errors import Refusal
from nexus_common.plan import Plan
from nexus_common.versions import StoredAdapter, vector_hash

from nexus_client.choice import call_back
from nexus_client.consent import Consent
from nexus_client.shelf import Damaged, Shelf
from nexus_client.site import SiteHome
from nexus_client.taken import birth_hash, check_number, check_reach, check_stage

log = logging.getLogger(__name__)
TAKEN: Final = ("version received", "version accepted")  # the second is how logs before its judging say the first


class Receiving:
    """Takes versions for one site; ``on_version`` hears that there is a new one."""

    def __init__(self, place: SiteHome, consent: Consent, on_version: Callable[[], None]) -> None:
        self.place, self.consent, self._on_version = place, consent, on_version

    def deliver(self, message: wire.Deliver) -> wire.Message:
        """Take a version for use: of the approved plan, or one that was here before; so versions are called back."""
        self._withdraw(message)  # whatever becomes of the version: nobody has to agree to have one less
        plan = self.consent.plan(message.run)
        check_number(plan, message.round)
        form = check_stage(plan, message.stage, alone=True)
        vector = wire.unpack(message.vector, form)
        try:
            self.consent.require(plan)
            check_reach(plan, message.round, vector)
        except Refusal:
            if not self._had(plan, message):  # asked last: it reads the whole log
                raise
        self.store(StoredAdapter(plan, message.round, vector, form.arms[0]))
        log.info("version %d of run %s received", message.round, plan.name)
        return wire.Received(wire.model_hash(form, message.vector))

    def _withdraw(self, message: wire.Deliver) -> None:
        """Take out of use what the server names, but not what it sends in the same breath."""
        sent = vector_hash(message.vector)
        with _list_may_be_damaged():
            Shelf(self.place).withdraw([one for one in wire.unpack_hashes(message.withdrawn) if one != sent])

    def _had(self, plan: Plan, message: wire.Deliver) -> bool:
        """Whether a version is harmless: the base model's own output, or received here before, as the log says."""
        digest = vector_hash(message.vector)
        if digest == birth_hash(plan):
            return True
        wanted = (plan.hash.hex(), message.round, digest)
        lines = (line for line in read(self.place.audit_file) if line["event"] in TAKEN)
        return any((line.get("plan"), line.get("version"), line.get("sha256")) == wanted for line in lines)

    def store(self, version: StoredAdapter) -> None:
        """Keep a version that was checked, unless it is what came last; it waits to be judged.

        What it overtakes is called back each time: the last time may have failed at that.
        """
        there = StoredAdapter.read(self.place.federated_file)
        digest, plan = version.digest, version.plan.hash.hex()
        held = there and (there.plan.hash.hex(), there.number, there.digest)
        if held != (plan, version.number, digest):
            self.consent.audit.append(
                "version received", plan=plan, version=version.number, stage=version.stage, sha256=digest
            )
            version.write(self.place.federated_file)
            self._on_version()
        with _list_may_be_damaged():
            call_back(Shelf(self.place), version)


@contextmanager
def _list_may_be_damaged() -> Iterator[None]:
    """Then no model of it can be used either, and the round goes on.

    One that cannot be written is another matter: the server must not hear that something is out of use which is not.
    """
    try:
        yield
    except Damaged as problem:
        log.error("%s", problem)
