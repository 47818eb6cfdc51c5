"""Plans over simulated sites: who must have said yes, whose word is taken, and where a following plan begins."""

from pathlib import Path

import numpy as np
import pytest
from nexus_common import wire
from nexus_common.audit import AuditLog, read
from nexus_common.errors import NexusError
from nexus_common.plan import Plan
from nexus_common.versions import StoredAdapter
from nexus_server.admin_api import Rollback, Withdrawal
from nexus_server.admin_models import ModelAdministration
from nexus_server.conductor import Conductor
from nexus_server.rebuild import adopt
from nexus_server.records import FINISHED, RUNNING, STOPPED
from nexus_server.registry import Registry

from tests.federation.sim import SimGrid, SimSite
from tests.plans import identity_of, make_plan

NAMES = ("bank-a", "bank-b", "hospital-a", "hospital-b")


def plan_of(name: str, names: tuple[str, ...] = NAMES, **settings: object) -> Plan:
    loose = {
        "rounds": 2,
        "gather_seconds": 0.0,
        "local": {"clip_norm": 1000.0},
        "server": {"optimiser": "fedavg", "step": 1.0},
    }
    return make_plan(names, name=name, **loose | settings)


class Consortium:
    """Simulated sites, each of which has approved one plan, and a conductor."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.sites = {name: SimSite(name, plan) for name in NAMES}
        self.grid, self.registry, self.audit = SimGrid(dict(self.sites)), Registry(folder), AuditLog(folder / "log")
        identities = {name: site.identity for name, site in self.sites.items()}
        self.conductor = Conductor(self.registry, self.grid.exchange(self.audit), lambda: identities, self.audit)
        self.conductor.phases.pause = lambda seconds: None  # type: ignore[method-assign]
        self.models = ModelAdministration(self.registry, self.conductor, self.audit)

    def says(self, standing: str, *names: str, plan: Plan | None = None) -> None:
        """What people at these sites say; a new session, as a changed policy begins one."""
        for name in names or NAMES:
            self.sites[name].standing, self.sites[name].plan = standing, plan or self.sites[name].plan
            self.conductor.site_left(name)
            self.conductor.approvals._asked_at.clear()

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.conductor.approvals._asked_at.clear()
            self.conductor.turn()

    def state(self, name: str) -> tuple[str, int] | None:
        run = self.registry.run(name)
        return (run.state, run.done) if run else None


@pytest.fixture
def first() -> Plan:
    return plan_of("first")


@pytest.fixture
def consortium(tmp_path: Path, first: Plan) -> Consortium:
    return Consortium(tmp_path, first)


def test_a_proposed_plan_is_heard_of_and_begins_nothing(consortium: Consortium, first: Plan) -> None:
    consortium.registry.propose(first)
    consortium.turns(3)
    assert consortium.state("first") is None
    assert consortium.conductor.approvals.approved(first) == set(NAMES)


def test_a_wanted_plan_begins_with_the_last_sites_approval(consortium: Consortium, first: Plan) -> None:
    consortium.says(wire.PENDING, "bank-b")
    consortium.registry.propose(first, wanted=True)
    consortium.turns(3)
    assert consortium.state("first") is None
    assert consortium.conductor.approvals.lacking(first) == ("bank-b",)
    consortium.says(wire.APPROVED, "bank-b")
    consortium.turns(5)
    assert consortium.state("first") == (FINISHED, 2)


def test_with_a_quorum_one_may_be_late_and_two_may_not(tmp_path: Path) -> None:
    plan = plan_of("first", start="quorum")
    consortium = Consortium(tmp_path, plan)
    consortium.says(wire.PENDING, "bank-a", "bank-b")
    consortium.registry.propose(plan, wanted=True)
    consortium.turns(2)
    assert consortium.conductor.approvals.lacking(plan) == ("bank-a", "bank-b")
    consortium.says(wire.APPROVED, "bank-a")
    consortium.turns(2)
    assert consortium.state("first") == (RUNNING, 1)
    consortium.says(wire.APPROVED, "bank-b")
    consortium.turns(1)
    assert consortium.registry.versions("first")[-1].cohort == NAMES


def test_a_site_that_withdraws_is_left_out_of_the_next_round(consortium: Consortium, first: Plan) -> None:
    consortium.registry.propose(first, wanted=True)
    consortium.turns(2)
    consortium.says(wire.WITHDRAWN, "bank-a")
    consortium.turns(1)
    assert [v.cohort for v in consortium.registry.versions("first")[1:]] == [NAMES, NAMES[1:]]


def test_a_notice_that_the_site_did_not_sign_is_not_taken(consortium: Consortium, first: Plan) -> None:
    forged = SimSite("bank-b", first, identity_of("somebody"))
    consortium.grid.handle[consortium.grid.nodes["bank-b"]] = forged
    consortium.registry.propose(first, wanted=True)
    consortium.turns(3)
    assert consortium.conductor.approvals.lacking(first) == ("bank-b",)
    assert consortium.state("first") is None


def test_a_word_that_changed_while_others_were_asked_is_asked_for_again(consortium: Consortium, first: Plan) -> None:
    approvals, real = consortium.conductor.approvals, consortium.sites["bank-a"]

    def turned(message: wire.Message) -> wire.Message:
        """Answers "pending", and in that instant its people approve and its session is renewed."""
        real.standing = wire.PENDING
        answer = real(message)
        real.standing = wire.APPROVED
        consortium.grid.handle[consortium.grid.nodes["bank-a"]] = real
        consortium.conductor.site_left("bank-a")
        return answer

    consortium.grid.handle[consortium.grid.nodes["bank-a"]] = turned
    consortium.registry.propose(first, wanted=True)
    consortium.turns(1)
    assert approvals.lacking(first) == ("bank-a",)
    consortium.turns(1)
    assert approvals.lacking(first) == ()


def test_a_plan_that_cannot_begin_is_said_and_stops_nobody_else(consortium: Consortium, first: Plan) -> None:
    consortium.registry.propose(first, wanted=True)
    consortium.turns(5)
    for number, origin in enumerate(({"version": 99}, {"version": 1, "vector": "0" * 64}, {"version": 1})):
        follows = plan_of(f"next-{number}", origin={"plan": first.hash.hex()} | origin)
        if number == 2:
            consortium.models.withdraw(Withdrawal(run=None, first=1, last=2))
        consortium.registry.propose(follows, wanted=True)
        consortium.says(wire.APPROVED, plan=follows)
        consortium.turns(2)
        assert f"plan next-{number} cannot begin" in str(consortium.conductor.approvals.problem)
        assert consortium.state(f"next-{number}") is None
    good = plan_of("good", origin={"plan": first.hash.hex()})
    consortium.registry.propose(good, wanted=True)
    consortium.says(wire.APPROVED, plan=good)
    consortium.turns(2)
    assert (consortium.state("good"), consortium.conductor.approvals.problem) == ((RUNNING, 1), None)


def test_all_that_other_runs_made_of_withdrawn_versions_goes_too_and_training_ends(
    consortium: Consortium, first: Plan
) -> None:
    consortium.registry.propose(first, wanted=True)
    consortium.turns(5)
    for name, before in (("second", first), ("third", plan_of("second", rounds=9, origin={"plan": first.hash.hex()}))):
        follows = plan_of(name, rounds=9, origin={"plan": before.hash.hex()})
        consortium.registry.propose(follows, wanted=True)
        consortium.says(wire.APPROVED, plan=follows)
        consortium.turns(4)
    trained = sum(site.trained for site in consortium.sites.values())
    consortium.models.withdraw(Withdrawal(run="first", first=1, last=2))
    assert [consortium.registry.in_use(name) for name in ("first", "second", "third")] == [0, None, None]
    consortium.turns(4)
    assert consortium.state("third") == (STOPPED, 1)
    assert sum(site.trained for site in consortium.sites.values()) == trained
    assert all(site.received[-1] == 0 for site in consortium.sites.values()), "the base model's own output"


def test_a_withdrawn_midpoint_is_still_no_round(tmp_path: Path) -> None:
    plan = plan_of("first", rounds=9)
    consortium = Consortium(tmp_path, plan)
    consortium.registry.propose(plan, wanted=True)
    consortium.turns(4)
    consortium.models.rollback(Rollback(run=None, version=1))
    consortium.models.withdraw(Withdrawal(run=None, first=4, last=4))
    consortium.turns(2)
    assert consortium.state("first") == (STOPPED, 3)


def test_each_new_word_of_a_site_is_logged_once(consortium: Consortium, first: Plan) -> None:
    consortium.registry.propose(first)
    consortium.turns(2)
    consortium.says(wire.APPROVED)
    consortium.turns(2)
    consortium.says(wire.WITHDRAWN, "bank-a")
    consortium.turns(2)
    told = [(line["site"], line["state"]) for line in read(consortium.audit.path) if line["event"] == "standing"]
    assert told == [*((name, "approved") for name in NAMES), ("bank-a", "withdrawn")]


def test_a_plan_that_follows_the_active_run_ends_it_and_begins_at_its_newest_version(
    consortium: Consortium, first: Plan
) -> None:
    consortium.registry.propose(first, wanted=True)
    consortium.turns(2)
    second = plan_of("second", origin={"plan": first.hash.hex()})
    consortium.registry.propose(second, wanted=True)
    consortium.says(wire.APPROVED, plan=second)
    consortium.turns(3)
    assert consortium.state("first") == (STOPPED, 1)
    assert consortium.state("second") == (RUNNING, 0)
    np.testing.assert_array_equal(consortium.registry.vector("second", 0), consortium.registry.vector("first", 1))


def test_a_plan_that_cannot_follow_the_active_run_any_more_does_not_end_it(consortium: Consortium, first: Plan) -> None:
    """Written before the adapter of that run grew, say."""
    consortium.registry.propose(first, wanted=True)
    consortium.turns(2)
    grown = {"salience": True, "projection_dendrites": 1}
    second = plan_of("second", origin={"plan": first.hash.hex()}, adapter=grown)
    consortium.registry.propose(second, wanted=True)
    consortium.says(wire.APPROVED, plan=second)
    consortium.turns(2)
    assert consortium.state("first") == (RUNNING, 1)
    assert consortium.state("second") is None
    assert "`plan new --from first` writes the right one" in (consortium.conductor.approvals.problem or "")


def test_a_plan_with_a_version_begins_there(consortium: Consortium, first: Plan) -> None:
    consortium.registry.propose(first, wanted=True)
    consortium.turns(5)
    assert consortium.state("first") == (FINISHED, 2)
    second = plan_of("second", NAMES[1:], origin={"plan": first.hash.hex(), "version": 1})
    consortium.registry.propose(second, wanted=True)
    consortium.says(wire.APPROVED, plan=second)
    consortium.turns(1)
    np.testing.assert_array_equal(consortium.registry.vector("second", 0), consortium.registry.vector("first", 1))


def test_after_a_rollback_sites_get_the_earlier_version_and_training_goes_on_from_between(tmp_path: Path) -> None:
    plan = plan_of("first", rounds=4)
    consortium = Consortium(tmp_path, plan)
    consortium.registry.propose(plan, wanted=True)
    consortium.turns(4)
    consortium.models.rollback(Rollback(run=None, version=1))
    one, two = (consortium.registry.vector("first", number) for number in (1, 2))
    np.testing.assert_array_equal(consortium.registry.vector("first", 4), np.mean([one, two], axis=0, dtype="f4"))
    consortium.turns(1)
    assert all(site.received == [1] for site in consortium.sites.values())
    assert consortium.state("first") == (RUNNING, 4)
    assert consortium.registry.in_use("first") == 5


def test_a_rollback_that_cannot_be_is_said(consortium: Consortium, first: Plan) -> None:
    with pytest.raises(NexusError, match="there is no run yet"):
        consortium.models.rollback(Rollback(run=None, version=0))
    consortium.registry.propose(first, wanted=True)
    consortium.turns(5)
    for version in (2, 7):
        with pytest.raises(NexusError, match="these can: 0, 1"):
            consortium.models.rollback(Rollback(run="first", version=version))


def test_withdrawn_versions_stop_their_run_and_sites_get_the_one_before(tmp_path: Path) -> None:
    plan = plan_of("first", rounds=9)
    consortium = Consortium(tmp_path, plan)
    consortium.registry.propose(plan, wanted=True)
    consortium.turns(4)
    with pytest.raises(NexusError, match=r"withdraw 2\.\.3"):
        consortium.models.withdraw(Withdrawal(run=None, first=2, last=2))
    consortium.models.withdraw(Withdrawal(run=None, first=2, last=3))
    consortium.turns(2)
    assert consortium.state("first") == (STOPPED, 3)
    assert all(site.received == [1] for site in consortium.sites.values())


def test_a_lost_server_goes_on_from_a_sites_version(tmp_path: Path, first: Plan) -> None:
    vector = first.adapter.layout.first_vector(bytes(8)) + np.float32(0.5)
    for _ in range(2):  # an interrupted ``init`` may be repeated
        adopt(tmp_path / "state", StoredAdapter(first, 1, vector, first.adapter.layout))
    registry = Registry(tmp_path / "state")
    run = registry.run("first")
    assert run is not None
    assert (run.state, run.done, registry.in_use("first")) == (STOPPED, 1, 1)
    np.testing.assert_array_equal(registry.vector("first", 1), vector)
