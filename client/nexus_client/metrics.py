"""What the agent tells a Prometheus on its own machine, and nobody else: rounds, training, connection, the machine.

No text, no count of rows and no figure of a model is among it: quality is in ``report``, and a site that passes its
metrics on passes on how long its steps take, so it should pass on a list of its own choice (deploy/METRICS.md).
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from nexus_common import __version__
from nexus_common.audit_watch import AuditWatch
from nexus_common.errors import REFUSALS
from nexus_common.wire import TrainRound
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from nexus_client import sensors
from nexus_client.site import SiteHome

OUTCOMES: Final = ("trained", "closing", "zeros", "refused")
PHASES: Final = ("preparing", "training", "masking")
SENT: Final = "sent"
RECEIVED: Final = "received"
SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600)
STEP_SECONDS: Final = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self.registry, "namespace": "nexus_client"}

        def by(kind: Any, name: str, told: str, label: str, values: Any, **more: Any) -> dict[str, Any]:
            family = kind(name, told, [label], **more, **named)
            return {value: family.labels(value) for value in values}

        self.rounds: dict[str, Counter] = by(Counter, "rounds", "Rounds asked for by the server", "outcome", OUTCOMES)
        told = "How long this site's parts in rounds took"
        self.phases: dict[str, Histogram] = by(
            Histogram, "round_phase_duration_seconds", told, "phase", PHASES, buckets=SECONDS
        )
        self.steps = Counter("training_steps", "Steps of training for the server's rounds", **named)
        self.step_seconds = Histogram("training_step_duration_seconds", "Each took", buckets=STEP_SECONDS, **named)
        told = "Content of all messages to and from the server"
        self.bytes: dict[str, Counter] = by(Counter, "update_bytes", told, "direction", (SENT, RECEIVED))
        self.refusals: dict[str, Counter] = by(Counter, "refusals", "Refusals by this site", "code", REFUSALS)
        told = "Times that the server could not be reached, or the connection broke"
        self.connection_faults = Counter("connection_faults", told, **named)
        Info("build", "The program", **named).info({"version": __version__})
        self._stepped = time.perf_counter()

    def begin_steps(self) -> None:
        """The next step begins now."""
        self._stepped = time.perf_counter()

    def count_step(self) -> None:
        """A step is done, and the next one begins."""
        now = time.perf_counter()
        self.steps.inc()
        self.step_seconds.observe(now - self._stepped)
        self._stepped = now


def outcome_of(message: TrainRound, figures: Sequence[Mapping[str, float]]) -> str:
    """What became of a round here: where training fails there are no figures, and zeros are sent."""
    if message.close:
        return "closing"
    return "trained" if "train_loss" in figures[0] else "zeros"


class Machine(Collector):
    """What is looked at when Prometheus asks; what is not there, or not known yet, is left out."""

    def __init__(self, place: SiteHome, link: Any, audit: AuditWatch) -> None:
        """``link`` has ``last_contact`` and ``clock``, as ``Link`` does."""
        self._place, self._link, self._audit = place, link, audit

    def collect(self) -> Iterator[Metric]:
        """All of it."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        yield _gauge("memory_resident_bytes", "Memory of this process", pages * os.sysconf("SC_PAGE_SIZE"))
        if (used := sensors.gpu_memory_used()) is not None:
            yield _gauge("gpu_memory_used_bytes", "Memory of the GPU in use, by whichever process", used)
        told = "What the machine's sensors say"
        yield from _by_sensor("temperature_celsius", told, "zone", sensors.temperatures())
        yield from _by_sensor("power_watts", told, "rail", sensors.powers())
        if self._link.last_contact is not None:
            told = "When the server last answered"
            yield _gauge("server_last_contact_timestamp_seconds", told, self._link.last_contact)
            yield _gauge("clock_ahead_seconds", "This machine's clock against the server's", self._link.clock.ahead)
        disk = shutil.disk_usage(self._place.state)
        yield _gauge("storage_free_bytes", "Free on the disk of this site's state", disk.free)
        yield _gauge("storage_size_bytes", "Size of that disk", disk.total)
        certificate = self._place.keys / "site.crt"
        ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()
        yield _gauge("certificate_expiry_timestamp_seconds", "When this site's certificate ends", ends)
        yield from self._audit.families("nexus_client")


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"nexus_client_{name}", told, float(value))


def _by_sensor(name: str, told: str, label: str, values: dict[str, float]) -> Iterator[Metric]:
    family = GaugeMetricFamily(f"nexus_client_{name}", told, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    if values:
        yield family
