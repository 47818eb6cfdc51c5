"""The protocol plan: the vectors' bytes and refusals, one spelling a plan, and every bound at its edge."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from nexus_common import certs
from nexus_common.errors import Refusal
from nexus_common.secagg.labels import label
from nexus_common.secagg.plan import ProtocolPlan, check, decode, load, threshold

VECTORS = Path(__file__).resolve().parent.parent / "vectors" / "secure-aggregation"
PLANS = json.loads((VECTORS / "plan.json").read_text())["plans"]
REFUSED = sorted((VECTORS / "refuse").glob("plan-*.json"))
TABLE = ("roster", "threshold", "cohort-too-small", "malformed", "codec")

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=64)
BYTES_32 = st.binary(min_size=32, max_size=32)
NUMBERS = st.floats(allow_nan=False) | st.sampled_from([0.0, 5e-324, 1.0, 1.7e308])


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1) | st.integers(0, 24)


ENCODABLE = st.builds(
    ProtocolPlan,
    run=NAMES,
    model=BYTES_32,
    roster=st.lists(st.tuples(NAMES, BYTES_32), max_size=5).map(tuple),
    t=unsigned(8),
    min_cohort=unsigned(8),
    strict=st.booleans(),
    slots=unsigned(16),
    rounds=unsigned(32),
    dim=unsigned(32),
    value_bits=unsigned(8),
    mod_bits=unsigned(8),
    codec=unsigned(8),
    clip=NUMBERS,
    range=NUMBERS,
    weight_max=unsigned(16),
    weight_unit=unsigned(32),
    noise=NUMBERS,
    sampling=NUMBERS,
    honest=unsigned(8),
)


def stated(vector: dict) -> ProtocolPlan:
    """The plan that a vector's ``fields`` describe."""
    fields = vector["fields"]
    roster = tuple((name, bytes.fromhex(key)) for name, key in fields["roster"])
    exact = {"model": bytes.fromhex(fields["model"]), "roster": roster, "strict": bool(fields["strict"])}
    return ProtocolPlan(**fields | exact)


FIXED, NOISY = (stated(vector) for vector in PLANS)


def sites(n: int) -> dict:
    """A roster of n sites with its threshold."""
    return {"roster": tuple((f"site-{i:03}", i.to_bytes(32, "little")) for i in range(n)), "t": threshold(n)}


WIDE = {**sites(4), "range": 1.7e308, "noise": 1.0, "dim": 256**2, "honest": 1}  # Q / range is as good as 0
"""Under codec 1, sigma = 256 noise and tail = 4096 noise, exactly."""


def refusal_of(step: Callable[..., object], *args: object) -> str | None:
    """The code with which a step refuses; None where it does not, and any other error goes on up."""
    try:
        step(*args)
    except Refusal as refused:
        return refused.code
    return None


@pytest.mark.parametrize("vector", PLANS, ids=["codec-0", "codec-1"])
def test_a_plan_has_the_vectors_bytes_and_hash_both_ways(vector: dict) -> None:
    plan, data = stated(vector), bytes.fromhex(vector["bytes"])
    assert plan.encoded == data
    assert plan.hash.hex() == vector["hash"]
    assert decode(data) == plan
    assert decode(data).strict is plan.strict


def test_every_refused_plan_of_the_specification_is_here() -> None:
    assert len(REFUSED) == 29


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.stem)
def test_a_site_refuses_the_vectors_plan_with_exactly_its_code(path: Path) -> None:
    vector = json.loads(path.read_text())
    assert vector["party"] == "site"
    assert vector["last"] is None  # loading itself is refused
    key = certs.raw_identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["ed25519_secret"])))
    approved = {bytes.fromhex(one) for one in vector["approved"]}
    assert refusal_of(load, bytes.fromhex(vector["plan"]), approved, vector["name"], key) == vector["refuse"]


@pytest.mark.parametrize("plan", [FIXED, NOISY], ids=["codec-0", "codec-1"])
def test_every_site_of_an_approved_plan_loads_it(plan: ProtocolPlan) -> None:
    for name, key in plan.roster:
        assert load(plan.encoded, [bytes(32), plan.hash], name, key) == plan


@given(data=st.binary())
def test_what_is_not_approved_is_not_even_decoded(data: bytes) -> None:
    assert refusal_of(load, data, [FIXED.hash], *FIXED.roster[0]) == "plan-not-approved"


@pytest.mark.parametrize("own", [("site-00", FIXED.roster[1][1]), ("site-04", FIXED.roster[0][1])], ids=["key", "name"])
def test_another_sites_name_or_key_is_not_ones_own(own: tuple[str, bytes]) -> None:
    assert refusal_of(load, FIXED.encoded, [FIXED.hash], *own) == "own-cert"


def test_a_plan_with_every_fault_is_refused_in_the_tables_order() -> None:
    faults = {"roster": FIXED.roster[::-1], "t": 9, "min_cohort": 2, "codec": 2, "mod_bits": 16}
    codes = []
    for mended in range(6):
        plan = replace(FIXED, **dict(list(faults.items())[mended:]))
        codes.append(refusal_of(load, plan.encoded, [plan.hash], "nobody", bytes(32)))
    assert codes == [*TABLE, "own-cert"]


@given(plan=ENCODABLE)
def test_every_plan_comes_back_from_its_bytes(plan: ProtocolPlan) -> None:
    assert decode(plan.encoded) == plan


def only_exact(data: bytes) -> None:
    try:
        plan = decode(data)
    except Refusal as refused:
        assert refused.code == "malformed"
    else:
        assert replace(plan).encoded == data  # a copy, for ``encoded`` is cached


@given(data=st.binary(max_size=400) | st.binary(max_size=400).map(lambda rest: label("plan") + rest))
def test_arbitrary_bytes_are_refused_or_are_a_plans_only_spelling(data: bytes) -> None:
    only_exact(data)


@given(
    data=st.sampled_from([FIXED.encoded, NOISY.encoded]),
    start=st.integers(0, 400),
    length=st.integers(0, 9),
    patch=st.binary(max_size=9),
)
def test_changed_bytes_are_refused_or_are_another_plans_only_spelling(
    data: bytes, start: int, length: int, patch: bytes
) -> None:
    only_exact(data[:start] + patch + data[start + length :])


def test_a_plan_cut_anywhere_is_malformed() -> None:
    whole = len(FIXED.encoded)
    assert {refusal_of(decode, FIXED.encoded[:end]) for end in range(whole)} == {"malformed"}


@given(plan=ENCODABLE)
def test_checking_a_plan_passes_or_refuses_with_a_code_of_the_table(plan: ProtocolPlan) -> None:
    assert refusal_of(check, plan) in {None, *TABLE}


@given(
    plan=st.sampled_from([FIXED, NOISY]),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "clip": st.floats(),
            "range": st.floats(),
            "noise": st.floats(),
            "sampling": st.floats(),
            "dim": st.integers(),
            "slots": st.integers(),
            "rounds": st.integers(),
            "honest": st.integers(),
            "value_bits": st.integers(),
            "weight_max": st.integers(),
            "weight_unit": st.integers(),
        },
    ),
)
def test_a_built_plan_that_passes_can_be_sent_and_loaded(plan: ProtocolPlan, changes: dict) -> None:
    plan = replace(plan, **changes)
    if refusal_of(check, plan) is None:
        assert load(plan.encoded, [plan.hash], *plan.roster[0]) == plan


@pytest.mark.parametrize(
    "changes",
    [
        {"run": ""},
        {"run": "a" * 65},
        {"run": "Example"},
        {"run": "example.1\n"},
        {"run": "exämple"},
        {"model": bytes(31)},
        {"roster": (*FIXED.roster[:3], ("site-03", bytes(33)))},
        {"roster": (*FIXED.roster[:3], ("site_03", bytes(32)))},
        {"rounds": 2**32},
        {"weight_unit": 2**32},
        {"weight_max": 2**16},
        {"honest": -1},
        {"clip": 10**400},
    ],
    ids=str,
)
def test_a_built_plan_that_its_bytes_cannot_hold_is_malformed(changes: dict) -> None:
    plan = replace(FIXED, **changes)
    assert refusal_of(check, plan) == "malformed"
    assert refusal_of(getattr, plan, "encoded") == "malformed"


@pytest.mark.parametrize(("n", "t"), [(3, 3), (4, 3), (5, 4), (16, 11), (64, 43)])
def test_the_threshold_is_that_of_the_specifications_table(n: int, t: int) -> None:
    assert threshold(n) == t
    assert replace(FIXED, **sites(n), min_cohort=3).quorum == t
    assert replace(FIXED, **sites(n), min_cohort=n).quorum == n


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (sites(2), "roster"),
        (sites(3), None),
        (sites(64), None),
        (sites(65), "roster"),
        (sites(300), "roster"),
        ({"min_cohort": 4}, None),
        ({"run": "a" * 64}, None),
        ({"strict": 2}, "malformed"),
        ({"slots": 1024}, None),
        ({"slots": 1025}, "malformed"),
        ({"rounds": 0}, "malformed"),
        ({"rounds": 2**32 - 1}, None),
        ({"dim": 0}, "malformed"),
        ({"dim": 2**24}, None),
        ({"dim": 2**24 + 1}, "malformed"),
        ({"value_bits": 8}, None),
        ({"value_bits": 22}, None),
        ({"value_bits": 30, "mod_bits": 32}, None),
        ({"value_bits": 30, "mod_bits": 32} | sites(5), "codec"),
        ({"value_bits": 31, "mod_bits": 32}, "codec"),
        ({"value_bits": 19} | sites(33), "codec"),
        ({"mod_bits": 40}, "codec"),
        ({"clip": math.inf}, "codec"),
        ({"clip": math.nan}, "codec"),
        ({"clip": -1.0}, "codec"),
        ({"range": math.inf}, "codec"),
        ({"range": 0.0}, "codec"),
        ({"value_bits": 8, "weight_max": 127}, None),
        ({"value_bits": 8, "weight_max": 128}, "codec"),
        ({"weight_unit": 1}, None),
        ({"noise": math.nan}, "codec"),
        ({"sampling": 0.1}, "codec"),
        ({"honest": 1}, "codec"),
    ],
    ids=str,
)
def test_a_bound_of_codec_0_holds_at_its_edge_and_not_beyond(changes: dict, code: str | None) -> None:
    assert refusal_of(check, replace(FIXED, **changes)) == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"weight_max": 2}, "codec"),
        ({"noise": 0.0}, "codec"),
        ({"noise": -1.0}, "codec"),
        ({"noise": math.inf}, "codec"),
        ({"noise": math.nan}, "codec"),
        ({"sampling": 1.0}, None),
        ({"sampling": 1.0000000000000002}, "codec"),
        ({"sampling": math.nan}, "codec"),
        ({"honest": 1}, None),
        ({"honest": 4}, None),
        ({"honest": 5}, "codec"),
        ({"range": 5e-324}, "codec"),
        ({"clip": 1.7e308}, "codec"),
        (WIDE | {"dim": 256**2}, None),  # sigma is 256
        (WIDE | {"dim": 256**2 - 1}, "codec"),
        (WIDE | {"value_bits": 8, "mod_bits": 24, "noise": 8388099 / 4096}, None),  # 4 Q + ceil(tail) is 2^23 - 1
        (WIDE | {"value_bits": 8, "mod_bits": 24, "noise": 8388099.5 / 4096}, "codec"),
    ],
    ids=str,
)
def test_a_bound_of_codec_1_holds_at_its_edge_and_not_beyond(changes: dict, code: str | None) -> None:
    assert refusal_of(check, replace(NOISY, **changes)) == code


def test_sigma_is_computed_in_the_specifications_order() -> None:
    """Every other order of these factors gives 255.99999999999997."""
    numbers = {"value_bits": 18, "clip": 9.6, "range": 5.2, "dim": 1000, "honest": 2, "noise": 0.001495972840096729}
    assert refusal_of(check, replace(NOISY, **numbers)) is None


@given(
    n=st.integers(3, 64),
    value_bits=st.integers(8, 30),
    mod_bits=st.sampled_from([24, 32]),
    noise=st.floats(0.01, 100),
    clip=st.floats(0.01, 100),
    dim=st.integers(1, 2**24),
)
def test_codec_1_takes_exactly_the_sums_that_its_noise_cannot_wrap(
    n: int, value_bits: int, mod_bits: int, noise: float, clip: float, dim: int
) -> None:
    q = 2 ** (value_bits - 1) - 1
    sigma = noise * (clip * (q / 0.5) + math.sqrt(dim)) / math.sqrt(2)
    fits = n * q + math.ceil(8 * sigma * math.sqrt(n)) <= 2 ** (mod_bits - 1) - 1
    numbers = {"value_bits": value_bits, "mod_bits": mod_bits, "noise": noise, "clip": clip, "dim": dim, "honest": 2}
    plan = replace(NOISY, **sites(n), **numbers)
    assert refusal_of(check, plan) == (None if sigma >= 256 and fits else "codec")
