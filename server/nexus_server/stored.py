"""What the registry knows, as metrics: read when Prometheus asks, so that a restart loses none of it.

Figures of models are of at least ``min_cohort`` sites, as ``nexus-server models`` shows them.  What is told of one site
is in which five minutes it was last heard of, which rounds do not change, and when its certificate ends.
"""

import datetime as dt
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from cryptography import x509
from nexus_common.audit_watch import AuditWatch
from nexus_common.errors import NexusError
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from nexus_server.ca import CertificateAuthority
from nexus_server.conductor import Conductor
from nexus_server.exchange import Exchange
from nexus_server.history import History
from nexus_server.metrics import STEPS
from nexus_server.records import MADE, MIDPOINT
from nexus_server.registry import Registry

log = logging.getLogger(__name__)
_FAILED: Final = """
    SELECT (SELECT coalesce(max(rowid), 0) FROM failed_rounds) AS failed,
        (SELECT count(*) FROM rejections) AS voted_down"""
"""Of failed rounds the newest thousand are kept: the number of the last tells how many there were."""
_JUDGED: Final = """
    SELECT max(number) AS number FROM figures JOIN versions USING (run, number)
    WHERE run = ? AND state IN (?, ?) AND arm = 0 AND name IN ('score', 'loss') AND sites >= ?"""
_COHORT: Final = """
    SELECT json_array_length(cohort) AS sites FROM versions
    WHERE run = ? AND cohort <> '[]' ORDER BY number DESC LIMIT 1"""
SEEN_SECONDS: Final = 300  # no finer: a site that trains is heard of more often than one that rests
Family = type[GaugeMetricFamily] | type[CounterMetricFamily]


class Stored(Collector):
    """Collects from the registry, and from what of the running server lies beside it."""

    def __init__(
        self,
        project: str,
        registry: Registry,
        authority: CertificateAuthority,
        conductor: Conductor,
        exchange: Exchange,
        audit: AuditWatch,
    ) -> None:
        self._project, self._registry, self._authority = project, registry, authority
        self._conductor, self._exchange, self._audit, self._history = conductor, exchange, audit, History()
        self._missing = set[Callable[[], Iterator[Metric]]]()

    def collect(self) -> Iterator[Metric]:
        """All of it; what does not exist is left out, never 0, and so is what cannot be read, on a full disk say."""
        yield from self._parts(
            self._rounds, self._phases, self._plans, self._models, self._sites, self._storage, self._audited
        )

    def _parts(self, *parts: Callable[[], Iterator[Metric]]) -> Iterator[Metric]:
        for part in parts:
            try:
                found = list(part())
            except (NexusError, OSError, sqlite3.Error) as problem:
                if part not in self._missing:
                    log.error("some metrics are left out: %s", problem)
                self._missing.add(part)
            else:
                self._missing.discard(part)
                yield from found

    def _rounds(self) -> Iterator[Metric]:
        history, (others,) = self._history, self._registry.rows(_FAILED)
        history.catch_up(self._registry)
        rounds = {"committed": history.committed, **others}
        yield self._by(CounterMetricFamily, "rounds", "Rounds by outcome", "outcome", rounds)
        told = "Trials of dendrites, and what became of them"
        yield self._by(CounterMetricFamily, "growth_events", told, "kind", history.growth)
        if history.committed:
            yield self._one("last_commit_timestamp_seconds", "When the last round was committed", history.last_commit)

    def _phases(self) -> Iterator[Metric]:
        phase = self._conductor.phase
        told = "1 while a round's sites train, or its sum is collected or opened"
        yield self._one("round_in_progress", told, phase.name in STEPS)
        told = "1 while the last turn of the rounds met a fault, so that it is tried again"
        yield self._one("faulting", told, self._conductor.problem is not None)
        told = "What the server does, and since when"
        yield self._by(GaugeMetricFamily, "phase_since_timestamp_seconds", told, "phase", {phase.name: phase.since})

    def _plans(self) -> Iterator[Metric]:
        """A plan whose end has passed waits for nobody: it cannot begin any more."""
        today = dt.datetime.now(dt.UTC).date()
        waiting = [
            (one.at, len(lacking))
            for one in self._registry.proposals()
            if one.plan.end_date >= today and (lacking := self._conductor.approvals.lacking(one.plan))
        ]
        if waiting:
            since, count = min(waiting)
            told = "When the plan was proposed that has waited longest for sites to approve it"
            yield self._one("plan_waiting_since_timestamp_seconds", told, since)
            yield self._one("plan_approvals_missing", "Sites whose approval it still needs", count)

    def _models(self) -> Iterator[Metric]:
        run = self._registry.active_run() or self._registry.last_run()
        if run is None:
            return
        rows, name, least = self._registry.rows, run.plan.name, run.plan.min_cohort
        (judged,) = rows(_JUDGED, name, MADE, MIDPOINT, least)
        slots = {"in_use": self._registry.in_use(name), "newest": run.round, "judged": judged["number"]}
        slots = {slot: number for slot, number in slots.items() if number is not None}
        yield self._by(GaugeMetricFamily, "model_version", "Numbers of the run's versions", "slot", slots)
        query = "SELECT name, value FROM figures WHERE run = ? AND number = ? AND arm = 0 AND sites >= ?"
        figures = {
            slot: {row["name"]: row["value"] for row in rows(query, name, number, least)}
            for slot, number in slots.items()
        }
        scores = {slot: one["score"] for slot, one in figures.items() if "score" in one}
        told = "Mean score over what a cohort's sites hold out"
        yield self._by(GaugeMetricFamily, "model_quality_ratio", told, "slot", scores, metric="score")
        losses = {slot: one["loss"] for slot, one in figures.items() if "loss" in one}
        yield self._by(GaugeMetricFamily, "model_loss", "Mean loss over the same", "slot", losses)
        for row in rows(_COHORT, name):
            if row["sites"] >= least:
                yield self._one("round_participants", "Sites in the last committed round", row["sites"])

    def _sites(self) -> Iterator[Metric]:
        sites, alive = self._registry.sites(), self._exchange.alive()
        count = {"enrolled": len(sites), "connected": sum(row.name in alive for row in sites)}
        yield self._by(GaugeMetricFamily, "sites", "Sites of the consortium", "state", count)
        told = "When a site was last heard of"
        seen = GaugeMetricFamily("nexus_server_site_last_seen_timestamp_seconds", told, labels=["site"])
        told = "When a certificate ends"
        ends = GaugeMetricFamily("nexus_server_certificate_expiry_timestamp_seconds", told, labels=["subject"])
        for row in sites:
            ends.add_metric([f"site:{row.name}"], row.expires)
            if row.last_seen is not None:
                seen.add_metric([row.name], row.last_seen // SEEN_SECONDS * SEEN_SECONDS)
        server = x509.load_pem_x509_certificates(self._authority.files.server.read_bytes())[0]
        for subject, certificate in (("ca", self._authority.certificate), ("server", server)):
            ends.add_metric([subject], certificate.not_valid_after_utc.timestamp())
        yield from (seen, ends)

    def _storage(self) -> Iterator[Metric]:
        disk = shutil.disk_usage(self._registry.folder)
        for name, value in (("free", disk.free), ("size", disk.total)):
            told = f"The disk under the state folder: {name}"
            family = GaugeMetricFamily(f"nexus_server_storage_{name}_bytes", told, labels=["volume"])
            family.add_metric(["state"], value)
            yield family

    def _audited(self) -> Iterator[Metric]:
        return self._audit.families("nexus_server")

    def _one(self, name: str, told: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"nexus_server_{name}", told, labels=["project"])
        family.add_metric([self._project], float(value))
        return family

    def _by(self, kind: Family, name: str, told: str, label: str, values: Mapping[str, float], **fixed: str) -> Metric:
        family = kind(f"nexus_server_{name}", told, labels=["project", label, *fixed])
        for key, value in values.items():
            family.add_metric([self._project, key, *fixed.values()], float(value))
        return family
