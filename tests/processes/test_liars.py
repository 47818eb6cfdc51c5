"""Sites that answer wrongly are left out by name, a server that does is refused; over real TLS, and the run goes on."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nexus_common import audit, certs, wire
from nexus_common.plan import Plan
from nexus_common.versions import trained_from
from safetensors.numpy import load_file

from tests.federation.sim import Liar, SimSite
from tests.processes.harness import Federation, until

pytestmark = pytest.mark.processes
SITES = ("bank-a", "bank-b", "hospital-a", "hospital-b")
HONEST = SITES[:3]
STEP = 2 / (2**17 - 1)  # of the fixed-point codec at a range of 1, twice
RECIPE: dict[str, Any] = {
    "rounds": 1,
    "gather_seconds": 3.0,
    "round_deadline_seconds": 5.0,
    "local": {"clip_norm": 1000.0},
    "server": {"optimiser": "fedavg", "step": 1.0},
    "aggregation": {"slots": 4, "range": 1.0},
}


def plan_of(federation: Federation, name: str) -> Plan:
    return federation.plan(name, SITES, **RECIPE)


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found(*SITES)
        yield made


def identity(federation: Federation, site: str):
    return certs.load_identity(federation.keys(site) / "identity.key")


def run_with(federation: Federation, plan: Plan, last: SimSite) -> list[str]:
    """One run of three honest sites and ``last``; the cohort of its round."""
    sites = [SimSite(site, plan, identity(federation, site)) for site in HONEST]
    for site in (*sites, last):
        federation.link(site.name, site)
    try:
        federation.train(plan, approved_by=())  # simulated sites approve by themselves
        until("the run ends", lambda: federation.server_status()["state"] == "finished", 60)
    finally:
        for site in SITES:
            federation.unlink(site)
    found = [v for v in federation.ask("nexus-server", "models")["versions"] if v["run"] == plan.name]
    stored = load_file(federation.home / "server" / "state" / "versions" / f"{found[-1]['hash']}.safetensors")["vector"]
    first = trained_from(plan, 0, plan.adapter.layout.first_vector(plan.adapter.seed_bytes))
    target = np.mean([site.target for site in sites], axis=0)
    if found[-1]["cohort"] == list(HONEST):
        np.testing.assert_allclose(stored, first + (target - first) / 2, atol=STEP)
    return list(found[-1]["cohort"])


@pytest.mark.parametrize("spoil", ["short", "long", "unsigned", "other-name", "other-slot", "other-model"])
def test_an_input_that_is_not_exactly_right_is_left_out(federation: Federation, spoil: str) -> None:
    plan = plan_of(federation, f"run-{spoil}")
    liar = Liar("hospital-b", plan, spoil, identity(federation, "hospital-b"))
    assert run_with(federation, plan, liar) == list(HONEST)
    assert "goes on without hospital-b" in federation.log("server")


def test_a_site_that_trains_too_long_is_left_out_at_the_deadline(federation: Federation, tmp_path: Path) -> None:
    class Slow(SimSite):
        def __call__(self, message: wire.Message) -> wire.Message:
            if isinstance(message, wire.TrainRound):
                until("the others have a version", lambda: federation.server_status()["round"] == 1, 30)
            return super().__call__(message)

    plan = plan_of(federation, "run-slow")
    assert run_with(federation, plan, Slow("hospital-b", plan, identity(federation, "hospital-b"))) == list(HONEST)
    assert "hospital-b: the deadline passed" in federation.log("server")


def test_a_site_that_fails_tells_the_server_a_code_and_no_text(federation: Federation) -> None:
    class Broken(SimSite):
        def __call__(self, message: wire.Message) -> wire.Message:
            if isinstance(message, wire.TrainRound):
                raise RuntimeError("patient Doe")
            return super().__call__(message)

    plan = plan_of(federation, "run-broken")
    assert run_with(federation, plan, Broken("hospital-b", plan, identity(federation, "hospital-b"))) == list(HONEST)
    assert "hospital-b: refused: site-failed" in federation.log("server")
    assert "Doe" not in federation.log("server")


@pytest.mark.parametrize("answer", ["garbage", "forged", "fault"])
def test_a_wrong_answer_to_a_plan_is_no_approval_and_costs_nobody_else_anything(
    federation: Federation, answer: str
) -> None:
    class Wrong(SimSite):
        def __call__(self, message: wire.Message) -> wire.Message:
            if not isinstance(message, wire.Propose):
                return super().__call__(message)
            if answer == "fault":
                raise RuntimeError("patient Doe")
            if answer == "garbage":
                return wire.Readiness(wire.READY)
            return wire.Standing(wire.APPROVED, "", bytes(64))

    plan = federation.plan(f"plan-{answer}", SITES, **RECIPE, start="quorum")
    assert run_with(federation, plan, Wrong("hospital-b", plan, identity(federation, "hospital-b"))) == list(HONEST)
    assert f"hospital-b did not say where it stands on plan {plan.name}" in federation.log("server")


def test_all_four_are_in_the_cohort_where_all_are_honest(federation: Federation) -> None:
    plan = plan_of(federation, "run-honest")
    assert run_with(federation, plan, SimSite("hospital-b", plan, identity(federation, "hospital-b"))) == list(SITES)


def test_each_lie_of_a_server_is_refused_with_its_code_and_changes_nothing(federation: Federation) -> None:
    federation.end("server")
    federation.start("server", program=[sys.executable, str(Path(__file__).with_name("lying_server.py"))])
    plan = plan_of(federation, "lied-to")
    last = SimSite("hospital-b", plan, identity(federation, "hospital-b"))
    assert run_with(federation, plan, last) == list(SITES)
    told = [line.split() for line in federation.own_log("server").splitlines() if line.startswith("lie ")]
    heard = {(kind, code) for _, kind, _, code, _, _ in told}
    assert len(heard) == 13, told
    assert [code.rstrip(",") for *_, code, _, _ in told] == [answer for *_, answer in told]
    log = federation.keys("bank-a").parent / "audit.jsonl"
    codes = {line.get("code") for line in audit.read(log)}
    assert {code.rstrip(",") for _, code in heard} <= codes, "the site's log names every lie"
