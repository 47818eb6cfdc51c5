"""A federation in which one site computes with Perforated AI's own package, and nobody else can tell."""

import os
import re

import pytest
from nexus_common import certs

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until

pytestmark = [pytest.mark.processes, pytest.mark.long]
SITES, AGENTS = ("bank-a", "hospital-a", "hospital-b"), ("hospital-a", "hospital-b")


def test_two_engines_train_one_model_with_dendrites() -> None:
    pytest.importorskip("perforatedai", reason="needs perforatedai (x86_64 Linux; `make test` installs it there)")
    with Federation() as federation:
        federation.found(*SITES, rows=60)
        recipe = {
            "local": {"steps": 5, "batch_rows": 8},
            "adapter": {"projection_dendrites": 1, "salience_dendrites": 2},
        }
        plan = federation.plan("mixed", SITES, rounds=3, **recipe)
        federation.link(
            "bank-a", SimSite("bank-a", plan, certs.load_identity(federation.keys("bank-a") / "identity.key"))
        )
        settings = federation.home / "sites" / "hospital-a" / "site.toml"
        settings.write_text(re.sub("^# engine =", "engine =", settings.read_text(), flags=re.MULTILINE))
        checked = federation.call("nexus-client", "check", "--site", "hospital-a")
        assert re.search("ok +engine: perforatedai", checked.stdout)
        before = {path for path in federation.home.rglob("*") if path.is_dir()}
        federation.start_all(AGENTS)
        federation.train(plan, approved_by=AGENTS)
        until("three rounds with all sites", lambda: len(federation.versions("mixed")) == 4)
        assert all(version["cohort"] == list(SITES) for version in federation.versions("mixed")[1:])
        for site in AGENTS:
            assert federation.site_status(site)["problem"] is None
            until(f"{site} has the last version", lambda s=site: federation.site_status(s)["version"] == 3)
        log = federation.log("hospital-a")
        assert "endrites" not in log, "the package keeps its prints to itself"
        new = {path for path in federation.home.rglob("*") if path.is_dir()} - before
        assert not [path for path in new if re.search("nexus$|pai|matplotlib", path.name, re.IGNORECASE)]


def test_an_engine_that_is_not_installed_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with Federation() as federation:
        federation.found("hospital-a")
        settings = federation.home / "sites" / "hospital-a" / "site.toml"
        settings.write_text(re.sub("^# engine =", "engine =", settings.read_text(), flags=re.MULTILINE))
        hidden = federation.home / "hidden" / "perforatedai"
        hidden.mkdir(parents=True)
        (hidden / "__init__.py").write_text("raise ImportError('not for this machine')")
        monkeypatch.setenv("PYTHONPATH", f"{hidden.parent}:{os.environ.get('PYTHONPATH', '')}")
        checked = federation.call("nexus-client", "check", "--site", "hospital-a")
        assert checked.returncode == 1
        assert "not for this machine" in checked.stdout
        assert "take engine out of site.toml" in checked.stdout
        agent = federation.start("hospital-a", wait=False)
        until("it ends", lambda: agent.poll() == 1)
        assert "pip install --no-deps perforatedai==3.2.9" in federation.log("hospital-a")
