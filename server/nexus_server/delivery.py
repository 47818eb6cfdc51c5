"""Giving the version in use to sites that lack it: after a run's last round, and after a rollback or withdrawal.

With it goes what is out of use.  A site that was away then, and meets the next version first, would keep the old one.
"""

import logging
from typing import Final

from nexus_common import wire
from nexus_common.errors import NexusError
from nexus_common.versions import vector_hash

from nexus_server.exchange import SMALL_TRIP_SECONDS, Exchange, Failure
from nexus_server.pauses import Pauses
from nexus_server.records import Run
from nexus_server.registry import Registry

log = logging.getLogger(__name__)
UNHEARD: Final = ("site-failed", "malformed", "unknown-message", "no-space")


class Delivery:
    """Knows, for this process's life, which version each site holds, and what each was told is out of use."""

    def __init__(self, registry: Registry, exchange: Exchange) -> None:
        self.registry, self.exchange = registry, exchange
        self._has: dict[str, tuple[str, int | None]] = {}  # None: the base model's own output
        self._told: dict[str, bytes] = {}
        self._hashes: dict[tuple[str, int], bytes] = {}  # of versions by run and number
        self._pauses = Pauses()

    def note(self, site: str, run: str, number: int | None) -> None:
        """A site has a version for use."""
        self._has[site] = (run, number)
        self._pauses.forget(site)

    def forget(self, site: str) -> None:
        """A site's session ended or a new one began."""
        self._has.pop(site, None)
        self._told.pop(site, None)
        self._pauses.forget(site)

    def lacking(self, run: Run) -> list[str]:
        """Connected sites without the version in use, or untold what is out of use, that may be asked now."""
        wanted, untold = (run.plan.name, self.registry.in_use(run.plan.name)), self.untold(run)
        return [site for site in self._asked(run) if site in untold or self._has.get(site) != wanted]

    def untold(self, run: Run) -> list[str]:
        """Connected sites that have not heard what is out of use, and may be asked now."""
        withdrawn = self._withdrawn()
        return [site for site in self._asked(run) if self._told.get(site, b"") != withdrawn]

    def _asked(self, run: Run) -> list[str]:
        alive = sorted(self.exchange.alive() & set(run.plan.names))
        return [site for site in alive if self._pauses.over(site)]

    def deliver(self, run: Run, sites: list[str]) -> None:
        """Send the version in use; where all are withdrawn, the base model's own output."""
        plan, number = run.plan, self.registry.in_use(run.plan.name)
        stage, vector = (
            (0, plan.adapter.layout.first_vector(plan.adapter.seed_bytes))
            if number is None
            else self.registry.adapter(run, number)
        )
        message = wire.Deliver(plan.hash, number or 0, stage, self._withdrawn(), wire.pack(vector))
        for site, answer in self.exchange.ask(dict.fromkeys(sites, message), SMALL_TRIP_SECONDS).items():
            if _has_heard(answer):
                self._told[site] = message.withdrawn
            if isinstance(answer, wire.Received):
                self.note(site, plan.name, number)
            else:
                self._pauses.begin(site)

    def deliver_in_run(self, run: Run) -> None:
        """In a run the version in use comes with the next round; but after a rollback at once.

        So does the word to a site that was away of what is out of use.
        """
        beside = self.registry.in_use(run.plan.name) != run.round
        if sites := self.lacking(run) if beside else self.untold(run):
            self.deliver(run, sites)

    def _withdrawn(self) -> bytes:
        """Hashes of the versions of all runs that went out of use last."""
        found = dict.fromkeys(self._hash(*one) for one in self.registry.out_of_use(wire.MOST_WITHDRAWN))
        return b"".join(found)

    def _hash(self, name: str, number: int) -> bytes:
        """Of a version for use, read once; nothing where its file is damaged, for that shall hold up no run."""
        if (known := self._hashes.get((name, number))) is not None:
            return known
        found, run = b"", self.registry.run(name)
        try:
            if run is not None:
                found = bytes.fromhex(vector_hash(wire.pack(self.registry.adapter(run, number)[1])))
        except NexusError as problem:
            log.error("sites that were away are not told that version %d of run %s is out: %s", number, name, problem)
            return b""
        return self._hashes.setdefault((name, number), found)


def _has_heard(answer: wire.Message | Failure) -> bool:
    """Whether a site knows what is out of use, whatever it says to the version that came with it."""
    return isinstance(answer, wire.Received) or (isinstance(answer, wire.Refused) and answer.code not in UNHEARD)
