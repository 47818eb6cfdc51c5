"""A server that looks for a single site's vote in what that site sends, with masks and without; the sum it may know."""

from pathlib import Path

import numpy as np
import pytest
from nexus_common import wire
from nexus_common.secagg.masks import MaskedSum, unpack_signed

from tests.federation.sim import SimGrid
from tests.federation.test_rounds import NAMES, Federation, plan_of

HEAD, SIGNATURE = 50, 64  # bytes around the integers of an input
VOTES = dict(zip(NAMES, (1.0, 1.0, -1.0, 1.0), strict=True))


@pytest.mark.parametrize("masked", [True, False], ids=["shipped", "control"])
def test_a_sites_vote_is_known_in_the_sum_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masked: bool) -> None:
    if not masked:
        monkeypatch.setattr(MaskedSum, "add_mask", lambda *_: None)
    plan = plan_of(NAMES, adapter={"salience": False})
    protocol, seen = plan.protocol_plans[0], list[tuple[float, int]]()
    at = plan.adapter.layout.dim + 2 * plan.aggregation.figures.index("vote")  # each figure before it takes two
    federation = Federation(tmp_path, plan)
    for name, site in federation.sites.items():
        site.figures = {"score": 0.5, "vote": VOTES[name]}

        def overheard(message: wire.Message, site=site, name=name) -> wire.Message:
            answer = site(message)
            if isinstance(answer, wire.Masked):
                integers = unpack_signed(answer.vector[HEAD:-SIGNATURE], protocol.mod_bits)
                seen.append((VOTES[name], int(integers[at])))
            return answer

        assert isinstance(federation.grid, SimGrid)
        federation.grid.handle[federation.grid.nodes[name]] = overheard
    federation.turns(5)
    assert len(seen) == 5 * len(NAMES)
    read = [abs(number) == protocol.q and np.sign(number) == vote for vote, number in seen]
    assert all(read) if not masked else not any(read)
    told = federation.registry.figures("sim")
    assert {told[number][0]["vote"].value for number in range(5)} == {2.0}
