"""What rounds of a plan can lead to is taken, whatever sites send; what they cannot is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nexus_client.taken import check_reach, largest
from nexus_common.errors import Refusal
from nexus_server.aggregate import make_optimiser

from tests.plans import make_plan

NAMES = ("bank-a", "bank-b", "hospital-a")


@settings(max_examples=60, deadline=None)
@given(
    optimiser=st.sampled_from(["fedavg", "fedavgm", "fedadam"]),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    second=st.sampled_from([0.5, 0.9, 0.99, 0.999]),
    step=st.sampled_from([0.01, 1.0, 2.0]),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["same", "random", "late"]),
)
def test_no_honest_server_leaves_the_reach(
    optimiser: str, momentum: float, second: float, step: float, seed: int, kind: str
) -> None:
    server = {"optimiser": optimiser, "momentum": momentum, "second_moment": second, "step": step}
    plan = make_plan(NAMES, rounds=12, server=server, local={"clip_norm": 1e6})
    rng, dim, limit = np.random.default_rng(seed), plan.adapter.layout.dim, plan.aggregation.range
    made, vector = make_optimiser(plan.server, dim), plan.adapter.layout.first_vector(plan.adapter.seed_bytes)
    for number in range(plan.rounds):
        check_reach(plan, number, vector)
        mean = np.full(dim, limit) if kind == "same" else rng.choice([-limit, limit], dim)
        if kind == "late" and number < plan.rounds - 1:
            mean[:] = 0
        vector = made.apply(vector, mean)
    check_reach(plan, plan.rounds, vector)


@pytest.mark.parametrize("number", [0, 1, 9])
def test_what_rounds_cannot_lead_to_is_refused_in_either_sign(number: int) -> None:
    plan = make_plan(NAMES)
    vector = plan.adapter.layout.first_vector(b"")
    for value in (largest(plan, number) * 1.01, -largest(plan, number) * 1.01, 2e38):
        vector[5] = value
        with pytest.raises(Refusal, match="bad-version"):
            check_reach(plan, number, vector)
    assert largest(plan, number) < 5
