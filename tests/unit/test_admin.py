"""What the coordinator's commands do at the server: propose, train, stop, and one screen that says where it stands."""

from pathlib import Path
from typing import Any

import pytest
from nexus_common import audit, wire
from nexus_common.errors import NexusError, Refusal
from nexus_common.plan import Plan
from nexus_common.rpc import Nothing
from nexus_common.secagg.messages import input_size
from nexus_server import admin_api as api
from nexus_server.admin import Administration
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.enrolment import Enrolment
from nexus_server.planning import plan_toml
from nexus_server.records import FINISHED, RUNNING, STOPPED, STOPPING
from nexus_server.settings import ServerSettingsFile

from tests.federation.test_approvals import NAMES, Consortium, plan_of
from tests.plans import enrol

FIRST = plan_of("first", rounds=4)
SECOND = plan_of("second", origin={"plan": FIRST.hash.hex()})


class Coordinator:
    """A server with four enrolled sites that approve what they are told to, and its administration."""

    def __init__(self, folder: Path) -> None:
        self.consortium = Consortium(folder, FIRST)
        self.registry = self.consortium.registry
        self.turns, self.says = self.consortium.turns, self.consortium.says
        enrol(self.registry, NAMES)
        conductor, log = self.consortium.conductor, self.consortium.audit
        files, main = CertificateFiles(folder / "keys"), "127.0.0.1:1"
        settings = ServerSettingsFile(
            name="demo", address=main, listen=main, enrol_address="127.0.0.1:2", enrol_listen="127.0.0.1:2"
        )
        self.enrolment = Enrolment(CertificateAuthority.create(files, "demo"), self.registry, settings, log)
        self.admin = Administration(self.registry, self.enrolment, conductor, conductor.exchange, log, {}, lambda: None)

    def ask(self, method: str, **request: Any) -> Any:
        """A call as it comes through the socket."""
        called = self.admin.methods()[method]
        return called.run(called.request(**request))

    def propose(self, plan: Plan) -> api.PlanStanding:
        found: api.PlanStanding = self.ask("propose", text=plan_toml(plan), where=f"{plan.name}.toml")
        return found

    def train(self, plan: Plan | str) -> api.Status:
        text = {"text": None, "where": plan} if isinstance(plan, str) else {"text": plan_toml(plan), "where": "a file"}
        found: api.Status = self.ask("train", **text)
        return found

    def refused(self, method: str, **request: Any) -> str:
        with pytest.raises(NexusError) as problem:
            self.ask(method, **request)
        return str(problem.value)


@pytest.fixture
def server(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path)


def test_a_proposal_is_known_by_name_and_logged_once(server: Coordinator) -> None:
    for _ in range(2):
        assert server.propose(FIRST).became == "proposed"
    logged = [line for line in audit.read(server.consortium.audit.path) if line["event"] == "plan proposed"]
    assert [(line["name"], line["plan"], line["sites"]) for line in logged] == [
        ("first", FIRST.hash.hex(), list(NAMES)),
    ]  # fmt: skip


def test_a_changed_proposal_takes_the_place_of_the_one_before_with_all_that_was_said_to_it(server: Coordinator) -> None:
    server.propose(FIRST)
    server.turns(1)
    changed = plan_of("first", rounds=5)
    assert {site.state for site in server.propose(changed).sites} == {"unasked"}
    assert [one.hash for one in server.ask("plans").plans] == [changed.hash.hex()]


def test_plan_status_says_what_became_of_each_plan_and_where_each_site_stands(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(2)
    server.says(wire.PENDING, "bank-b", plan=SECOND)
    server.says(wire.APPROVED, "bank-a", plan=SECOND)
    server.propose(SECOND)
    server.turns(1)
    newest, oldest = server.ask("plans").plans
    assert (newest.plan, newest.became, oldest.plan, oldest.became) == ("second", "proposed", "first", RUNNING)
    assert {one.site: one.state for one in newest.sites} == dict.fromkeys(NAMES, "pending") | {"bank-a": "approved"}
    assert server.train("second").wanted == "second"
    assert server.ask("plans").plans[0].became == "wanted"


def test_a_wanted_plan_says_whose_approval_is_missing_until_it_runs(server: Coordinator) -> None:
    server.says(wire.PENDING, "bank-b")
    server.train(FIRST)
    server.turns(2)
    waiting = server.ask("status")
    assert (waiting.run, waiting.wanted, waiting.approvals_missing) == (None, "first", ("bank-b",))
    server.says(wire.APPROVED, "bank-b")
    server.turns(2)
    running = server.ask("status")
    assert (running.run, running.state, running.wanted) == ("first", RUNNING, None)


def test_the_status_counts_rounds_cohort_bytes_and_the_version_in_use(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(3)
    found = server.ask("status")
    assert (found.round, found.rounds, found.in_use, found.failed_rounds) == (2, 4, 2, 0)
    assert (found.cohort, found.connected, len(found.round_seconds)) == (NAMES, NAMES, 2)
    assert found.bytes_up_per_site_round == input_size(FIRST.protocol_plans[0])
    server.ask("rollback", run=None, version=1)
    found = server.ask("status")
    assert (found.round, found.in_use) == (2, 1)


def test_a_second_run_waits_for_the_first_to_end_unless_its_plan_follows(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(2)
    other = plan_of("other")
    assert "run first is in progress (round 1 of 4)" in server.refused("train", text=plan_toml(other), where="x")
    assert server.train(SECOND).wanted == "second"


def test_one_plan_waits_at_a_time(server: Coordinator) -> None:
    server.says(wire.PENDING)
    server.train(FIRST)
    assert server.train(FIRST).wanted == "first"
    said = server.refused("train", text=plan_toml(plan_of("other")), where="x")
    assert "plan first waits for approvals already" in said
    assert "`nexus-server stop first` takes it back" in said


def test_a_plan_whose_first_version_is_withdrawn_meanwhile_does_not_begin_and_says_why(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(3)
    server.says(wire.APPROVED, plan=FIRST)
    second = plan_of("second", origin={"plan": FIRST.hash.hex(), "version": 2})
    assert server.train(second).wanted == "second"
    server.ask("withdraw", run="first", first=2, last=2)
    server.says(wire.APPROVED, plan=second)
    server.turns(3)
    found = server.ask("status")
    assert (found.run, found.wanted) == ("first", None)
    assert (
        "plan second cannot begin: plan second begins at version 2 of run first, which is not in use" in found.problem
    )
    assert "may begin at 0, 1 " in found.problem


def test_why_a_site_does_not_say_where_it_stands_is_shown(server: Coordinator) -> None:
    def broken(message: wire.Message) -> wire.Message:
        raise Refusal("policy-invalid")

    server.consortium.grid.handle[server.consortium.grid.nodes["bank-b"]] = broken
    server.propose(FIRST)
    server.turns(1)
    (plan,) = server.ask("plans").plans
    assert [(one.site, one.state, one.code) for one in plan.sites][:2] == [
        ("bank-a", "approved", ""),
        ("bank-b", "refused", "policy-invalid"),
    ]
    assert server.admin.conductor.approvals.lacking(FIRST) == ("bank-b",)


def test_a_finished_run_says_how_a_plan_continues_it(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(7)
    assert server.ask("status").state == FINISHED
    assert "plan new NAME --from first --rounds N" in server.refused("train", text=None, where="first")


def test_a_stopped_run_goes_on_where_it_stood(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(3)
    assert server.ask("stop", run="first").state == STOPPING
    server.turns(1)
    assert server.ask("status").state == STOPPED
    assert server.train("first").state == RUNNING
    server.turns(1)
    assert server.ask("status").round == 3


def test_a_run_that_is_about_to_stop_can_be_kept_going(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(2)
    server.ask("stop", run="first")
    assert server.train("first").state == RUNNING


def test_a_run_whose_newest_version_is_withdrawn_cannot_go_on(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(3)
    server.ask("withdraw", run="first", first=2, last=2)
    server.turns(1)
    assert "plan new NAME --from first --from-version V" in server.refused("train", text=None, where="first")
    server.ask("rollback", run="first", version=0)
    assert server.train("first").state == RUNNING, "after a rollback the newest version is not a withdrawn one"


def test_a_plan_that_waits_is_taken_back_by_stop(server: Coordinator) -> None:
    server.says(wire.PENDING, "bank-b")
    server.train(FIRST)
    assert server.ask("stop", run="first").wanted is None
    server.says(wire.APPROVED, "bank-b")
    server.turns(3)
    assert server.ask("status").run is None


def test_what_is_not_in_progress_cannot_be_stopped(server: Coordinator) -> None:
    assert "run 'first' is not in progress; none is" in server.refused("stop", run="first")
    server.train(FIRST)
    server.turns(2)
    assert "run 'other' is not in progress; first is" in server.refused("stop", run="other")


def test_a_name_that_is_neither_file_nor_plan_is_told_with_the_plans_there_are(server: Coordinator) -> None:
    assert "frist is neither a file nor a plan of this server; plans: none" in server.refused(
        "train", text=None, where="frist"
    )
    server.propose(FIRST)
    assert "plans: first" in server.refused("train", text=None, where="frist")


def test_a_proposal_that_is_no_plan_is_told_with_its_file(server: Coordinator) -> None:
    assert server.refused("propose", text="name = 3", where="my.toml").startswith("my.toml: ")
    stranger = plan_of("first", ("bank-a", "bank-b", "hospital-c"))
    assert "my.toml: not enrolled: hospital-c" in server.refused("propose", text=plan_toml(stranger), where="my.toml")


def test_the_sites_come_with_where_they_stand_on_the_newest_plan(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(2)
    server.consortium.grid.silent = {"bank-a"}
    server.says(wire.WITHDRAWN, "bank-b")
    server.turns(1)
    found = {one.site: one for one in server.admin.sites(Nothing()).sites}
    assert [found[name].connected for name in NAMES] == [False, True, True, True]
    assert found["bank-b"].standing == "first: withdrawn"
    assert found["hospital-a"].standing == "first: approved"
    assert (found["bank-a"].readiness, found["hospital-a"].readiness) == (None, "ready")


def test_the_models_are_listed_with_their_state(server: Coordinator) -> None:
    server.train(FIRST)
    server.turns(3)
    server.ask("rollback", run=None, version=0)
    listed = [(one.number, one.state) for one in server.ask("models").versions]
    assert listed == [(0, "made"), (1, "rolled back"), (2, "rolled back"), (3, "midpoint")]


def test_the_sites_say_how_long_the_ca_lasts_and_whether_its_key_was_replaced(server: Coordinator) -> None:
    assert (server.ask("sites").ca_days_left, server.ask("sites").ca_overlap) == (3649, False)
    assert server.ask("rotate_ca", distrust=False).ended == []
    assert server.ask("sites").ca_overlap
    server.ask("rotate_ca", distrust=True)
    assert not server.ask("sites").ca_overlap
