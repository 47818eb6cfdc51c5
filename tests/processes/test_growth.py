"""A dendrite's trial in real processes, with kill -9 of the server and of a site in the middle of it.

Two agents train; what they say of the hold-out is set, so that there is a plateau and a dendrite is worth something.
The third site is a real connection from here.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from nexus_common import certs
from nexus_common.layout import Layout
from nexus_common.versions import StoredAdapter

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until

pytestmark = [pytest.mark.processes, pytest.mark.long]
SITES, AGENTS = ("bank-a", "hospital-a", "hospital-b"), ("hospital-a", "hospital-b")
HOPEFUL = [sys.executable, str(Path(__file__).with_name("hopeful_agent.py"))]
SLOW = {"steps": 12, "batch_rows": 8}  # so that there is time to kill in a trial
GROWTH = {"max_dendrites": 1, "patience": 1, "trial_rounds": 3}
TRIAL = range(2, 6)  # versions of several arms


class Grower(SimSite):
    """Agrees with the agents."""

    def report(self, layout: Layout, weights: np.ndarray) -> dict[str, float]:
        return self.figures | {"score": 0.5 + 0.1 * layout.projection}

    def update(self, vector: np.ndarray) -> np.ndarray:
        return np.zeros_like(vector)


def test_a_trial_outlives_kill_9_of_server_and_site_and_what_won_is_used_by_all() -> None:
    with Federation() as federation:
        federation.found(*SITES, rows=40)
        plan = federation.plan("growing", SITES, rounds=8, local=SLOW, growth=GROWTH)
        key = certs.load_identity(federation.keys("bank-a") / "identity.key")
        federation.link("bank-a", Grower("bank-a", plan, key))
        for site in AGENTS:
            federation.start(site, program=HOPEFUL)
        federation.train(plan, approved_by=AGENTS)
        until("a trial goes on", lambda: len(federation.versions("growing")) > TRIAL[1])
        federation.kill("server")
        stored = StoredAdapter.read(federation.home / "sites" / "hospital-a" / "state" / "federated.safetensors")
        assert stored is not None
        assert (stored.layout, stored.number in TRIAL) == (plan.stages[0].arms[0], True), "the control is for use"
        federation.start("server")
        status = federation.server_status()
        assert (status["trials"][0]["begin"], status["trials"][0]["winner"]) == (TRIAL.start, None)
        told = federation.call("nexus-server", "status").stdout
        assert "trial since version 2" in told
        assert "projection dendrite 60" in told
        federation.kill("hospital-b")
        federation.start("hospital-b", program=HOPEFUL)
        until("the run is finished", lambda: federation.server_status()["state"] == "finished", 180)
        made = [version for version in federation.versions("growing") if version["state"] == "made"]
        assert [len(version["arms"]) for version in made] == [1] * 2 + [3] * 4 + [1] * 3
        (trial,) = federation.server_status()["trials"]
        assert (trial["winner"], trial["rounds"]) == ("projection dendrite", 3)
        assert trial["scores"] == pytest.approx([0.5, 0.6, 0.5], abs=1e-4)
        assert "the projection dendrite stays" in federation.call("nexus-server", "status").stdout
        assert "0 | 1 | 1" in federation.call("nexus-server", "models").stdout
        newest = made[-1]["number"]
        for site in AGENTS:
            until(f"{site} has the last version", lambda s=site: federation.site_status(s)["version"] == newest)
            path = federation.home / "sites" / site / "state" / "federated.safetensors"
            found = StoredAdapter.read(path)
            assert found is not None
            assert found.layout == Layout(1, 0)
            assert "projection (1 dendrite)" in federation.call("nexus-client", "status", "--site", site).stdout
            assert found.layout.split(found.vector)["projection.tops.0"].any(), "it was trained"
        assert federation.ask("nexus-client", "evaluate", "--site", "hospital-a")["version"] == newest
        further = ["further", "--from", "growing", "--clip", "10", "--file", str(federation.home / "further.toml")]
        federation.ask("nexus-server", "plan", "new", *further)
        assert "projection_dendrites = 1" in (federation.home / "further.toml").read_text()
        reported(federation, newest)


def reported(federation: Federation, newest: int) -> None:
    """The pages of the server and of a site, from what is there after both were killed."""
    page = federation.home / "growing.html"
    told = federation.ask("nexus-server", "report", "growing", "-o", str(page))
    (course,) = told["courses"]
    assert [one["number"] for one in course["versions"]] == [one["number"] for one in federation.versions("growing")]
    assert [trial["winner"] for trial in course["trials"]] == ["projection dendrite"]
    assert "projection dendrite stays" in page.read_text()
    own = federation.ask("nexus-client", "report", "--site", "hospital-a", "-o", str(page))
    run, alone = own["courses"]
    assert (run["title"], alone["title"][:6]) == ("Run growing", "Alone:")
    assert [trial["winner"] for trial in run["trials"]] == ["projection dendrite"]
    last = run["versions"][-1]
    assert (last["number"], last["arms"][0]["figures"]["score"]) == (newest, 0.6), "what this agent finds, unrounded"
    models = {"keyword", "base", "alone", "federated", "personal", "in use"}
    assert {line["model"] for line in own["quality"]} == models
    assert "Run growing" in page.read_text()
    wrong = federation.call("nexus-server", "report", "growin")
    assert (wrong.returncode, "did you mean 'growing'?" in wrong.stderr) == (1, True)
