"""Secure aggregation in the rounds: deals key epochs ahead, opens a slot for those who have trained, opens its sum.

It moves the bytes of ``secagg.server`` through an ``Exchange``; what it may do when is decided there and at the sites.
A sum that is being opened is on disk before anybody is asked to open it, and is waited for after a crash too.
"""

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from nexus_common import tail, wire
from nexus_common.errors import Refusal
from nexus_common.secagg import codec
from nexus_common.secagg.plan import ProtocolPlan
from nexus_common.secagg.server import Server
from numpy.typing import NDArray

from nexus_server.exchange import NOT_CONNECTED, RESTARTED, SMALL_TRIP_SECONDS, Exchange, Failure, problem_of
from nexus_server.records import Run
from nexus_server.registry import Registry

log = logging.getLogger(__name__)
SET_UPS: Final = 3  # tries to deal an epoch, each without those who fell silent in the one before
AGAIN_SECONDS: Final = 0.2
COMES_BACK: Final = frozenset({"paused", "outside-hours", "policy-invalid", "no-space", "site-failed", "not-ready"})
NO_KEYS: Final = frozenset({"refused: wrong-state", "refused: share-decrypt"})  # another epoch takes it in again
NORM_SLACK: Final = 1.001  # rounding of a vector that was scaled to exactly clip_norm


@dataclass(frozen=True)
class Sum:
    """What the server may know of a round: its cohort, the mean update [dim], what it reports of each of the arms."""

    cohort: list[str]
    mean: NDArray[np.float64]
    reported: list[dict[str, tail.Reported]]


class ModelSpent(Exception):
    """No sum for this model will ever be opened: sites have it on record as opened."""


class Aggregation:
    """The server's part in secure aggregation for one run at a time; used by the round logic's thread alone.

    ``forget`` may be called by others.
    """

    def __init__(self, registry: Registry, exchange: Exchange) -> None:
        self.registry, self.exchange = registry, exchange
        self.failures: dict[str, str] = {}  # of the last step: site -> why it has no part in it
        self.missing: tuple[str, ...] = ()  # whose shares the sum waits for
        self._server: Server | None = None
        self._slot = -1
        self._holding: set[str] = set()  # sites whose process has this epoch's keys
        self._inboxes: dict[str, bytes] = {}  # of those that have not shown yet that they have theirs
        self._lost: set[str] = set()  # those that can no longer help to open the sum

    def forget(self, site: str) -> None:
        """A site's process ended or a new session began: its keys may be gone."""
        self._holding.discard(site)

    def set_up(self, run: Run, sites: Collection[str]) -> list[str]:
        """The sites of ``sites`` that hold an epoch's keys; deals one unless the present one is of all of them.

        Refusal ``below-threshold`` where too few take part; ``failures`` says why.
        """
        self.failures, protocol = {}, run.plan.protocol_plan(run.stage)
        server = self._server
        usable = server is not None and server.plan.hash == protocol.hash and self._slot + 1 < protocol.slots
        wanted = set(sites)
        for left in reversed(range(SET_UPS + 1)):
            if usable and wanted <= self._holding:
                return sorted(wanted)
            if left:
                wanted, usable = self._deal(run, protocol, wanted), True
        raise Refusal("below-threshold", f"no epoch's keys could be dealt to {', '.join(sorted(wanted))}")

    def _deal(self, run: Run, protocol: ProtocolPlan, sites: set[str]) -> set[str]:
        """Try one epoch; the sites that answered to the end."""
        self._server = server = Server(protocol, self.registry.next_epoch(protocol.hash))
        self._slot, self._holding, self._inboxes = -1, set(), {}
        self._trip(run, server, dict.fromkeys(sites, server.start()))
        present = _named(server, server.heard)
        self._trip(run, server, dict.fromkeys(present, server.adverts()))
        answered = set(_named(server, server.heard))
        if len(answered) == len(present):
            self._holding = answered
            self._inboxes = dict(zip(present, map(server.inbox, server.present), strict=True))
            log.info("run %s: keys of epoch %d for %d sites", run.plan.name, server.epoch, len(present))
        return answered

    def collect(self, run: Run, model: bytes, sites: Collection[str]) -> None:
        """Masked inputs of ``sites`` for a model, and their word on whose they are; then the sum waits on disk.

        Refusal ``below-threshold`` where too few take part: the model is as good as before.  ``ModelSpent`` where sites
        have opened it already.
        """
        self.failures, server = {}, self._dealt
        self._slot += 1
        self.registry.count_slot(server.plan.hash)
        message = server.round(self._slot, model)
        seconds = SMALL_TRIP_SECONDS * len(run.form.arms)  # what comes back is as much longer
        self._trip(run, server, dict.fromkeys(sites, message), self._inboxes, seconds)
        for site in _named(server, server.heard):
            self._inboxes.pop(site, None)
        replays = [site for site, code in self.failures.items() if code == "refused: model-replay"]
        if len(sites) - len(replays) < server.plan.quorum <= len(sites):
            raise ModelSpent
        commit = server.commit()
        self._trip(run, server, dict.fromkeys(_named(server, server.survivors), commit))
        self.registry.keep_opening(run.plan.name, run.round, server.open())
        self._lost = set()

    @property
    def _dealt(self) -> Server:
        if self._server is None:
            raise Refusal("below-threshold", "no epoch's keys were dealt yet")
        return self._server

    def is_opening(self, run: Run) -> bool:
        """Whether the sum of this round waits to be opened; takes it up again after a restart."""
        found = self.registry.opening(run.plan.name, run.round)
        if found is None:
            return False
        protocol, server = run.plan.protocol_plan(run.stage), self._server
        if server is None or server.plan.hash != protocol.hash or server.kind != "shares" or server.open() != found:
            self._server, self._lost = Server.resumed(protocol, found), set()
            self._slot, self._holding = protocol.slots, set()  # for this sum alone: a new epoch comes next
        return True

    def open(self, run: Run) -> Sum | None:
        """Ask for the shares that are missing; the sum, or None while it waits for ``missing``.

        ``ModelSpent`` where too few of those who could help are left, or where the sum is not one of honest sites.
        """
        self.failures, server = {}, self._dealt
        name = server.plan.names.__getitem__
        lacking = {name(i) for i in server.signers if i not in server.heard} - self._lost
        if len(server.heard) < server.plan.t:
            self._trip(run, server, dict.fromkeys(lacking, server.open().message))
        for site, reason in self.failures.items():
            if reason.startswith("refused: ") and reason.removeprefix("refused: ") not in COMES_BACK:
                self._lost.add(site)
        able = [i for i in server.signers if i in server.heard or name(i) not in self._lost]
        if len(able) < server.plan.t:
            log.warning("round %d: %s cannot open the sum any more", run.round + 1, ", ".join(sorted(self._lost)))
            raise ModelSpent
        if len(server.heard) < server.plan.t:
            self.missing = tuple(sorted(name(i) for i in able if i not in server.heard))
            return None
        self.missing = ()
        try:
            return self._opened(run, server)
        except Refusal as refusal:
            log.error("round %d: %s", run.round + 1, refusal)
            raise ModelSpent from None

    def _opened(self, run: Run, server: Server) -> Sum:
        total, liars = server.total_despite_liars()
        if liars:
            log.warning("the sum opened without the shares of %s, which spoil it", ", ".join(_named(server, liars)))
        values, _ = codec.decode(server.plan, total, len(server.survivors))
        form, aggregation = run.form, run.plan.aggregation
        mean, limit = values[: form.dim], run.plan.local.clip_norm
        norm = max(float(np.linalg.norm(arm)) for arm in form.split(mean))
        if norm > limit * NORM_SLACK:
            raise Refusal("norm-bound", f"the mean of updates of at most {limit} has L2 norm {norm:.3f}: a site lies")
        cohort, tails = _named(server, server.survivors), np.split(values[form.dim :], len(form.arms))
        return Sum(
            cohort, mean, [tail.decode(aggregation.figures, one, aggregation.range, len(cohort)) for one in tails]
        )

    def _trip(
        self,
        run: Run,
        server: Server,
        messages: Mapping[str, bytes],
        inboxes: Mapping[str, bytes] | None = None,
        seconds: float = SMALL_TRIP_SECONDS,
    ) -> None:
        """Send, and send the same bytes again where no answer came, until all have answered or time is up."""
        waiting, ends = dict(messages), time.monotonic() + seconds
        inboxes = inboxes or {}
        while waiting and (left := ends - time.monotonic()) > 0:
            # One object for equal messages, so that Flower and the log hold it once.
            made: dict[tuple[bytes, bytes], wire.Ask] = {}
            asks = {
                site: made.setdefault(
                    (inboxes.get(site, b""), data), wire.Ask(run.plan.hash, run.round, inboxes.get(site, b""), data)
                )
                for site, data in waiting.items()
            }
            for site, answer in self.exchange.ask(asks, left).items():
                if not isinstance(answer, Failure) or answer.reason not in (RESTARTED, NOT_CONNECTED):
                    del waiting[site]
                if (reason := _taken(server, answer)) is None:
                    self.failures.pop(site, None)
                else:
                    self.failures[site] = reason
                    log.info("round %d, %s of %s: %s", run.round + 1, server.kind, site, reason)
                if reason in NO_KEYS:
                    self.forget(site)
            if waiting:
                time.sleep(AGAIN_SECONDS)


def _taken(server: Server, answer: wire.Message | Failure) -> str | None:
    """Give an answer to the protocol; why it is none, or None."""
    if (problem := problem_of(answer)) is not None:
        return problem
    try:
        server.receive(answer.vector if isinstance(answer, wire.Masked) else getattr(answer, "data", b""))
    except Refusal as refusal:
        return str(refusal)
    return None


def _named(server: Server, numbers: Collection[int]) -> list[str]:
    return [server.plan.names[number] for number in numbers]
