"""A server is backed up in mid-run, lost three rounds later, and restored: its run goes on from where it was."""

import json
import shutil
import stat
from collections.abc import Iterator

import pytest
from nexus_common import certs

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until

pytestmark = [pytest.mark.processes, pytest.mark.long]
SITES, AGENT = ("bank-a", "bank-b", "hospital-a"), "hospital-a"


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found(*SITES, rows=60)
        yield made


def newest(federation: Federation) -> int:
    return int(federation.versions("kept")[-1]["number"])


def test_a_run_survives_the_loss_of_its_server_from_an_older_backup(federation: Federation) -> None:
    recipe = {"local": {"steps": 5, "batch_rows": 8}, "adapter": {"salience": False}}
    plan = federation.plan("kept", SITES, rounds=1000, gather_seconds=5.0, **recipe)
    simulated = {
        site: SimSite(site, plan, certs.load_identity(federation.keys(site) / "identity.key")) for site in SITES[:2]
    }
    for site, handle in simulated.items():
        federation.link(site, handle)
    federation.start(AGENT)
    federation.train(plan, approved_by=[AGENT])
    until("two rounds", lambda: newest(federation) >= 2)
    file = federation.home / "backup.tar"
    said = federation.call("nexus-server", "backup", str(file))
    assert said.returncode == 0, said.stderr
    assert "secret keys" in said.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    checked = federation.ask("nexus-server", "check")
    assert checked["running"]
    assert {one["name"]: one["found"] for one in checked["lines"]}["port"].endswith("answers")
    at = newest(federation)
    until("three rounds more", lambda: newest(federation) >= at + 3)
    federation.kill("server")
    lost = simulated["bank-a"].had[-1].round
    shutil.rmtree(federation.home / "server")
    assert federation.ask("nexus-server", "restore", str(file))["of"] == "consortium"
    again = federation.call("nexus-server", "restore", str(file))
    assert (again.returncode, "holds a server already" in again.stderr) == (1, True)
    federation.start("server")
    until("the run goes on", lambda: newest(federation) > lost + 1)
    until("with all sites", lambda: federation.versions("kept")[-1]["cohort"] == list(SITES))
    entries = federation.ask("nexus-server", "audit")["entries"]
    (adopted,) = [line for line in entries if line["event"] == "version adopted"]
    assert adopted["version"] >= at + 2
    assert lost - 1 <= adopted["version"] <= lost
    assert adopted["sites"] == list(SITES)
    assert [line["event"] for line in entries].count("restored") == 1
    federation.ask("nexus-server", "audit", "--verify")
    own = federation.ask("nexus-client", "audit", "--site", AGENT)["entries"]
    came = [line["version"] for line in own if line["event"] == "version received"]
    assert came == sorted(came), "no older version was sent after the restore"
    assert json.dumps(own).count("epoch-replay") == 0


def test_a_restored_site_serves_only_what_is_approved_since(federation: Federation) -> None:
    place, file = federation.home / "sites" / AGENT, federation.home / "site.tar"
    said = federation.call("nexus-client", "backup", str(file), "--site", AGENT)
    assert said.returncode == 0, said.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert federation.call("nexus-client", "restore", str(file)).returncode == 1, "the site is there"
    federation.kill(AGENT)
    shutil.rmtree(place)
    again = federation.call("nexus-client", "restore", str(file))
    assert again.returncode == 0, again.stderr
    assert f"--site {AGENT} plan approve kept --by NAME" in again.stdout
    assert not (place / "state" / "protocol.sqlite").exists()
    federation.start(AGENT)
    status = federation.site_status(AGENT)
    assert (status["approved"], status["proposed"], status["run"]) == (None, ["kept"], "kept")
    until("the run waits for it", lambda: AGENT in federation.server_status()["missing"])
    own = federation.ask("nexus-client", "audit", "--site", AGENT)["entries"]
    came_back = next(at for at, line in enumerate(own) if line["event"] == "restored")
    assert len(own[came_back]["approvals_ended"]) == 1
    sent = [line.get("purpose") for line in own[came_back:] if line["event"] == "sent"]
    assert not {"trained", "input", "masked", "advert"} & set(sent), "nothing of a round"
    before = newest(federation)
    words = federation.words(AGENT, "kept")
    assert federation.approve(AGENT, "kept", words).returncode == 0
    until("the run goes on", lambda: newest(federation) > before)
    federation.ask("nexus-client", "audit", "--site", AGENT, "--verify")
