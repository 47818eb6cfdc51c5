"""The round logic over an in-process Grid with the wire codec on: the same code as in a deployment."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nexus_common.audit import AuditLog
from nexus_common.plan import Plan
from nexus_common.rpc import Nothing
from nexus_common.versions import trained_from
from nexus_server import admin_models
from nexus_server.conductor import Conductor
from nexus_server.pauses import FIRST_SECONDS
from nexus_server.records import FINISHED, RUNNING, STOPPED, STOPPING
from nexus_server.registry import Registry
from nexus_server.run_report import version_lines

from tests.federation.sim import Liar, SimGrid, SimSite
from tests.plans import make_plan

STEP = 1.0 / (2**17 - 1) * 2  # of the fixed-point codec, summed over rounds that each halve what was before
NAMES = ("hospital-a", "hospital-b", "bank-a", "bank-b")


def plan_of(names: tuple[str, ...], **settings: object) -> Plan:
    fields = {
        "rounds": 5,
        "min_cohort": 3,
        "gather_seconds": 0.0,
        "local": {"clip_norm": 1000.0},
        "server": {"optimiser": "fedavg", "step": 1.0},
        "aggregation": {"slots": 4, "range": 1.0},
    } | settings
    return make_plan(names, **fields)


class Federation:
    """A registry, simulated sites and a conductor, as one test needs them."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.plan, self.folder = plan, folder
        self.sites = {name: SimSite(name, plan) for name in plan.names}
        self.grid = SimGrid(dict(self.sites))
        self.registry = Registry(folder)
        self.audit = AuditLog(folder / "audit.jsonl")
        if self.registry.run(plan.name) is None:
            self.registry.propose(plan)
            self.registry.create_run(plan, plan.adapter.layout.first_vector(plan.adapter.seed_bytes))
        self.conductor = self.new_conductor()

    def new_conductor(self) -> Conductor:
        conductor = Conductor(
            self.registry,
            self.grid.exchange(self.audit),
            lambda: {n: s.identity for n, s in self.sites.items()},
            self.audit,
        )
        conductor.phases.pause = lambda seconds: None  # type: ignore[method-assign]  time is a parameter of tests
        return conductor

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.conductor.turn()

    @property
    def state(self) -> str:
        run = self.registry.run(self.plan.name)
        assert run is not None
        return run.state

    @property
    def round(self) -> int:
        run = self.registry.run(self.plan.name)
        assert run is not None
        return run.round


def test_fifty_sites_do_five_rounds_and_get_the_last_version(tmp_path: Path) -> None:
    names = tuple(f"site-{i:02}" for i in range(50))
    federation = Federation(tmp_path, plan_of(names))
    federation.turns(7)
    assert (federation.state, federation.round) == (FINISHED, 5)
    assert all(site.trained == 5 and site.received == [5] for site in federation.sites.values())
    target = np.mean([site.target for site in federation.sites.values()], axis=0)
    first = trained_from(federation.plan, 0, federation.registry.vector("sim", 0))
    expected = target + (first - target) / 2**5  # each round goes half the way to the mean target
    np.testing.assert_allclose(federation.registry.vector("sim", 5), expected, atol=STEP)
    reported = federation.registry.figures("sim")
    assert reported.keys() == {0, 1, 2, 3, 4, 5}, "a closing round is there for what sites report of the last version"
    assert reported[5][0]["score"].sites == reported[5][0]["vote"].value == 50
    assert reported[5][0]["questions"].value == pytest.approx(100, abs=0.1)


def test_a_silent_site_is_left_out_and_joins_again(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    federation.turns(1)
    federation.grid.silent = {"bank-b"}
    federation.turns(1)
    federation.grid.silent = set()
    federation.turns(1)
    cohorts = [set(v.cohort) for v in federation.registry.versions("sim") if v.number]
    assert cohorts == [set(NAMES), set(NAMES) - {"bank-b"}, set(NAMES)]


def test_a_site_that_misses_its_deadline_does_not_hold_up_the_next_rounds_too(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    federation.grid.slow = {"bank-b"}
    federation.turns(3)
    pauses = federation.conductor.gathering.pauses
    assert [set(v.cohort) for v in federation.registry.versions("sim")[1:]] == [set(NAMES) - {"bank-b"}] * 3
    assert pauses.length("bank-b") == FIRST_SECONDS, "it was asked once, in the first of three rounds"
    pauses.begin("bank-b")
    assert pauses.length("bank-b") == 2 * FIRST_SECONDS
    federation.grid.slow = set()
    federation.conductor.site_left("bank-b")  # a new process of it is asked at once
    federation.turns(1)
    assert set(federation.registry.versions("sim")[-1].cohort) == set(NAMES)


def test_rounds_that_come_to_nothing_end_no_run_however_many_there_are(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    federation.grid.slow = set(NAMES)
    for _ in range(30):
        federation.turns(1)
        federation.conductor.gathering.pauses.forget_all()
    assert (federation.state, federation.round, federation.registry.failed_rounds("sim")) == (RUNNING, 0, 30)
    federation.grid.slow = set()
    federation.turns(1)
    assert federation.round == 1


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_version_that_is_not_finite_is_not_made(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES, server={"step": 1e308}))
    federation.turns(2)
    assert federation.registry.failed_rounds("sim") == 2
    assert [v.state for v in federation.registry.versions("sim")] == ["made", "midpoint", "midpoint"], "never again"


def test_below_min_cohort_the_run_waits_and_says_for_whom(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES, min_cohort=4))
    federation.grid.silent = {"bank-a", "bank-b"}
    federation.turns(3)
    phase = federation.conductor.phase
    assert (phase.name, phase.missing, federation.round) == ("waiting", ("bank-a", "bank-b"), 0)
    since = phase.since
    federation.turns(2)
    assert federation.conductor.phase.since == since
    federation.grid.silent = set()
    federation.turns(1)
    assert federation.round == 1


def test_a_new_server_process_goes_on_with_the_next_round(tmp_path: Path) -> None:
    plan = plan_of(NAMES, server={"optimiser": "fedadam", "step": 0.01, "momentum": 0.9})
    whole, halves = Federation(tmp_path / "whole", plan), Federation(tmp_path / "halves", plan)
    whole.turns(7)
    halves.turns(2)
    halves.registry.close()
    halves.registry = Registry(tmp_path / "halves")
    halves.conductor = halves.new_conductor()
    assert halves.round == 2
    halves.turns(5)
    assert (whole.state, halves.state) == (FINISHED, FINISHED)
    np.testing.assert_allclose(whole.registry.vector("sim", 5), halves.registry.vector("sim", 5), atol=1e-4)


def test_stop_ends_the_run_after_its_round_and_train_resumes_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    federation.turns(2)
    federation.registry.set_state("sim", STOPPING, expected=RUNNING)
    federation.turns(2)
    assert (federation.state, federation.round) == (STOPPED, 2)
    federation.registry.set_state("sim", RUNNING, expected=STOPPED)
    federation.turns(5)
    assert (federation.state, federation.round) == (FINISHED, 5)


@pytest.mark.parametrize(
    "spoil", ["short", "long", "unsigned", "other-name", "other-slot", "other-model", "readiness", "refused"]
)
def test_an_input_that_is_not_exactly_right_is_left_out(tmp_path: Path, spoil: str) -> None:
    plan = plan_of(NAMES)
    federation, honest = Federation(tmp_path / "a", plan), Federation(tmp_path / "b", plan)
    federation.sites["bank-b"] = Liar("bank-b", plan, spoil)
    federation.grid.handle[federation.grid.nodes["bank-b"]] = federation.sites["bank-b"]
    honest.grid.silent = {"bank-b"}
    federation.turns(1)
    honest.turns(1)
    assert federation.registry.versions("sim")[-1].cohort == ("bank-a", "hospital-a", "hospital-b")
    np.testing.assert_allclose(federation.registry.vector("sim", 1), honest.registry.vector("sim", 1), atol=STEP)


def test_a_round_with_too_few_usable_updates_makes_no_version(tmp_path: Path) -> None:
    plan = plan_of(NAMES[:3])
    federation = Federation(tmp_path, plan)
    federation.grid.handle[federation.grid.nodes["bank-a"]] = Liar("bank-a", plan, "unsigned")
    federation.turns(2)
    assert (federation.round, federation.registry.failed_rounds("sim")) == (0, 1)
    assert federation.conductor.phase.name == "waiting", "a liar is left alone for a time"


def test_a_fault_in_a_versions_file_is_named(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    federation.turns(1)
    path = tmp_path / "versions" / f"{federation.registry.versions('sim')[-1].hash}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(Exception, match="was changed"):
        federation.registry.vector("sim", 1)


def test_versions_can_be_listed_in_the_instant_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    federation.turns(1)

    def while_a_round_is_committed(*given: Any) -> Any:
        found = version_lines(*given)
        federation.turns(1)
        return found

    monkeypatch.setattr(admin_models, "version_lines", while_a_round_is_committed)
    models = admin_models.ModelAdministration(federation.registry, federation.conductor, federation.audit)
    assert [one.number for one in models.models(Nothing()).versions] == [0, 1]
    assert [one.number for one in models.models(Nothing()).versions] == [0, 1, 2]
