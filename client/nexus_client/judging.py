"""What becomes of a version at a site: judged when it came, in a thread of its own; all models compared in idle times.

The version that the server sent last lies in ``federated.safetensors``.  What is there and not on the shelf waits to be
judged, so a crash before that is made good at the next start, and of several only the newest is judged.  No round waits
for it, and none fails of it; on a small board it would slow one down, so it waits for the end of training, but not for
ever.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

from nexus_common.errors import NexusError
from nexus_common.versions import StoredAdapter

from nexus_client.acceptance import THE_BASE, Decision, decide
from nexus_client.choice import NOTHING, call_back, choose, made_for, newest
from nexus_client.consent import Consent
from nexus_client.embed import Progress
from nexus_client.evaluate import NotFinite
from nexus_client.judge import row_scores
from nexus_client.model_list import Gone
from nexus_client.shelf import Shelf, digest_of
from nexus_client.taken import birth_hash
from nexus_client.workspace import Workspace

log = logging.getLogger(__name__)
IDLE_SECONDS: Final = 60.0  # without a round, before a site trains for itself
LOOK_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 600.0  # after a fault
PATIENCE_SECONDS: Final = 600.0  # that judging waits for rounds that follow each other, before it works beside them
_ONE_AT_A_TIME: Final = threading.Lock()


class _Busy(Exception):
    """A round came: what a site does for itself is put off."""


class Judging:
    """``busy`` says when the site last worked on a round (Unix seconds, infinite while it does)."""

    def __init__(
        self, workspace: Workspace, consent: Consent, busy: Callable[[], float], alone: threading.Lock
    ) -> None:
        self.workspace, self.consent, self.shelf = workspace, consent, Shelf(workspace.place)
        self._busy, self._alone, self._came = busy, alone, threading.Event()
        self._unjudged = True  # what came before the last crash
        self._waits_since: float | None = None

    def version_came(self) -> None:
        """Look at the newest version now."""
        self._unjudged = True
        self._came.set()

    def run(self) -> None:
        """Work for ever."""
        while True:
            wait = LOOK_SECONDS
            self._came.clear()
            try:
                if self._unjudged:
                    self._judge()
                elif time.time() - self._busy() > IDLE_SECONDS:
                    self.choose()
            except _Busy:
                log.debug("a round is on; judging and the choice of a model wait")
            except NexusError as problem:
                log.warning("the models here could not be judged: %s; it is tried again", problem)
                wait = AGAIN_SECONDS
            except Exception:
                log.exception("judging met a fault; it is tried again")
                wait = AGAIN_SECONDS
            self._came.wait(wait)

    def _judge(self) -> None:
        """Judge the newest version, unless a round is worked on; _Busy then."""
        self._waits_since = self._waits_since or time.monotonic()
        self._give_way()
        self._unjudged = False  # before: one may come meanwhile
        try:
            judge_newest(self.workspace, self.consent, self._give_way)
        except BaseException:
            self._unjudged = True
            raise
        self._waits_since = None

    def _give_way(self, *_: object) -> None:
        waited = 0.0 if self._waits_since is None else time.monotonic() - self._waits_since
        if self._busy() == math.inf and waited < PATIENCE_SECONDS:
            raise _Busy

    def choose(self) -> None:
        """Compare all models, where version, rows or policy have changed since that was done."""
        if not self._alone.acquire(blocking=False):
            return  # ``evaluate`` does it
        try:
            federated = newest(self.shelf, "federated", self.workspace.base_hash)
            max_loss = self.consent.policy.max_loss
            if federated is None or self.shelf.models.chosen_for == made_for(self.workspace, federated, max_loss):
                return
            choose(self.workspace, max_loss, self._on_step)
            models = self.shelf.models
            log.info("chosen: %s (%s)", models.chosen, models.why)
        finally:
            self._alone.release()

    def _on_step(self, *_: object) -> None:
        if time.time() - self._busy() <= IDLE_SECONDS or self._came.is_set():
            raise _Busy


def judge_newest(workspace: Workspace, consent: Consent, progress: Progress = lambda *_: None) -> None:
    """Judge the version that the server sent last, unless it is on the shelf; call back what it has overtaken.

    ``progress`` hears each batch of texts, and may raise to put it off.
    """
    with _ONE_AT_A_TIME:
        version, shelf = StoredAdapter.read(workspace.place.federated_file), Shelf(workspace.place)
        if version is None:
            return
        call_back(shelf, version)
        digest = version.digest
        short, models = digest_of(version), shelf.models
        if digest == birth_hash(version.plan) or models.like(short, "federated"):
            return
        if short in models.withdrawn:
            log.warning(
                "version %d of run %s is not used: the server has named it as taken back, and not since as in use",
                version.number, version.plan.name,
            )  # fmt: skip
            return
        found = _decide(workspace, shelf, version, consent.policy.max_loss, progress)
        event = "version accepted" if found.accepted else "version refused"
        plan = version.plan.hash.hex()
        consent.audit.append(event, plan=plan, version=version.number, sha256=digest, reason=found.reason)
        now = shelf.models.named(shelf.models.chosen)
        own = now is not None and now.kind != "federated"  # it gives way to what is better only, or search would flap
        chosen = found.accepted and (found.better or not own)
        try:
            name = shelf.put(version, "federated", accepted=found.accepted, reason=found.reason, chosen=chosen)
        except Gone as gone:
            log.warning("%s while it was judged", gone)
        else:
            log.info("%s: %s: %s", event, name, found.reason)


def _decide(
    workspace: Workspace, shelf: Shelf, version: StoredAdapter, max_loss: float, progress: Progress
) -> Decision:
    """Against the base model and what is chosen now, by the small part of the hold-out that reports rest on too: its
    states are in the cache.
    """
    if version.recipe.base_model != workspace.base_hash:
        return Decision(False, "it belongs to another base model than base_model in site.toml")
    if not (tasks := workspace.quick_part):
        return Decision(False, NOTHING)
    chosen = shelf.models.chosen
    held = shelf.load(chosen) if shelf.models.named(chosen) else None
    now = [held] if held and held.recipe.base_model == workspace.base_hash else []
    try:
        adapters = [(one.layout, one.vector) for one in (version, *now)]
        base, model, *others = row_scores(workspace, tasks, [None, *adapters], progress)
    except NotFinite as problem:
        return Decision(False, str(problem))
    return decide(model, {THE_BASE: base} | dict(zip([chosen], others, strict=False)), max_loss)
