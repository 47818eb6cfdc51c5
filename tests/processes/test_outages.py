"""An outage costs rounds, never the run: of one site's network, of everybody's, of the server; and a site shut out.

Two sites are real agents, two are real connections from here.  Pauses and timeouts are a small part of the product's
(``hasty_server.py``, ``hasty_agent.py``), so that seconds are to them what an hour is to it.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nexus_client import link
from nexus_common import certs, rpc, wire
from nexus_common import flower as fl
from nexus_server import admin_api
from nexus_server.settings import admin_socket

from tests.chaos.network import Wire
from tests.federation.sim import SimSite
from tests.processes.harness import Federation, until

pytestmark = pytest.mark.processes
SIMULATED, AGENTS = ("bank-a", "bank-b"), ("hospital-a", "hospital-b")
SITES = (*SIMULATED, *AGENTS)
RUN = "outages"
SILENCE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 0.5  # of a site, as in hasty_agent.py
OUTAGE_SECONDS = 6.0  # against that, and 2 s, the longest timeout and pause of the server
DEADLINE_SECONDS, GATHER_SECONDS = 5.0, 1.0
VERSION_BYTES = 591_000


class Held(SimSite):
    """A site that can be made to wait while it trains."""

    def __init__(self, *about: Any) -> None:
        super().__init__(*about)
        self.free, self.waits = threading.Event(), threading.Event()
        self.free.set()

    def __call__(self, message: wire.Message) -> wire.Message:
        if isinstance(message, wire.TrainRound) and not self.free.is_set():
            self.waits.set()
            self.free.wait(60)
        return super().__call__(message)


class Outages:
    """The federation, and a wire before each of its sites."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        federation.found(*SITES, rows=60)
        self.wires = {site: Wire(federation.host, federation.port) for site in SITES}
        settings = {
            "local": {"steps": 1, "batch_rows": 8, "clip_norm": 20.0},
            "server": {"optimiser": "fedavg", "step": 1.0},
        }
        plan = federation.plan(
            RUN,
            SITES,
            rounds=1000,
            round_deadline_seconds=DEADLINE_SECONDS,
            gather_seconds=GATHER_SECONDS,
            aggregation={"slots": 20, "range": 1.0},
            adapter={"salience": False},
            **settings,
        )
        self.held = Held("bank-a", plan, certs.load_identity(federation.keys("bank-a") / "identity.key"))
        for site in SIMULATED:
            made = self.held if site == "bank-a" else SimSite(site, plan, self._identity(site))
            self._link(site, made)
        for site in AGENTS:
            file = federation.home / "sites" / site / "site.toml"
            address = f'server = "127.0.0.1:{self.wires[site].port}"'
            file.write_text(re.sub('server = ".*"', address, file.read_text()))
            federation.start(site, wait=False, program=[sys.executable, str(beside("hasty_agent.py"))])
        for site in AGENTS:
            until(f"{site} is up", lambda s=site: federation.connected(s))
        federation.train(plan, approved_by=AGENTS)
        self.with_all()

    def _identity(self, site: str) -> Any:
        return certs.load_identity(self.federation.keys(site) / "identity.key")

    def _link(self, site: str, handle: Callable[[wire.Message], wire.Message]) -> None:
        main, self.federation.port = self.federation.port, self.wires[site].port
        self.federation.link(site, handle)
        self.federation.port = main

    @property
    def status(self) -> Any:
        return self.federation.server_status()

    def hashes(self) -> list[str]:
        """What was committed so far; none of it may change."""
        return [version["hash"] for version in self.federation.versions(RUN)]

    def with_all(self) -> None:
        """Wait until the newest sum is one of all sites."""
        until("all sites are in a sum", lambda: set(self.status["cohort"]) == set(SITES))

    def close(self) -> None:
        self.held.free.set()
        for one in self.wires.values():
            one.close()


def beside(name: str) -> Path:
    return Path(__file__).with_name(name)


@pytest.fixture(scope="module")
def outages() -> Iterator[Outages]:
    with Federation() as federation, pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "FIRST_PAUSE_SECONDS", 0.05)
        patch.setattr(link, "LONGEST_PAUSE_SECONDS", LONGEST_PAUSE_SECONDS)
        patch.setattr(fl, "HEARTBEAT_SECONDS", 0.5)
        notes = str(federation.home / "notes")
        federation.server_program = [sys.executable, str(beside("hasty_server.py")), notes, str(SILENCE_SECONDS)]
        made = Outages(federation)
        yield made
        made.close()


def test_a_site_that_is_away_for_long_costs_the_others_nothing_and_comes_back_by_itself(outages: Outages) -> None:
    site, before = AGENTS[0], outages.hashes()
    outages.wires[site].cut()
    ends = time.monotonic() + OUTAGE_SECONDS
    until("it is named", lambda: outages.status["missing"] == [site])
    assert outages.federation.site_status(site)["connection"].startswith("no connection to ")
    done = outages.status["round"]
    until("rounds go on", lambda: outages.status["round"] >= done + 2)
    assert set(outages.status["cohort"]) == set(SITES) - {site}
    time.sleep(max(0.0, ends - time.monotonic()))
    outages.wires[site].mend()
    outages.with_all()
    assert outages.hashes()[: len(before)] == before


def test_an_outage_of_all_sites_costs_its_rounds_and_never_the_run(outages: Outages) -> None:
    for one in outages.wires.values():
        one.cut()
    ends = time.monotonic() + OUTAGE_SECONDS
    until("it waits", lambda: outages.status["phase"] in ("waiting", "opening") and outages.status["missing"])
    before = outages.hashes()
    time.sleep(max(0.0, ends - time.monotonic()))
    assert outages.hashes() == before
    assert outages.status["state"] == "running"
    for one in outages.wires.values():
        one.mend()
    until("it goes on", lambda: len(outages.hashes()) > len(before))
    outages.with_all()
    assert outages.hashes()[: len(before)] == before
    for site in AGENTS:
        pauses = re.findall(r"again in ([0-9.]+) s", outages.federation.own_log(site))
        assert max(map(float, pauses)) == LONGEST_PAUSE_SECONDS, "they grow, and not for ever"


def test_a_server_that_is_away_for_longer_than_a_round_finds_all_its_sites_again(outages: Outages) -> None:
    federation = outages.federation
    outages.held.waits.clear()
    outages.held.free.clear()
    assert outages.held.waits.wait(60), "a round is in work"
    before = outages.hashes()
    federation.kill("server")
    outages.held.free.set()
    ends = time.monotonic() + 1.2 * (DEADLINE_SECONDS + GATHER_SECONDS)
    for site in AGENTS:
        until(f"{site} says what it waits for", lambda s=site: "no connection to" in connection(federation, s))
        assert f"127.0.0.1:{outages.wires[site].port}" in connection(federation, site)
    time.sleep(max(0.0, ends - time.monotonic()))
    federation.start("server")
    until("the run goes on", lambda: len(outages.hashes()) > len(before) + 1)
    outages.with_all()
    assert outages.hashes()[: len(before)] == before


def test_a_site_revoked_while_it_downloads_a_version_gets_nothing_more_of_it(outages: Outages) -> None:
    federation, site = outages.federation, AGENTS[1]
    narrow = outages.wires[site]
    narrow.cut()
    until("it is away", lambda: outages.status["missing"] == [site])
    narrow.mend()
    narrow.chunk, narrow.delay, began = 4096, 0.02, narrow.down
    until("it is in the middle of a version", lambda: narrow.down - began > VERSION_BYTES / 4)
    with rpc.channel(rpc.local_address(admin_socket(federation.home / "server"))) as channel:
        request = admin_api.SiteName(site=site)
        told = rpc.call(channel, admin_api.SERVICE, "revoke", request, admin_api.SiteList)
    confirmed = narrow.down
    assert confirmed - began < VERSION_BYTES / 2, "the rest was still to come"
    assert site not in {line.site for line in told.sites}
    done = outages.status["round"]
    until("the others go on", lambda: outages.status["round"] >= done + 2)
    assert narrow.down - confirmed < 40_000, "what was on the wire, and refusals"
    assert set(outages.status["cohort"]) == set(SITES) - {site}
    until("it is named", lambda: outages.status["missing"] == [site])
    until("the site says why", lambda: "does not know this site's certificate" in connection(federation, site))
    events = [(entry["event"], entry.get("site")) for entry in federation.ask("nexus-server", "audit")["entries"]]
    assert ("revoked", site) in events
    assert site not in {line["site"] for line in federation.ask("nexus-server", "sites")["sites"]}


def connection(federation: Federation, site: str) -> str:
    """What an agent's status says of its connection."""
    return str(federation.site_status(site)["connection"])
