"""What the server counts for Prometheus while it runs; what the registry keeps is read from there (``stored.py``).

Labels are closed sets and the consortium's name, and nothing is counted by site: which one took part in which round,
how long that took and what it sent stays untold (deploy/METRICS.md).
"""

from typing import Any, Final

from nexus_common import __version__
from nexus_common.errors import REFUSALS
from prometheus_client import CollectorRegistry, Counter, Histogram, Info

PHASES: Final = ("gathering", "waiting", "training", "adding", "opening")
STEPS: Final = ("training", "adding", "opening")  # of a round
LOSSES: Final = ("training", "adding")  # where a round can go on without a site
SENT: Final = "sent"
RECEIVED: Final = "received"
SECONDS: Final = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600)


class Metrics:
    """The counters of one process; ``project`` is the consortium's name."""

    def __init__(self, project: str = "") -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self.registry, "namespace": "nexus_server"}

        def of_project(kind: Any, name: str, told: str, **more: Any) -> Any:
            return kind(name, told, ["project"], **more, **named).labels(project)

        def by(kind: Any, name: str, told: str, label: str, values: tuple[str, ...], **more: Any) -> dict[str, Any]:
            family = kind(name, told, ["project", label], **more, **named)
            return {value: family.labels(project, value) for value in values}

        self.phases: dict[str, Histogram] = by(
            Histogram,
            "round_phase_duration_seconds",
            "How long phases of rounds took",
            "phase",
            PHASES,
            buckets=SECONDS,
        )
        self.dropouts: dict[str, Counter] = by(
            Counter, "dropouts", "Sites that a round went on without, by where they were lost", "phase", LOSSES
        )
        self.bytes: dict[str, Counter] = by(
            Counter, "update_bytes", "Content of all messages to and from sites", "direction", (SENT, RECEIVED)
        )
        self.rollbacks: Counter = of_project(Counter, "rollbacks", "Times that an earlier version was gone back to")
        self.spent_models: Counter = of_project(
            Counter, "spent_models", "Models whose sum is lost, so that training went on beside them"
        )
        refusals = Counter("refusals", "Refusals of sites, and of the enrolment", ["code"], **named)
        self.refusals = {code: refusals.labels(code) for code in REFUSALS}
        self.requests = Counter("http_requests", "Requests answered at the main port", ["route", "code"], **named)
        Info("build", "The program", **named).info({"version": __version__})
