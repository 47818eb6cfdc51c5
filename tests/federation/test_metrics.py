"""What the server's metrics tell of simulated runs: what happened, through a restart too, and nothing of one site."""

import asyncio
import datetime as dt
import re
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nexus_common import exposition, wire  # noqa: F401  without its switch there are `_created` series
from nexus_common.audit_watch import AuditWatch
from nexus_common.enrolment import EnrolRequest
from nexus_common.errors import NexusError
from nexus_server import next_version, phases
from nexus_server.admin_api import Rollback
from nexus_server.admin_models import ModelAdministration
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.enrolment import Enrolment
from nexus_server.gate import FLEET_PATHS, Counted
from nexus_server.metrics import Metrics
from nexus_server.settings import ServerSettingsFile
from nexus_server.stored import Stored
from prometheus_client import generate_latest

from tests.federation.staged import staged
from tests.federation.test_growth import growing, stages, trials_of
from tests.federation.test_rounds import NAMES, Federation, plan_of
from tests.federation.test_safety import federation_of
from tests.plans import enrol

pytestmark = pytest.mark.usefixtures("narrow")
SERIES = re.compile(r"^(\w+(?:\{.*\})?) (\S+)$", re.MULTILINE)


class Watched:
    """A simulated federation's metrics, as a server that starts now would expose them."""

    def __init__(self, federation: Federation, folder: Path) -> None:
        self.metrics = metrics = Metrics("c")
        self.federation, conductor = federation, federation.conductor
        conductor.metrics = conductor.rounds.metrics = conductor.phases.metrics = metrics
        conductor.exchange._metrics = metrics  # type: ignore[attr-defined]
        self.authority = authority = CertificateAuthority.create(CertificateFiles(folder / "keys"), "c")
        authority.ensure_server_certificate(["127.0.0.1"])
        audit = AuditWatch(federation.audit.path, "nexus-server")
        audit.look()
        metrics.registry.register(Stored("c", federation.registry, authority, conductor, conductor.exchange, audit))

    @property
    def text(self) -> str:
        return generate_latest(self.metrics.registry).decode()

    def __getitem__(self, name: str) -> float | None:
        """One series of ``nexus_server_`` and, where that has none, of this project; None where there is none."""
        name, _, given = name.partition("{")
        labels = dict(re.findall(r'(\w+)="([^"]*)"', given))
        one = self.metrics.registry.get_sample_value
        found = one(f"nexus_server_{name}", labels | {"project": "c"})
        return one(f"nexus_server_{name}", labels) if found is None else found


def test_rounds_trials_and_versions_are_told_and_a_restart_forgets_none(tmp_path: Path) -> None:
    federation = growing(tmp_path / "a")
    federation.finish()
    for start in range(2):
        watched = Watched(federation, tmp_path / str(start))
        assert watched['rounds_total{outcome="committed"}'] == 8
        assert watched['growth_events_total{kind="trial_begun"}'] == 1
        assert watched['growth_events_total{kind="dendrite_kept"}'] == 1
        assert watched['growth_events_total{kind="control_kept"}'] == 0
        assert watched['model_version{slot="in_use"}'] == watched['model_version{slot="judged"}'] == 8
        assert watched['model_quality_ratio{slot="judged",metric="score"}'] == pytest.approx(0.6, abs=1e-4)
        assert watched['model_loss{slot="in_use"}'] == pytest.approx(1.0, abs=1e-3)
        assert watched["round_participants"] == 3
        assert watched["audit_chain_valid"] == 1
        federation.restart_server()


def test_a_trial_that_nothing_won_or_that_a_rollback_ended_is_told_as_such(tmp_path: Path) -> None:
    federation = growing(tmp_path / "a", gains=(0.0, 0.0), rounds=16)
    watched = Watched(federation, tmp_path)
    federation.turns(5)
    assert stages(federation)[-1] == 3, "a trial goes on"
    assert watched['growth_events_total{kind="trial_begun"}'] == 1
    ModelAdministration(federation.registry, federation.conductor, federation.audit).rollback(
        Rollback(run=None, version=3)
    )
    for _ in range(30):
        federation.turns(federation.state != "finished")
    assert [trial.winner for trial in trials_of(federation)] == [0]
    assert watched['growth_events_total{kind="trial_begun"}'] == 2
    assert watched['growth_events_total{kind="control_kept"}'] == 1
    assert watched['growth_events_total{kind="dendrite_kept"}'] == 0
    assert watched["rollbacks_total"] == 1
    assert watched['model_version{slot="newest"}'] == federation.round


def test_a_version_that_was_voted_down_is_a_rollback_and_no_round(tmp_path: Path) -> None:
    federation = federation_of(tmp_path / "a", {1})
    watched = Watched(federation, tmp_path)
    federation.turns(3)
    assert watched['rounds_total{outcome="voted_down"}'] == watched["rollbacks_total"] == 1
    assert watched['rounds_total{outcome="committed"}'] == 2


def test_failed_rounds_are_counted_beyond_those_that_are_kept(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    watched = Watched(federation, tmp_path)
    with federation.registry.transaction() as db:
        db.executemany("INSERT INTO failed_rounds VALUES ('sim', 1, 0.0, '{}')", [()] * 1000)
    for _ in range(3):
        federation.registry.note_failed_round("sim", 1, {})
    assert federation.registry.failed_rounds("sim") == 1000
    assert watched['rounds_total{outcome="failed"}'] == 1003


def test_when_a_site_was_heard_of_is_told_too_coarsely_to_show_its_rounds(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    enrol(federation.registry, NAMES)
    watched, name = Watched(federation, tmp_path), 'site_last_seen_timestamp_seconds{site="bank-a"}'
    told = []
    for at in (3000.0, 3001.5, 3299.9, 3300.0):
        federation.registry.note_seen({"bank-a": at})
        told.append(watched[name])
    assert told == [3000, 3000, 3000, 3300]


def test_what_cannot_be_read_is_left_out_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(Federation(tmp_path / "a", plan_of(NAMES)), tmp_path)
    assert watched['rounds_total{outcome="committed"}'] == 0

    def full(*_: object) -> None:
        raise NexusError("the disk is full")

    monkeypatch.setattr(watched.federation.registry, "rows", full)
    assert watched['rounds_total{outcome="committed"}'] is None
    assert watched['storage_free_bytes{volume="state"}'] is not None
    monkeypatch.undo()
    assert watched['rounds_total{outcome="committed"}'] == 0


def test_who_is_lost_or_refuses_is_counted_and_not_named(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    enrol(federation.registry, NAMES)
    watched = Watched(federation, tmp_path)
    before = series(watched.text)
    federation.grid.slow.add("bank-a")
    federation.turns(1)
    assert watched['dropouts_total{phase="training"}'] == 1
    federation.grid.slow.clear()
    federation.conductor.gathering.pauses.forget_all()
    federation.sites["bank-b"].restart()
    federation.turns(1)
    assert watched['dropouts_total{phase="training"}'] == 2
    assert watched['refusals_total{code="wrong-context"}'] == 1, "as a process that has just started says"
    assert watched['update_bytes_total{direction="received"}'] == watched_bytes(federation)
    named = {name for name in series(watched.text).keys() - before.keys() if "bank" in name or "hospital" in name}
    assert not named, "no site is named that was not before anything happened"


@pytest.mark.parametrize("trip", ["train", "round"])
def test_a_phase_is_measured_without_the_pauses_between_failed_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trip: str
) -> None:
    federation = staged(tmp_path / "a", 5)
    watched, now = Watched(federation, tmp_path), [1000.0]
    clock = SimpleNamespace(time=lambda: now[0], monotonic=time.monotonic)
    monkeypatch.setattr(phases, "time", clock)
    federation.conductor.phases.pause = lambda seconds: now.append(now.pop() + seconds)  # type: ignore[method-assign]
    federation.grid.away = lambda at: ["bank-a", "bank-c"] if at == trip else []
    federation.turns(3)
    federation.grid.away = lambda _: []
    federation.turns(1)
    assert now[0] > 1005, "there were pauses"
    phase = {"train": "training", "round": "adding"}[trip]
    assert watched[f'round_phase_duration_seconds_count{{phase="{phase}"}}'] == 4
    assert watched[f'round_phase_duration_seconds_sum{{phase="{phase}"}}'] == 0


def test_a_fault_ends_a_phase_before_the_pause_that_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    watched, now = Watched(federation, tmp_path), [1000.0]
    monkeypatch.setattr(phases, "time", SimpleNamespace(time=lambda: now[0], monotonic=time.monotonic))
    federation.turns(1)
    aside = federation.audit.path.rename(tmp_path / "aside")
    federation.audit.path.mkdir()
    with pytest.raises(NexusError, match="audit log"):
        federation.turns(1)
    federation.audit.path.rmdir()
    aside.rename(federation.audit.path)
    now[0] += 100
    federation.turns(1)
    assert watched['round_phase_duration_seconds_count{phase="training"}'] == 3
    assert watched['round_phase_duration_seconds_sum{phase="training"}'] == 0


@pytest.mark.parametrize(("start", "enough"), [("every-site", 4), ("quorum", 3)])
def test_a_plan_waits_until_its_sites_have_approved_it(tmp_path: Path, start: str, enough: int) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    watched, registry = Watched(federation, tmp_path), federation.registry
    told = ("plan_waiting_since_timestamp_seconds", "plan_approvals_missing")
    assert [watched[name] for name in told] == [None, None], "the plan of a run waits for nobody"
    plan = plan_of(NAMES, name="next", start=start)
    registry.propose(plan)
    registry.propose(plan_of(NAMES, name="later"))
    (proposed, _) = (one.at for one in registry.proposals())
    for count, site in enumerate(NAMES[:enough]):
        assert [watched[name] for name in told] == [proposed, 4 - count]
        registry.note_standing(plan, site, wire.Standing(wire.APPROVED, "", b""))
    registry.forget_proposal("later")
    assert [watched[name] for name in told] == [None, None]


def test_a_plan_whose_end_has_passed_waits_for_nobody(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    watched, today = Watched(federation, tmp_path), dt.datetime.now(dt.UTC).date()
    for days, waits in ((-1, None), (1, 4)):
        federation.registry.propose(plan_of(NAMES, name="next", end_date=str(today + dt.timedelta(days=days))))
        assert watched["plan_approvals_missing"] == waits


def test_a_turn_that_meets_a_fault_leaves_no_round_in_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    watched, now = Watched(federation, tmp_path), [1000.0]
    monkeypatch.setattr(phases, "time", SimpleNamespace(time=lambda: now[0], monotonic=time.monotonic))
    federation.turns(1)
    assert watched["round_in_progress"] == 1, "the phase stands for an instant"
    with monkeypatch.context() as full:
        full.setattr(next_version, "LEAST_FREE_BYTES", 1 << 62)
        for _ in range(2):
            now[0] += 5
            with pytest.raises(NexusError, match="free"):
                federation.turns(1)
    assert watched["round_in_progress"] == 0
    assert watched['phase_since_timestamp_seconds{phase="faulting"}'] == 1005, "since the first of them"
    assert watched['phase_since_timestamp_seconds{phase="adding"}'] is None
    assert watched["faulting"] == 0
    federation.conductor.problem = "the disk is full"  # as the server's thread keeps it
    assert watched["faulting"] == 1
    federation.turns(1)
    assert watched['phase_since_timestamp_seconds{phase="faulting"}'] is None


def watched_bytes(federation: Federation) -> Any:
    """At least the masked vectors that came in; the rest of the messages is small."""
    vectors = federation.grid.bytes_up.total()
    return pytest.approx(vectors, rel=0.2)


def series(text: str) -> dict[str, str]:
    return dict(SERIES.findall(text))


def told_of(folder: Path, moves: tuple[float, ...]) -> dict[str, float]:
    """What can be told of three rounds in which each site's figures and training are moved by so much."""
    federation = Federation(folder, plan_of(NAMES, rounds=3))
    enrol(federation.registry, NAMES)
    for site, move in zip(federation.sites.values(), moves, strict=True):
        figures = {"loss": 1 + 0.5 * move, "score": 0.5 + 0.3 * move, "questions": 100 + 90 * move}
        site.figures, site.target = figures | {"vote": 1.0}, site.target + np.float32(0.01 * move)
    watched = Watched(federation, folder)
    federation.turns(5)
    passing = re.compile("_seconds|storage|expiry")  # times and the disk, which are not the sites'
    return {name: round(float(value), 3) for name, value in series(watched.text).items() if not passing.search(name)}


def test_sites_that_differ_cannot_be_told_apart_where_their_sums_do_not(tmp_path: Path) -> None:
    even, uneven = told_of(tmp_path / "a", (0, 0, 0, 0)), told_of(tmp_path / "b", (1, -1, 0.5, -0.5))
    assert len(even) > 80
    assert even == uneven
    assert even != told_of(tmp_path / "c", (1, 0, 0, 0)), "the control: another sum is seen"


@pytest.mark.parametrize("having", [2, 3])
def test_a_figure_of_fewer_than_min_cohort_sites_is_not_there(tmp_path: Path, having: int) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES, min_cohort=3))
    for site in list(federation.sites.values())[having:]:
        site.figures = {"loss": 1.0}
    watched = Watched(federation, tmp_path)
    federation.turns(3)
    assert watched['model_loss{slot="judged"}'] == pytest.approx(1.0, abs=1e-3)
    assert (watched['model_quality_ratio{slot="judged",metric="score"}'] is None) == (having < 3)


def test_before_any_run_nothing_is_told_of_models_and_never_0(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    with federation.registry.transaction() as db:
        db.execute("DELETE FROM versions")
        db.execute("DELETE FROM runs")
    text = Watched(federation, tmp_path).text
    absent = ("model_version", "model_quality", "model_loss", "participants", "last_commit", "last_seen")
    assert not [line for line in text.splitlines() if not line.startswith("#") and any(one in line for one in absent)]


def test_without_differential_privacy_there_is_no_epsilon(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    watched = Watched(federation, tmp_path)
    federation.turns(2)
    names = {name.partition("{")[0] for name in series(watched.text)}
    assert not {name for name in names if "epsilon" in name or "privacy" in name}


def test_fifty_sites_make_fewer_than_500_series(tmp_path: Path) -> None:
    names = tuple(f"site-{i:02}" for i in range(50))
    federation = Federation(tmp_path / "a", plan_of(names, rounds=2))
    enrol(federation.registry, names)
    federation.registry.note_seen(dict.fromkeys(names, 1.0))
    watched = Watched(federation, tmp_path)
    federation.turns(4)
    for route in (*FLEET_PATHS, "other"):
        for code in (200, 403, 404, 409, 500):
            watched.metrics.requests.labels(route, code)
    found = SERIES.findall(watched.text)
    assert len(found) == len(dict(found)), "each once"
    assert 100 < len(found) < 500


def test_refusals_of_the_enrolment_are_counted_too(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "a", plan_of(NAMES))
    watched = Watched(federation, tmp_path)
    ports = {"address": "127.0.0.1:1", "listen": "127.0.0.1:1", "enrol_address": "[::1]:2", "enrol_listen": "[::1]:2"}
    settings = ServerSettingsFile(name="c", **ports)
    enrolment = Enrolment(watched.authority, federation.registry, settings, federation.audit, watched.metrics)
    unknown = EnrolRequest(site="bank-a", secret=bytes(16), csr=b"", identity=bytes(32), signature=bytes(64))
    assert enrolment.enrol(unknown).refused == "invite-unknown"
    assert watched['refusals_total{code="invite-unknown"}'] == 1


def test_requests_at_the_main_port_are_counted_by_route_whatever_path_is_asked_for(tmp_path: Path) -> None:
    metrics = Metrics("c")

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404})
        await send({"type": "http.response.body"})

    async def sent(message: Any) -> None:
        pass

    for path in ("/secret", "/v1/fleet/pull-messages", "/v1/fleet/other", "/metrics"):
        asyncio.run(Counted(answers, metrics.requests)({"type": "http", "path": path}, None, sent))
    found = re.findall(
        r'http_requests_total\{code="404",route="(\S+)"\} (\S+)', generate_latest(metrics.registry).decode()
    )
    assert Counter(dict(found)) == {"other": "3.0", "/v1/fleet/pull-messages": "1.0"}
