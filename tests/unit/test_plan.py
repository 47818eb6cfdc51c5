"""The run's description: defaults, bounds, one identity for the same settings, and hostile bytes from the wire."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.errors import NexusError, Refusal
from nexus_common.layout import Layout
from nexus_common.plan import (
    AdapterSettings,
    LocalSettings,
    Plan,
    ServerSettings,
    parse_plan,
    plan_from_wire,
    read_plan,
)

SHORT = 'name = "demo"\nsites = ["a", "b", "c"]\n'
PLANS = st.builds(
    Plan,
    name=st.just("demo"),
    sites=st.just(("a", "b", "c")),
    rounds=st.integers(1, 100_000),
    min_cohort=st.integers(1, 3),
    round_deadline_seconds=st.floats(1, 86_400),
    adapter=st.builds(AdapterSettings, seed=st.integers(0, 2**63 - 1), salience=st.booleans()),
    local=st.builds(LocalSettings, learning_rate=st.floats(min_value=1e-300, max_value=1e300)),
    server=st.builds(ServerSettings, optimiser=st.sampled_from(["fedavg", "fedavgm", "fedadam"])),
)


def plan(more: str = "") -> Plan:
    return parse_plan(SHORT + more, "plan.toml")


@given(PLANS)
def test_a_plan_crosses_the_wire_unchanged(sent: Plan) -> None:
    assert plan_from_wire(sent.canonical) == sent


@given(PLANS, PLANS)
def test_two_plans_have_the_same_hash_only_if_they_are_the_same(one: Plan, other: Plan) -> None:
    assert (one.hash == other.hash) == (one == other)


def test_order_comments_and_stated_defaults_do_not_change_the_hash() -> None:
    assert plan().hash == parse_plan('rounds = 10 # ten\nsites = ["a", "b", "c"]\nname = "demo"\n', "x").hash


def test_the_order_of_sites_is_part_of_the_hash() -> None:
    assert plan().hash != parse_plan('name = "demo"\nsites = ["b", "a", "c"]\n', "x").hash


def test_the_hash_is_of_all_settings_in_sorted_compact_json() -> None:
    assert plan().canonical.startswith(b'{"adapter":{"activation":"tanh",')
    assert plan().hash == hashlib.sha256(b"nexus run 1\n" + plan().canonical).digest()


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
        "min_cohort = 0",
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


def test_a_site_named_twice_is_refused() -> None:
    with pytest.raises(NexusError, match="names a site twice: a, b, a"):
        parse_plan('name = "demo"\nsites = ["a", "b", "a"]', "x")


def test_a_cohort_larger_than_the_roster_is_refused() -> None:
    with pytest.raises(NexusError, match="min_cohort = 4, but sites names only 3"):
        plan("min_cohort = 4")


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(SHORT)
    assert read_plan(tmp_path / "plan.toml") == plan()


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(str).map(str.encode))
def test_hostile_bytes_are_malformed_and_nothing_else(data: bytes) -> None:
    with pytest.raises(Refusal) as problem:
        plan_from_wire(data)
    assert problem.value.code == "malformed"


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"name": ' + b"9" * 100_000 + b"}"], ids=["deep", "long"])
def test_bytes_beyond_the_parsers_limits_are_malformed(data: bytes) -> None:
    with pytest.raises(Refusal, match="malformed"):
        plan_from_wire(data)


def test_a_refused_plans_text_is_not_repeated() -> None:
    with pytest.raises(Refusal) as problem:
        plan_from_wire(plan().canonical.replace(b'"demo"', b'"Zacharias Quillfeather"'))
    assert "Quillfeather" not in str(problem.value)
