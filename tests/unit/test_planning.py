"""Plans made at the server: from the enrolment or from an earlier plan, and what must hold before one is proposed."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common import certs, wire
from nexus_common.errors import NexusError
from nexus_common.plan import Origin, Plan, parse_plan
from nexus_common.versions import vector_hash
from nexus_server.admin_api import NewPlan
from nexus_server.planning import advice, check_proposal, draft, plan_toml
from nexus_server.registry import Registry

from tests.plans import enrol, identity_of, make_plan, member

SITES = ("bank-a", "bank-b", "hospital-a", "hospital-b")
PRINTABLE = st.text(st.characters(categories=["L", "M", "N", "P", "S"]), min_size=1, max_size=60)
FIRST = make_plan(SITES, name="first", rounds=5, adapter={"salience": False})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path)
    enrol(made, SITES)
    made.propose(FIRST)
    made.create_run(FIRST, FIRST.adapter.layout.first_vector(bytes(8)))
    run = made.run("first")
    assert run is not None
    made.commit_round(run, made.vector("first", 0) + np.float32(1), {}, list(FIRST.names), 1.0, 1, [], 0)
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


def test_a_new_plan_ends_in_a_year_unless_another_day_is_said(registry: Registry) -> None:
    year = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=365)
    assert abs(drafted(registry, end_date="").end_date - year).days <= 1
    assert drafted(registry, end_date="2030-06-30").end_date == dt.date(2030, 6, 30)


def test_the_sites_of_a_new_plan_can_be_named_or_left_out(registry: Registry) -> None:
    assert drafted(registry, add=("hospital-a", "bank-b", "bank-a")).names == ("bank-a", "bank-b", "hospital-a")
    assert drafted(registry, without=("bank-b",)).names == ("bank-a", "hospital-a", "hospital-b")


def test_a_recipe_cannot_choose_name_or_sites(registry: Registry) -> None:
    found = drafted(registry, recipe='name = "other"\nsites = []')
    assert (found.name, found.names) == ("second", SITES)


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


def test_a_site_joins_with_a_following_plan_under_the_key_that_it_is_enrolled_with(registry: Registry) -> None:
    enrol(registry, ["clinic"])
    key = certs.raw_identity(identity_of("another"))
    with registry.transaction() as db:
        db.execute("UPDATE sites SET identity = ? WHERE name = 'bank-a'", (key,))
    found = drafted(registry, origin="first", add=("clinic",), without=("bank-b",))
    wanted = [member("bank-a", identity_of("another")), *map(member, ("clinic", "hospital-a", "hospital-b"))]
    assert [one.model_dump() for one in found.sites] == wanted


def test_a_plan_that_follows_a_following_one_names_only_the_last(registry: Registry) -> None:
    second = drafted(registry, origin="first", version=0)
    registry.create_run(second, registry.vector("first", 0))
    assert drafted(registry, name="third", origin="second").origin == Origin(plan=second.hash.hex())


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
        ({"recipe": "adapter = 3", "origin": "first"}, r"adapter: "),
        ({"hours": "night"}, "hours_utc: 'night' is not a span of hours"),
        ({"without": ("bank-a", "bank-b")}, "roster: "),
        ({"end_date": "tomorrow"}, "end_date: "),
    ],
    ids=str,
)
def test_what_cannot_be_a_plan_is_said_with_the_nearest(registry: Registry, request_: Any, said: str) -> None:
    with pytest.raises(NexusError, match=said):
        drafted(registry, **request_)


@given(
    purpose=PRINTABLE,
    controller=PRINTABLE,
    rounds=st.integers(1, 100_000),
    step=st.floats(min_value=1e-300, max_value=1e300),
    version=st.none() | st.integers(0, 9),
    private=st.booleans(),
)
def test_the_file_is_the_plan(
    purpose: str, controller: str, rounds: int, step: float, version: int | None, private: bool
) -> None:
    origin = {"plan": "ab" * 32} | ({} if version is None else {"version": version, "vector": "cd" * 32})
    noise = {"privacy": {"noise": 2.0, "sampling": 0.1, "honest": 1}, "aggregation": {"mod_bits": 32}}
    sites = [member("a") | {"controller": controller}, member("b"), member("c")]
    changed = {"purpose": purpose, "rounds": rounds, "server": {"step": step}, "origin": origin, "sites": sites}
    plan = make_plan("abc", **changed | (noise if private else {}))
    assert parse_plan(plan_toml(plan), "x") == plan


def test_the_file_begins_with_what_people_read_first() -> None:
    text = plan_toml(FIRST)
    order = [text.index(part) for part in ("# A consortium plan", "purpose = ", "end_date = ", "[[sites]]", "[local]")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (make_plan(("bank-a", "hospital-a", "hospital-x")), "not enrolled: hospital-x; did you mean 'hospital-"),
        (make_plan(SITES, end_date="2020-01-01"), "end_date 2020-01-01 has passed"),
        (make_plan(SITES, name="first"), r"exists with other settings \(rounds, adapter\)"),
        (make_plan(SITES, origin={"plan": FIRST.hash.hex()}), r"the plan's \[adapter\] is"),
        (make_plan(SITES, origin={"plan": "0" * 64}), "follows a plan that this server never ran"),
    ],
)
def test_what_cannot_be_proposed_is_said(registry: Registry, plan: Plan, said: str) -> None:
    with pytest.raises(NexusError, match=said):
        check_proposal(registry, plan, "plan.toml")


def test_a_plan_may_begin_only_at_a_version_in_use_with_the_numbers_it_fixes(registry: Registry) -> None:
    def following(**origin: Any) -> Plan:
        return make_plan(SITES, origin={"plan": FIRST.hash.hex(), **origin}, adapter={"salience": False})

    check_proposal(registry, following(version=1), "plan.toml")
    for origin, said in (
        ({"version": 2}, "begins at version 2 of run first, which is not in use; it may begin at 0, 1 "),
        ({"version": 1, "vector": "ab" * 32}, "fixes other numbers than version 1 of run first has"),
    ):
        with pytest.raises(NexusError, match=said):
            check_proposal(registry, following(**origin), "plan.toml")
    registry.withdraw("first", 1, 1)
    with pytest.raises(NexusError, match="which is not in use; it may begin at 0 "):
        check_proposal(registry, following(version=1), "plan.toml")


def test_a_plan_of_enrolled_sites_may_be_proposed_and_proposed_again_once_it_runs(registry: Registry) -> None:
    for plan in (FIRST, drafted(registry), drafted(registry, origin="first", version=1)):
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
    assert "5 of 5 sites, so none can be spared" in "; ".join(advice(make_plan("abcde", min_cohort=5)))
