"""Shamir, keys, masks and codecs: exact against the specification's vectors, and their laws for any input."""

import hashlib
import math
import os
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_client.privacy import epsilon_of
from nexus_common.errors import Refusal
from nexus_common.secagg import codec, keys, shamir
from nexus_common.secagg.masks import MaskedSum, unpack_signed
from nexus_common.secagg.messages import context
from nexus_common.secagg.noise import discrete_gaussian
from nexus_common.secagg.plan import ProtocolPlan, check, decode

from tests.protocol.vectors import Tape, vector

SHAMIR, KEYS, MASK, CODEC, DP = (vector(name) for name in ("shamir", "keys", "mask", "codec", "dp"))
ELEMENTS = st.integers(0, shamir.P - 1)


def raw(name: str) -> bytes:
    return bytes.fromhex(KEYS[name])


def plan_of(case: Any) -> ProtocolPlan:
    return decode(bytes.fromhex(case["plan"]))


@pytest.mark.parametrize("case", SHAMIR["cases"], ids=lambda case: f"{case['t']}-of-{case['n']}")
def test_shares_and_weights_are_the_vectors(case: Any) -> None:
    secret = int.from_bytes(bytes.fromhex(case["secret"]), "little")
    shares = shamir.split(secret, case["t"], case["n"], Tape(bytes.fromhex(case["tape"])))
    assert [shamir.to_bytes(share).hex() for share in shares] == case["shares"]
    sites = case["join_from_sites"]
    assert [shamir.to_bytes(w).hex() for w in shamir.weights_at_zero(sites)] == case["lagrange_at_zero"]
    assert shamir.join({site: shares[site] for site in sites}) == secret


@given(secret=ELEMENTS, t=st.integers(1, 6), spare=st.integers(0, 2), data=st.data())
def test_any_t_shares_give_the_secret_and_fewer_fit_any_secret(secret: int, t: int, spare: int, data: Any) -> None:
    n = t + spare
    shares = shamir.split(secret, t, n, os.urandom)
    for sites in combinations(range(n), t):
        assert shamir.join({site: shares[site] for site in sites}) == secret
    # t - 1 shares and any other secret lie on a polynomial as well: point n stands for what the others cannot see.
    other, few = data.draw(ELEMENTS), list(range(t - 1))
    weights = shamir.weights_at_zero([*few, n])
    missing = (other - shamir.combine(weights[:-1], shares[: t - 1])) * pow(weights[-1], -1, shamir.P) % shamir.P
    assert shamir.join({**{site: shares[site] for site in few}, n: missing}) == other


@given(number=st.integers(0, 2**256 - 1))
def test_an_element_has_one_spelling(number: int) -> None:
    assert (shamir.from_bytes(number.to_bytes(32, "little")) is None) == (number >= shamir.P)


def test_every_key_is_the_vectors() -> None:
    ctx = context(raw("plan_hash"), raw("setup_hash"), KEYS["slot"], raw("model_hash"))
    shared = keys.Exchanger(raw("secret_3")).shared(raw("public_5"))
    assert (keys.public_key(raw("secret_3")), keys.public_key(raw("secret_5"))) == (raw("public_3"), raw("public_5"))
    assert (ctx, shared) == (raw("ctx"), raw("dh"))
    assert keys.Exchanger(raw("secret_5")).shared(raw("public_3")) == shared
    assert keys.pair_key(shared, ctx, 3, 5) == keys.pair_key(shared, ctx, 5, 3) == raw("pair_3_5")
    assert keys.self_key(raw("seed"), ctx, 5) == raw("self_5")
    assert keys.envelope_key(shared, raw("setup_hash"), 3, 5) == raw("envelope_3_to_5")
    assert keys.envelope_key(shared, raw("setup_hash"), 5, 3) == raw("envelope_5_to_3")
    commit = keys.seed_commit(raw("plan_hash"), KEYS["epoch"], KEYS["slot"], 5, raw("seed"))
    assert commit == raw("seed_commit_site_5")
    assert keys.seal(raw("envelope_3_to_5"), raw("plaintext")) == raw("box_3_to_5")
    assert keys.unseal(raw("envelope_3_to_5"), raw("box_3_to_5")) == raw("plaintext")


@pytest.mark.parametrize("low", [bytes(32), (1).to_bytes(32, "little"), (shamir.P - 1).to_bytes(32, "little")])
def test_a_key_of_low_order_is_refused(low: bytes) -> None:
    with pytest.raises(Refusal, match="bad-key"):
        keys.Exchanger(os.urandom(32)).shared(low)


@pytest.mark.parametrize("case", MASK["masks"], ids=lambda case: str(case["mod_bits"]))
def test_a_mask_and_its_inverse_are_the_vectors(case: Any) -> None:
    key, bits, length = bytes.fromhex(MASK["key"]), case["mod_bits"], case["length"]
    plus, minus = MaskedSum(length, bits), MaskedSum(length, bits)
    plus.add_mask(key, 1)
    minus.add_mask(key, -1)
    assert hashlib.sha256(plus.packed()).hexdigest() == case["sha256_packed"]
    first = bits // 8 * 8
    assert plus.packed()[:first].hex() == case["first_8_packed"]
    for found, expected in ((plus, "first_8"), (minus, "minus_first_8")):
        assert [int(x) % 2**bits for x in unpack_signed(found.packed()[:first], bits)] == case[expected]


@given(
    bits=st.sampled_from([24, 32]),
    rows=st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=5, max_size=5), min_size=1, max_size=6),
    masks=st.lists(st.binary(min_size=32, max_size=32), max_size=4),
)
def test_masks_cancel_and_sums_are_exact_modulo_2_to_the_mod_bits(
    bits: int, rows: list[list[int]], masks: list[bytes]
) -> None:
    total = MaskedSum(5, bits)
    for row in rows:
        one = MaskedSum(5, bits)
        one.add(np.array(row, np.int64))
        for key in masks:
            one.add_mask(key, 1)
            total.add_mask(key, -1)
        total.add_packed(one.packed())
    expected = [sum(column) % 2**bits for column in zip(*rows, strict=True)]
    assert [int(x) % 2**bits for x in unpack_signed(total.packed(), bits)] == expected


def test_weights_are_the_vectors() -> None:
    plan = replace(plan_of(CODEC["encode"][0]), weight_unit=CODEC["weight_unit"])
    for case in CODEC["weights"]:
        assert codec.weight_of(case["examples"], plan) == case["weight"]


def packed(plan: ProtocolPlan, integers: Any) -> str:
    total = MaskedSum(len(integers), plan.mod_bits)
    total.add(np.array(integers, np.int64))
    return total.packed().hex()


@pytest.mark.parametrize("case", CODEC["encode"], ids=lambda case: f"{case['value_bits']}-{case['weight']}")
def test_encoding_is_the_vectors(case: Any) -> None:
    plan, coins = plan_of(case), np.array(case["coins"], np.uint32)
    found = codec.fixed_point(plan, np.array(case["update"]), case["weight"], coins)
    assert found.tolist() == case["x"]
    assert packed(plan, found) == case["packed"]


def test_encoding_with_noise_is_the_vectors() -> None:
    case = CODEC["ddg"]
    plan, coins = plan_of(case), np.array(case["coins"], np.uint32)
    found = codec.fixed_point(plan, np.array(case["update"]), 1, coins) + np.append(case["noise"], 0)
    assert found.tolist() == case["x"]
    assert packed(plan, found) == case["packed"]
    assert plan.sigma == case["sigma"]


def test_a_sum_decodes_to_the_vectors_mean_or_is_refused() -> None:
    case = CODEC["decode"]
    plan = plan_of(case)
    mean, weight = codec.decode(plan, bytes.fromhex(packed(plan, case["sum"])), case["survivors"])
    assert (mean.tolist(), weight) == (case["mean"], case["weight"])
    case = CODEC["decode_refuse"]
    with pytest.raises(Refusal, match=case["refuse"]):
        codec.decode(plan, bytes.fromhex(packed(plan, case["sum"])), case["survivors"])


@given(
    updates=st.lists(st.lists(st.floats(-0.5, 0.5), min_size=10, max_size=10), min_size=3, max_size=64),
    seed=st.integers(0, 2**32),
)
def test_the_mean_of_encoded_updates_is_within_one_step_of_the_true_one(updates: list[list[float]], seed: int) -> None:
    plan, rng = replace(plan_of(CODEC["encode"][0]), weight_max=1), np.random.default_rng(seed)
    total = MaskedSum(11, plan.mod_bits)
    for update in updates:
        total.add(codec.fixed_point(plan, np.array(update), 1, rng.integers(0, 2**32, 10, np.uint32)))
    mean, weight = codec.decode(plan, total.packed(), len(updates))
    assert weight == len(updates)
    np.testing.assert_allclose(mean, np.mean(updates, axis=0), rtol=0, atol=plan.range / (2**17 - 1))


def test_rounding_is_unbiased() -> None:
    plan = replace(plan_of(CODEC["encode"][0]), dim=100_000, weight_max=1)
    value = 0.3 * plan.range / (2**17 - 1)
    coins = np.frombuffer(os.urandom(4 * plan.dim), np.uint32)
    found = codec.fixed_point(plan, np.full(plan.dim, value), 1, coins)[:-1]
    assert abs(found.mean() - 0.3) < 5 * math.sqrt(0.21 / plan.dim)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_encoded(bad: float) -> None:
    plan = plan_of(CODEC["encode"][0])
    with pytest.raises(Refusal, match="codec"):
        codec.fixed_point(plan, np.full(10, bad), 1, np.zeros(10, np.uint32))


@pytest.mark.parametrize("tiny", [5e-324, 1e-310, 1.7e308])
def test_a_range_too_small_or_large_for_a_finite_scale_is_no_plan(tiny: float) -> None:
    with pytest.raises(Refusal, match="codec"):
        check(replace(plan_of(CODEC["encode"][0]), range=tiny))


def test_under_codec_1_what_is_encoded_has_the_noise_of_the_plan() -> None:
    plan = replace(plan_of(CODEC["ddg"]), dim=20_000)
    found = codec.encode(plan, np.zeros(plan.dim), 1, os.urandom)
    assert found[-1] == 1
    assert found[:-1].std() == pytest.approx(plan.sigma, rel=0.03)


@pytest.mark.parametrize(("weight", "coins"), [(0, 10), (9, 10), (1, 1)])
def test_a_weight_or_coins_that_the_plan_does_not_take_are_refused(weight: int, coins: int) -> None:
    with pytest.raises(Refusal, match="codec"):
        codec.fixed_point(plan_of(CODEC["encode"][0]), np.zeros(10), weight, np.zeros(coins, np.uint32))


def test_a_packed_vector_of_another_length_is_refused() -> None:
    for length in (0, 29, 31, 200_000):
        with pytest.raises(Refusal, match="input"):
            MaskedSum(10, 24).add_packed(bytes(length))


@pytest.mark.parametrize("sigma", [1.0, 3.7, 300.0])
def test_noise_follows_the_discrete_gaussian(sigma: float) -> None:
    count = 200_000
    found = discrete_gaussian(sigma, count, os.urandom)
    assert len(found) == count
    values = np.arange(-math.ceil(8 * sigma), math.ceil(8 * sigma) + 1)
    odds = np.exp(-(values**2) / (2 * sigma**2))
    odds /= odds.sum()
    # Cells of at least 50 expected draws; a chi-squared of k cells has mean k and variance 2 k.
    edges = np.searchsorted(np.cumsum(odds), np.linspace(0, 1, 41)[1:-1])
    cells = np.unique(values[edges])
    expected = np.add.reduceat(odds, [0, *(np.searchsorted(values, cells) + 1)]) * count
    observed = np.histogram(found, [-np.inf, *(cells + 0.5), np.inf])[0]
    statistic = float(((observed - expected) ** 2 / expected).sum())
    assert statistic < len(cells) + 6 * math.sqrt(2 * len(cells)), (statistic, len(cells))
    assert abs(found.mean()) < 5 * sigma / math.sqrt(count)


def test_noise_draws_new_coins_for_every_value() -> None:
    drawn: list[int] = []

    def random(size: int) -> bytes:
        drawn.append(size)
        return os.urandom(size)

    first, second = (discrete_gaussian(1000.0, 500, random) for _ in range(2))
    assert not np.array_equal(first, second)
    assert sum(drawn) > 2 * 500 * 8 * 4


@pytest.mark.parametrize("row", DP["rows"], ids=lambda row: str(row["noise"]))
def test_epsilon_is_the_vectors_within_1_percent(row: Any) -> None:
    found = epsilon_of(row["noise"], row["sampling"], row["rounds"], row["delta"])
    assert found == pytest.approx(row["epsilon"], rel=0.01)


@pytest.mark.parametrize("dim", [16_383, 16_384, 16_385, 147_840])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_fixed_point_in_pieces_is_the_formula_at_once(dim: int, kind: type) -> None:
    plan, rng = replace(plan_of(CODEC["encode"][0]), dim=dim), np.random.default_rng(dim)
    update = (rng.standard_normal(dim) * plan.range).astype(kind)
    coins = rng.integers(0, 2**32, dim, np.uint32)
    scale = (plan.weight_max * plan.q) / (plan.range * plan.weight_max)
    z = np.minimum(np.maximum(update.astype(np.float64), -plan.range), plan.range) * scale
    whole = np.clip(np.floor(z + coins * 2.0**-32), -plan.q, plan.q)
    found = codec.fixed_point(plan, update, plan.weight_max, coins)
    np.testing.assert_array_equal(found, np.append(whole, plan.weight_max).astype(np.int64))
