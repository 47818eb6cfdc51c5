"""A real server process holds no more after many rounds than after some; `make bench-scale` does 1,000 of full size."""

import re
import sys

import pytest
from nexus_common import certs
from scipy.stats import theilslopes

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until

pytestmark = [pytest.mark.processes, pytest.mark.long]
SITES = ("bank-a", "bank-b", "hospital-a")
SETTLED, LEAKY, ROUNDS, LEAK = 15, 35, 45, 16384  # rounds, and bytes a round


def growth(held: list[int]) -> float:
    """Bytes a round: the median of the slopes between any two rounds, for a request in between shows as a peak."""
    return float(theilslopes(held).slope)


@pytest.mark.usefixtures("narrow")
def test_a_server_holds_no_more_after_many_rounds() -> None:
    with Federation() as federation:
        federation.server_program = [sys.executable, "-m", "tests.processes.counting_server", str(LEAK), str(LEAKY)]
        federation.found(*SITES)
        plan = federation.plan("long", SITES, rounds=ROUNDS, aggregation={"slots": 10})
        for site in SITES:
            federation.link(site, SimSite(site, plan, certs.load_identity(federation.keys(site) / "identity.key")))
        federation.train(plan, approved_by=())
        until("all rounds are done", lambda: federation.own_log("server").count("holds ") >= ROUNDS, 240)
        held = [int(count) for count in re.findall(r"^holds (\d+)", federation.own_log("server"), re.MULTILINE)]
    assert growth(held[SETTLED:LEAKY]) < LEAK / 4, held
    assert growth(held[LEAKY:]) > LEAK / 2, "the control: this test would not see a leak"
