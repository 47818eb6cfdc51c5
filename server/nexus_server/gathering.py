"""Who is ready for the run in progress: sites are told which it is, and those that refuse are left alone awhile."""

import logging
import time
from collections.abc import Collection
from typing import Final

from nexus_common import wire
from nexus_common.plan import Plan

from nexus_server.exchange import NOT_CONNECTED, RESTARTED, SILENT, SMALL_TRIP_SECONDS, Exchange, Failure, problem_of
from nexus_server.pauses import Pauses
from nexus_server.records import Run
from nexus_server.registry import Registry

log = logging.getLogger(__name__)
AT_ONCE: Final = frozenset(
    {SILENT, RESTARTED, NOT_CONNECTED} | {f"refused: {code}" for code in ("not-ready", "wrong-state", "wrong-context")}
)
"""What a site that has just restarted, or lost its connection, looks like: it is asked again as soon as it is there."""


class Gathering:
    """Knows, for this process's life, which sites said ``ready`` for which plan."""

    def __init__(self, registry: Registry, exchange: Exchange) -> None:
        self.registry, self.exchange, self.pauses = registry, exchange, Pauses()
        self._ready: dict[str, bytes] = {}  # site -> hash of the plan it is ready for
        self._taken_up: bytes | None = None  # hash of the plan that this process works on
        self._patience_ends = 0.0  # until when more than a quorum of sites is waited for

    def take_up(self, plan: Plan) -> bool:
        """Give sites the plan's ``gather_seconds`` to come; False where this run was taken up before."""
        if self._taken_up == plan.hash:
            return False
        self._taken_up, self._patience_ends = plan.hash, time.monotonic() + plan.gather_seconds
        self.pauses.forget_all()
        return True

    def drop(self) -> None:
        """The run ended."""
        self._taken_up = None

    def still_coming(self, plan: Plan) -> bool:
        """Whether sites are still given time to come."""
        return self._taken_up != plan.hash or time.monotonic() < self._patience_ends

    def hurry(self) -> None:
        """Rounds have begun: nobody is waited for beyond the quorum."""
        self._patience_ends = 0.0

    def ready(self, plan: Plan) -> list[str]:
        """The connected sites that are ready, in the plan's order."""
        alive = self.exchange.alive()
        return [site for site in plan.names if site in alive and self._ready.get(site) == plan.hash]

    def prepare(self, run: Run, sites: Collection[str]) -> None:
        """Tell those of ``sites`` that do not say ``ready`` yet which run this is, and hear how far they are."""
        for gone in set(self._ready) - set(sites):
            self._ready.pop(gone, None)  # it may come back as a new process
        unready = [site for site in sites if self._ready.get(site) != run.plan.hash]
        asked = [site for site in unready if self.pauses.over(site)]
        if not asked:
            return
        message = wire.Prepare(run.plan.canonical)
        for site, answer in self.exchange.ask(dict.fromkeys(asked, message), SMALL_TRIP_SECONDS).items():
            self.registry.note_readiness(site, standing_of(answer))
            if isinstance(answer, wire.Readiness):
                if answer.state == wire.READY:
                    self._ready[site] = run.plan.hash
                continue
            self.pauses.begin(site)
            log.warning("%s is not ready for run %s: %s", site, run.plan.name, standing_of(answer))

    def leave_out(self, site: str, reason: str) -> None:
        """A round goes on without a site, which has to say ``ready`` again; later where it refuses or is stuck."""
        self._ready.pop(site, None)
        if reason not in AT_ONCE:
            self.registry.note_readiness(site, reason)
            self.pauses.begin(site)

    def forget(self, site: str) -> None:
        """A site's process ended or a new session began; called by other threads too."""
        self._ready.pop(site, None)
        self.pauses.forget(site)


def standing_of(answer: wire.Message | Failure) -> str | None:
    """How an answer that is no result reads in ``sites`` and the log."""
    if isinstance(answer, wire.Readiness):
        return answer.state
    return problem_of(answer)
