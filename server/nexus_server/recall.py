"""After a restore from a backup: the newest version that a quorum of a run's sites had received is adopted.

A server that was restored has lost the rounds since the backup; its sites have not.  Until a quorum of them was heard,
no version leaves it, since an older one would call theirs back.  What is adopted has the hash that a quorum named, so
that no few sites that lie can choose it; any one site may give its bytes.  That no weights are opened twice is in the
sites' own records, which no backup holds: a version whose sum was opened already is gone around like any spent model.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from nexus_common import wire
from nexus_common.audit import AuditLog
from nexus_common.errors import Refusal
from nexus_common.holdings import Holding, unpack_holdings
from nexus_common.layout import Vector
from nexus_common.plan import Plan
from nexus_common.versions import vector_hash

from nexus_server.exchange import SMALL_TRIP_SECONDS, Exchange, Failure, problem_of
from nexus_server.next_version import require_space
from nexus_server.pauses import Pauses
from nexus_server.records import Run
from nexus_server.registry import Registry

log = logging.getLogger(__name__)
KNOWS_NONE: Final = "refused: unknown-message"  # a program older than this question


class Recall:
    """Asks the sites of one run at a time; remembers their answers for this process's life."""

    def __init__(
        self, registry: Registry, exchange: Exchange, identities: Callable[[], dict[str, bytes]], audit: AuditLog
    ) -> None:
        self.registry, self.exchange, self.identities, self.audit = registry, exchange, identities, audit
        self._plan: bytes | None = None  # hash of the plan whose sites are being asked
        self._patience_ends = 0.0  # until when more than a quorum of sites is waited for
        self._told: dict[str, tuple[Holding, ...]] = {}
        self._unable = defaultdict[Holding, set[str]](set)  # sites that named a version and cannot give it
        self._pauses = Pauses()

    def due(self, run: Run) -> bool:
        """Whether this server was restored and has not heard a quorum of the run's sites since."""
        return self.registry.recall_due(run.plan.name)

    def forget(self, site: str) -> None:
        """A site came anew: it may be asked at once."""
        self._pauses.forget(site)

    def turn(self, run: Run) -> tuple[str, ...]:
        """Ask the sites that are there, and decide once enough have answered; those that have not."""
        plan = run.plan
        if self._plan != plan.hash:
            self._plan, self._patience_ends = plan.hash, time.monotonic() + plan.gather_seconds
            self._told, self._unable = {}, defaultdict(set)
        self._ask(plan)
        missing = tuple(site for site in plan.names if site not in self._told)
        if len(self._told) >= plan.quorum and (not missing or time.monotonic() >= self._patience_ends):
            self._decide(run)
        return missing

    def _ask(self, plan: Plan) -> None:
        asked = self._there(site for site in plan.names if site not in self._told)
        answers = self.exchange.ask(dict.fromkeys(asked, wire.Recall(plan.hash, b"")), SMALL_TRIP_SECONDS)
        for site, answer in answers.items():
            if isinstance(answer, wire.Holds):
                self._told[site] = tuple(one for one in unpack_holdings(answer.versions) if _is_possible(plan, one))
            elif problem_of(answer) == KNOWS_NONE:
                self._told[site] = ()
            else:
                log.warning("%s does not say which versions of run %s it has: %s", site, plan.name, problem_of(answer))
                self._pauses.begin(site)

    def _there(self, sites: Iterable[str]) -> list[str]:
        alive = self.exchange.alive()
        return [site for site in sites if site in alive and self._pauses.over(site)]

    def _decide(self, run: Run) -> None:
        """Adopt the newest version of a quorum that somebody gives, or go on from the backup's."""
        votes = Counter(one for told in self._told.values() for one in told)
        away = len(self.identities().keys() & set(run.plan.names) - self._told.keys())
        newer = [one for one, sites in votes.items() if sites + away >= run.plan.quorum and one.round > run.round]
        for one in sorted(newer, key=lambda one: one.round, reverse=True):
            if votes[one] < run.plan.quorum:
                return  # one who was not heard may hold it too: so few cannot hold this up that all of them might lie
            require_space(self.registry, run.plan.stages[one.stage].dim)
            if (vector := self._fetch(run.plan, one)) is not None:
                self._adopt(run, one, vector)
                return
            able = self._holders(one) - self._unable[one]
            if able & self.exchange.alive() or (able and time.monotonic() < self._patience_ends):
                return  # one of them may give it yet
        newest = {site: told[-1].round for site, told in self._told.items() if told}
        self.audit.append(
            "recalled",
            plan=run.plan.hash.hex(),
            version=run.round,
            newest=[f"{site}: {number}" for site, number in newest.items()],
        )
        log.warning(
            "run %s goes on from version %d, as restored: no newer one is held by %d sites (the newest of %s)",
            run.plan.name,
            run.round,
            run.plan.quorum,
            ", ".join(f"{site}: {number}" for site, number in newest.items()) or "none",
        )
        self.registry.note_recalled(run.plan.name)

    def _holders(self, one: Holding) -> set[str]:
        return {site for site, told in self._told.items() if one in told}

    def _fetch(self, plan: Plan, one: Holding) -> Vector | None:
        """The numbers of a version, from the first site that gives what the quorum named; None where none does now."""
        for site in self._there(sorted(self._holders(one) - self._unable[one])):
            answer = self.exchange.ask({site: wire.Recall(plan.hash, bytes.fromhex(one.digest))}, SMALL_TRIP_SECONDS)
            given = answer[site]
            if isinstance(given, Failure):
                self._pauses.begin(site)
                if time.monotonic() >= self._patience_ends:  # or one that never answers would hold it up for ever
                    self._unable[one].add(site)
                continue
            try:
                if isinstance(given, wire.Given) and vector_hash(given.vector) == one.digest:
                    return wire.unpack(given.vector, plan.stages[one.stage])
            except Refusal as refusal:  # the length or values that a quorum named are none of this plan's
                log.error("version %d of run %s cannot be used: %s", one.round, plan.name, refusal)
            log.warning("%s cannot give version %d of run %s: %s", site, one.round, plan.name, problem_of(given))
            self._unable[one].add(site)
        return None

    def _adopt(self, run: Run, one: Holding, vector: Vector) -> None:
        facts: dict[str, str | int] = {"plan": run.plan.hash.hex(), "version": one.round, "sha256": one.digest}
        self.audit.append(
            "version adopted", **facts, stage=one.stage, restored=run.round, sites=sorted(self._holders(one))
        )
        if not self.registry.adopt(run, one.round, one.stage, vector):
            self.audit.append("version void", **facts)
            return
        log.warning(
            "run %s goes on from version %d, which %d of its sites hold; the backup had version %d",
            run.plan.name,
            one.round,
            len(self._holders(one)),
            run.round,
        )


def _is_possible(plan: Plan, one: Holding) -> bool:
    """Whether the plan can have a version of this number and form for use."""
    return one.round < plan.most_inputs and one.stage < len(plan.stages) and not plan.stages[one.stage].is_trial
