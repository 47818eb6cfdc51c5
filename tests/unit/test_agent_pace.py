"""What a server's messages make in the audit log uses up the burst, unless it cost a training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nexus_client.agent import Agent
from nexus_client.site import SiteHome
from nexus_common import wire
from nexus_common.errors import Refusal


@pytest.mark.parametrize(
    ("writes", "trains", "refuses", "paced"),
    [(True, False, False, 1), (True, False, True, 1), (True, True, False, 0), (False, False, True, 0)],
)
def test_lines_that_cost_nothing_are_paced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool, trains: bool, refuses: bool, paced: int
) -> None:
    agent: Any = Agent.__new__(Agent)
    agent.place = SiteHome.of(tmp_path, "bank-a")
    agent.place.state.mkdir(parents=True)
    agent.rounds, calls = SimpleNamespace(progress=SimpleNamespace(last_round_at=None)), []
    agent.journal = SimpleNamespace(pace=lambda: calls.append(1))

    def answer(_: wire.Message) -> wire.Message:
        if writes:
            agent.place.audit_file.write_text("a line\n")
        if trains:
            agent.rounds.progress.last_round_at = 7.0
        if refuses:
            raise Refusal("plan-not-approved")
        return wire.Readiness(wire.READY)

    monkeypatch.setattr(agent, "_answer", answer)
    try:
        agent._handle(wire.Propose(b""))
    except Refusal:
        assert refuses
    assert len(calls) == paced
