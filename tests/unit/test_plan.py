"""The run's description: defaults, bounds, one identity for the same settings, and hostile bytes from the wire."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.config import validate
from nexus_common.errors import NexusError, Refusal
from nexus_common.layout import Layout
from nexus_common.plan import MAX_PLAN_BYTES, Plan, ServerSettings, parse_plan, plan_from_wire
from nexus_common.recipe import AdapterSettings, LocalSettings, read_recipe

from tests.plans import make_plan, member, plan_fields

FIELDS = plan_fields("abc", name="demo")
HEAD = 'name = "demo"\npurpose = "tests"\nend_date = "2099-12-31"\n'
ROSTER = "".join(
    "[[sites]]\n" + "".join(f'{key} = "{value}"\n' for key, value in member(name).items()) for name in "abc"
)
PLANS = st.builds(
    Plan,
    name=st.just("demo"),
    purpose=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=300),
    end_date=st.dates(),
    sites=st.just(make_plan("abc").sites),
    rounds=st.integers(1, 100_000),
    min_cohort=st.just(3),
    start=st.sampled_from(["every-site", "quorum"]),
    round_deadline_seconds=st.floats(1, 86_400),
    adapter=st.builds(AdapterSettings, seed=st.integers(0, 2**63 - 1), salience=st.booleans()),
    local=st.builds(LocalSettings, learning_rate=st.floats(min_value=1e-300, max_value=1e300)),
    server=st.builds(ServerSettings, optimiser=st.sampled_from(["fedavg", "fedavgm", "fedadam"])),
)


def plan(more: str = "") -> Plan:
    """``more``: single settings first, then tables."""
    single, bracket, tables = more.partition("[")
    return parse_plan(f"{HEAD}{single}\n{ROSTER}{bracket}{tables}", "plan.toml")


@given(PLANS)
def test_a_plan_crosses_the_wire_unchanged(sent: Plan) -> None:
    assert plan_from_wire(sent.canonical) == sent


@given(PLANS, PLANS)
def test_two_plans_have_the_same_hash_only_if_they_are_the_same(one: Plan, other: Plan) -> None:
    assert (one.hash == other.hash) == (one == other)


def test_order_comments_and_stated_defaults_do_not_change_the_hash() -> None:
    turned = "".join(f"{line}\n" for line in reversed(HEAD.splitlines()))
    assert plan().hash == parse_plan(f"rounds = 10 # ten\nmin_cohort = 3\n{turned}{ROSTER}", "x").hash


def test_the_hash_is_of_all_settings_in_sorted_compact_json() -> None:
    assert plan().canonical.startswith(b'{"adapter":{"activation":"tanh",')
    assert plan().hash == hashlib.sha256(b"nexus consortium plan 1\n" + plan().canonical).digest()


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("", Layout(0, 0)),
        ("[adapter]\nsalience = false\nsalience_dendrites = 2", Layout(0, None)),
        (
            '[adapter]\nprojection_dendrites = 2\nsalience_dendrites = 1\nactivation = "sigmoid"',
            Layout(2, 1, "sigmoid"),
        ),
    ],
)
def test_the_adapter_settings_name_a_layout(text: str, layout: Layout) -> None:
    assert plan(text).adapter.layout == layout


def test_the_seed_is_eight_little_endian_bytes() -> None:
    assert plan("[adapter]\nseed = 258").adapter.seed_bytes == b"\x02\x01" + bytes(6)


@pytest.mark.parametrize(
    "text",
    [
        "rounds = 0",
        'hours_utc = "25:00-26:00"',
        'start = "nobody"',
        "round_deadline_seconds = nan",
        "gather_seconds = inf",
        'base_model = "8FE2"',
        "[adapter]\nseed = -1",
        "[adapter]\nsalience_dendrites = 9",
        "[local]\nsteps = 0",
        "[local]\nlearning_rate = 0.0",
        "[local]\nlearning_rate = nan",
        "[local]\ntemperature = inf",
        "[local]\ndropout = nan",
        "[local]\nbatch_rows = 1",
        '[local]\nscored_loss = "mse"',
        "[server]\nmomentum = 1.0",
        "[server]\nmomentum = nan",
        "[server]\nepsilon = 0.0",
        '[server]\noptimiser = "adam"',
    ],
)
def test_a_value_out_of_range_is_refused_by_name(text: str) -> None:
    with pytest.raises(NexusError, match=rf"\n  [a-z.]*{text.split()[-3]}: "):
        plan(text)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"sites": [member(name) for name in "ab"]}, "roster"),
        ({"sites": [member(name) for name in "bac"]}, "roster"),
        ({"sites": [member(name) for name in "aab"]}, "roster"),
        ({"sites": [member("a"), member("b"), member("a") | {"name": "c"}]}, "roster"),
        ({"sites": [member(f"s{i:03}") for i in range(65)]}, "roster"),
        ({"min_cohort": 2}, "cohort-too-small"),
        ({"min_cohort": 4}, "cohort-too-small"),
        ({"aggregation": {"mod_bits": 16}}, "codec"),
        ({"aggregation": {"value_bits": 24}}, "codec"),
        ({"aggregation": {"slots": 0}}, "malformed"),
        ({"privacy": {"noise": 1.0, "sampling": 0.1, "honest": 9}}, "codec"),
    ],
    ids=str,
)
def test_what_the_protocol_refuses_is_no_plan(changed: dict[str, object], code: str) -> None:
    with pytest.raises(NexusError, match=f"{code}: "):
        validate(Plan, FIELDS | changed, "plan.toml")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"purpose": " "}, "purpose: say what the model is for"),
        (
            {"sites": [member("a") | {"contact": ""}, member("b"), member("c")]},
            "controller and contact of a are missing",
        ),
        ({"purpose": "search\u202ehcraes"}, "purpose: holds characters that do not print"),
        ({"purpose": "search\n# heading"}, "purpose: holds characters that do not print"),
        ({"name": "x" * 49}, "name: "),
        ({"end_date": "2027-02-30"}, "end_date: "),
    ],
    ids=["no purpose", "no contact", "turned", "two lines", "long name", "no day"],
)
def test_what_people_could_not_read_or_sign_for_is_no_plan(changed: dict[str, object], named: str) -> None:
    with pytest.raises(NexusError, match=named):
        validate(Plan, FIELDS | changed, "plan.toml")


def test_each_stage_has_a_protocol_plan_as_long_and_with_as_much_norm_as_its_arms() -> None:
    found = make_plan("abc", growth={"max_dendrites": 1}, local={"clip_norm": 2.0})
    derived = found.protocol_plans
    assert [one.run for one in derived] == ["sim.0", "sim.1", "sim.2", "sim.3"]
    assert [one.clip for one in derived] == [2.0, 2.0, 2.0, pytest.approx(2.0 * 3**0.5)]
    assert [one.dim for one in derived[:3]] == [stage.dim + 9 for stage in found.stages[:3]], "its figures"
    assert derived[3].dim == sum(one.dim for one in derived[:3])
    assert len({one.model for one in derived}) == len({one.hash for one in derived}) == 4
    assert {one.rounds for one in derived} == {found.most_inputs}


def test_the_protocol_plans_derive_by_the_specifications_rule() -> None:
    found = make_plan("abcde", name="demo", rounds=7, min_cohort=4)
    (derived,) = found.protocol_plans
    model = hashlib.sha256(b"nexus-sa/1 layout\n" + found.hash + found.adapter.layout.hash).digest()
    assert (derived.run, derived.model, derived.rounds, derived.dim) == ("demo.0", model, 34, 148_224 + 9)
    assert (derived.t, derived.min_cohort, derived.quorum, found.quorum) == (4, 4, 4, 4)
    assert derived.roster == tuple((one.name, bytes.fromhex(one.key)) for one in found.sites)


def test_only_the_canonical_form_crosses_the_wire() -> None:
    for other in (b" " + plan().canonical, plan().canonical.replace(b'"rounds":10,', b"")):
        assert Plan.model_validate_json(other) == plan(), "the same plan in other bytes"
        with pytest.raises(Refusal, match="canonical"):
            plan_from_wire(other)


def test_a_draft_is_enough_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "draft.toml"
    path.write_text('rounds = 3\npurpose = ""\n[local]\nsteps = 7\n[[sites]]\nname = "a"\ncontact = ""\n')
    assert (read_recipe(path).rounds, read_recipe(path).local.steps) == (3, 7)
    path.write_text("[local]\nstep = 7\n")
    with pytest.raises(NexusError, match=r"local\.step: unknown key; did you mean 'steps'"):
        read_recipe(path)
    with pytest.raises(NexusError, match="cannot be read"):
        read_recipe(tmp_path / "gone.toml")


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(str).map(str.encode))
def test_hostile_bytes_are_malformed_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Refusal) as problem:
        plan_from_wire(data)
    assert problem.value.code == "malformed"


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"name": ' + b"9" * 100_000 + b"}"], ids=["deep", "long"])
def test_bytes_beyond_the_parsers_limits_are_malformed(data: bytes) -> None:
    with pytest.raises(Refusal, match="malformed"):
        plan_from_wire(data)


def test_a_plan_that_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(Refusal, match=f"a plan of {MAX_PLAN_BYTES + 1} bytes, at most {MAX_PLAN_BYTES}"):
        plan_from_wire(b" " * (MAX_PLAN_BYTES + 1))


def test_a_refused_plans_text_is_not_repeated() -> None:
    with pytest.raises(Refusal) as problem:
        plan_from_wire(plan().canonical.replace(b'"demo"', b'"Zacharias Quillfeather"'))
    assert "Quillfeather" not in str(problem.value)
