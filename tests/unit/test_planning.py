"""Plans made at the server: from the enrolment or from an earlier plan, and what must hold before one is proposed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nexus_common import wire
from nexus_common.errors import NexusError
from nexus_common.plan import Plan, parse_plan
from nexus_common.versions import vector_hash
from nexus_server.admin_api import NewPlan
from nexus_server.planning import advice, check_proposal, draft, plan_toml
from nexus_server.records import SiteRow
from nexus_server.registry import Registry

from tests.plans import make_plan

SITES = ("bank-a", "bank-b", "hospital-a", "hospital-b")
FIRST = make_plan(SITES, name="first", rounds=5, adapter={"salience": False})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path)
    for member in make_plan(SITES).sites:
        key = bytes.fromhex(member.key)
        row = SiteRow(member.name, key, b"pem", key, b"", 0.0, 0.0, None, None, member.controller, member.contact)
        made.enrol(row, b"", b"")
    made.propose(FIRST)
    made.create_run(FIRST, FIRST.adapter.layout.first_vector(bytes(8)))
    run = made.run("first")
    assert run is not None
    made.commit_round(run, made.vector("first", 0) + np.float32(1), {}, list(FIRST.names), 1.0, 1)
    return made


def drafted(registry: Registry, **request: Any) -> Plan:
    asked = {"name": "second", "purpose": "tests", "end_date": "2099-12-31"} | request
    return parse_plan(draft(registry, NewPlan(**asked)).text, "second.toml")


def test_a_plan_takes_all_enrolled_sites_with_their_keys_and_people(registry: Registry) -> None:
    found = drafted(registry, rounds=7, min_cohort=4, hours="20:00-06:00", start="quorum")
    assert found.sites == make_plan(SITES).sites
    assert (found.rounds, found.min_cohort, found.hours_utc, found.start) == (7, 4, "20:00-06:00", "quorum")


def test_a_recipe_and_bounds_are_taken(registry: Registry) -> None:
    found = drafted(registry, recipe="rounds = 3\n[local]\nsteps = 9\n", clip_norm=4.5, range=0.05)
    assert (found.rounds, found.local.steps, found.local.clip_norm, found.aggregation.range) == (3, 9, 4.5, 0.05)


def test_what_only_people_know_may_be_blank_in_a_draft_and_not_in_a_plan(registry: Registry) -> None:
    with registry.transaction() as db:
        db.execute("UPDATE sites SET contact = '' WHERE name = 'bank-b'")
    made = draft(registry, NewPlan(name="second"))
    assert made.notes[0] == "fill in: purpose, contact of bank-b"
    with pytest.raises(NexusError, match="controller and contact of bank-b are missing"):
        parse_plan(made.text, "second.toml")


def test_a_following_plan_keeps_all_but_what_is_changed(registry: Registry) -> None:
    found = drafted(registry, origin="first", purpose="", end_date="", without=("bank-b",), rounds=20)
    assert found.names == ("bank-a", "hospital-a", "hospital-b")
    assert found.origin is not None
    assert (found.origin.plan, found.origin.version) == (FIRST.hash.hex(), None)
    before = FIRST.model_dump(exclude={"name", "sites", "rounds", "origin"})
    assert found.model_dump(exclude={"name", "sites", "rounds", "origin"}) == before


def test_a_version_to_begin_at_is_fixed_by_its_numbers(registry: Registry) -> None:
    found = drafted(registry, origin="first", version=1)
    assert found.origin is not None
    assert found.origin.vector == vector_hash(wire.pack(registry.vector("first", 1)))
    with pytest.raises(NexusError, match="has versions 0 to 1, not 2"):
        drafted(registry, origin="first", version=2)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"add": ("hospital-c",), "origin": "first"}, "not enrolled: hospital-c; did you mean 'hospital-"),
        ({"without": ("hospital-c",)}, "not enrolled: hospital-c"),
        ({"origin": "frist"}, "no run 'frist' to follow; did you mean 'first'"),
        ({"recipe": "rounds = "}, "--recipe: not valid TOML"),
        ({"recipe": "[local]\nstep = 1"}, r"local\.step: unknown key; did you mean 'steps'"),
        ({"hours": "night"}, "hours_utc: 'night' is not a span of hours"),
        ({"without": ("bank-a", "bank-b")}, "roster: "),
        ({"end_date": "tomorrow"}, "end_date: "),
    ],
    ids=str,
)
def test_what_cannot_be_a_plan_is_said_with_the_nearest(registry: Registry, request_: Any, said: str) -> None:
    with pytest.raises(NexusError, match=said):
        drafted(registry, **request_)


def test_the_file_is_the_plan() -> None:
    for plan in (
        FIRST,
        make_plan("abc", privacy={"noise": 2.0, "sampling": 0.1, "honest": 1}, aggregation={"mod_bits": 32}),
    ):
        assert parse_plan(plan_toml(plan), "x") == plan


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (make_plan(("bank-a", "hospital-a", "hospital-x")), "not enrolled: hospital-x; did you mean 'hospital-"),
        (make_plan(SITES, end_date="2020-01-01"), "end_date 2020-01-01 has passed"),
        (make_plan(SITES, name="first"), r"exists with other settings \(rounds, adapter\)"),
        (make_plan(SITES, origin={"plan": FIRST.hash.hex()}), r"\[adapter\] differs"),
        (make_plan(SITES, origin={"plan": "0" * 64}), "follows a plan that this server never ran"),
    ],
)
def test_what_cannot_be_proposed_is_said(registry: Registry, plan: Plan, said: str) -> None:
    with pytest.raises(NexusError, match=said):
        check_proposal(registry, plan, "plan.toml")


def test_a_key_that_is_not_the_enrolled_one_is_not_proposed(registry: Registry) -> None:
    fields = make_plan(SITES).model_dump(mode="json")
    fields["sites"][0]["key"] = "00" * 32
    with pytest.raises(NexusError, match="the key of bank-a is not the one enrolled"):
        check_proposal(registry, Plan.model_validate(fields, strict=False), "plan.toml")


def test_three_sites_are_told_that_nobody_can_be_spared_and_five_are_not() -> None:
    three, five = "; ".join(advice(make_plan("abc"))), "; ".join(advice(make_plan("abcde")))
    assert "3 of 3 sites, so none can be spared" in three
    assert "five sites or more are advised" in three
    assert "4 of 5 sites, so 1 can be spared" in five
    assert "advised" not in five
    assert "epsilon: none (records are not protected)" in three
