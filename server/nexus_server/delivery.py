"""Giving the version in use to sites that lack it: after a run's last round, and after a rollback or withdrawal."""

from nexus_common import wire

from nexus_server.exchange import SMALL_TRIP_SECONDS, Exchange
from nexus_server.pauses import Pauses
from nexus_server.records import Run
from nexus_server.registry import Registry


class Delivery:
    """Knows, for this process's life, which version each site holds."""

    def __init__(self, registry: Registry, exchange: Exchange) -> None:
        self.registry, self.exchange = registry, exchange
        self._has: dict[str, tuple[str, int | None]] = {}  # None: the base model's own output
        self._pauses = Pauses()

    def note(self, site: str, run: str, number: int | None) -> None:
        """A site has a version for use."""
        self._has[site] = (run, number)
        self._pauses.forget(site)

    def forget(self, site: str) -> None:
        """A site's session ended or a new one began."""
        self._has.pop(site, None)
        self._pauses.forget(site)

    def lacking(self, run: Run) -> list[str]:
        """Connected sites without the version in use that may be asked now."""
        wanted = (run.plan.name, self.registry.in_use(run.plan.name))
        alive = sorted(self.exchange.alive() & set(run.plan.names))
        return [site for site in alive if self._has.get(site) != wanted and self._pauses.over(site)]

    def deliver(self, run: Run, sites: list[str]) -> None:
        """Send the version in use; where all are withdrawn, the base model's own output."""
        plan, number = run.plan, self.registry.in_use(run.plan.name)
        stage, vector = (
            (0, plan.adapter.layout.first_vector(plan.adapter.seed_bytes))
            if number is None
            else self.registry.adapter(run, number)
        )
        message = wire.Deliver(plan.hash, number or 0, stage, wire.pack(vector))
        for site, answer in self.exchange.ask(dict.fromkeys(sites, message), SMALL_TRIP_SECONDS).items():
            if isinstance(answer, wire.Received):
                self.note(site, plan.name, number)
            else:
                self._pauses.begin(site)
