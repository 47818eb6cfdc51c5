"""What a run does or waits for now, how long each phase took, and the waiting itself."""

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Final

from nexus_server.metrics import Metrics

LOOK_AGAIN_SECONDS: Final = 0.5
PAUSE_AFTER_FAILURE_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Phase:
    """What the run does or waits for now."""

    name: str = "idle"  # idle, resting, recalling, gathering, waiting, training, adding, opening, delivering, faulting
    since: float = field(default_factory=time.time)
    missing: tuple[str, ...] = ()
    round: int | None = None


class Phases:
    """The phase now, each measured once; one thread goes through them, and any may look or wake it."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics, self.now = metrics, Phase()
        self._ended = True  # a pause after a failure is part of no phase, though ``now`` says it until the next
        self._wake = threading.Event()

    def wake(self) -> None:
        """Something changed: look at once."""
        self._wake.set()

    def pause(self, seconds: float) -> None:
        """Wait for ``seconds`` or until woken."""
        self._wake.wait(seconds)
        self._wake.clear()

    def pause_after_failure(self) -> None:
        """As part of no phase."""
        self.end()
        self.pause(PAUSE_AFTER_FAILURE_SECONDS)

    def show(self, name: str, missing: tuple[str, ...] = (), number: int | None = None) -> None:
        """The run is in this phase of this round, and waits for these sites."""
        if self._ended or (name, number) != (self.now.name, self.now.round):
            self.end()
            self.now, self._ended = Phase(name, time.time(), missing, number), False
        elif missing != self.now.missing:
            self.now = replace(self.now, missing=missing)

    def end(self) -> None:
        """Measure the phase, once."""
        if not self._ended and self.now.name in self.metrics.phases:
            self.metrics.phases[self.now.name].observe(max(0.0, time.time() - self.now.since))
        self._ended = True
