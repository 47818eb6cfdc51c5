"""A site behind a real proxy, which it knows from site.toml alone: joining, checking and training go through it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from nexus_common import certs

from tests.federation.sim import SimSite
from tests.processes.harness import Federation, free_ports, until, write_rows

SITES, AGENT = ("bank-a", "bank-b", "hospital-a"), "hospital-a"
pytestmark = [
    pytest.mark.long,
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("tinyproxy") is None, reason="needs tinyproxy (apt-get install tinyproxy)"),
]


class Proxy:
    """tinyproxy, and what it logs."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.log = folder / "proxy.log"
        settings = folder / "proxy.conf"
        settings.write_text(
            f"Port {self.port}\nListen 127.0.0.1\nTimeout 60\nAllow 127.0.0.1\nMaxClients 50\n"
            f'LogFile "{self.log}"\nLogLevel Connect\nPidFile "{folder / "proxy.pid"}"\n'
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = ["tinyproxy", "-d", "-c", str(settings)]
        self.start()
        until("the proxy is up", self.log.exists)

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def tunnels(self, port: int) -> int:
        """How many connections to a port were asked for."""
        return self.log.read_text().count(f"CONNECT 127.0.0.1:{port} ")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    made = Proxy(tmp_path)
    yield made
    made.end()


def test_a_site_joins_checks_and_trains_through_its_proxy_and_outlives_the_proxys_restart(proxy: Proxy) -> None:
    with Federation() as federation:
        federation.found(*SITES[:2])
        rows = write_rows(federation.home / "rows.jsonl", 60, "box")
        line = federation.ask("nexus-server", "invite", AGENT)["line"]
        wrong = federation.call("nexus-client", "join", "--proxy", "socks5://127.0.0.1:1", stdin=line + "\n")
        assert wrong.returncode == 2
        assert "takes CONNECT" in wrong.stderr
        dead = federation.call("nexus-client", "join", "--proxy", "http://127.0.0.1:1", stdin=line + "\n")
        assert dead.returncode == 1
        assert "through http://127.0.0.1:1" in dead.stderr
        federation.ask("nexus-client", "join", "--data", str(rows), "--proxy", proxy.url, stdin=line + "\n")
        federation.policy(AGENT, accept_no_record_privacy=True)
        assert f'proxy = "{proxy.url}"' in (federation.home / "sites" / AGENT / "site.toml").read_text()
        assert proxy.tunnels(federation.enrol_port) >= 2
        assert proxy.tunnels(federation.port) == 0
        checked = federation.call("nexus-client", "check", "--site", AGENT)
        assert "answers over TLS 1.3 with this consortium's certificate" in checked.stdout
        assert proxy.tunnels(federation.port) == 1
        recipe = {"local": {"steps": 5, "batch_rows": 8}, "adapter": {"salience": False}}
        plan = federation.plan("proxied", SITES, rounds=1000, **recipe)
        for site in SITES[:2]:
            federation.link(site, SimSite(site, plan, certs.load_identity(federation.keys(site) / "identity.key")))
        federation.start(AGENT)
        federation.train(plan, approved_by=[AGENT])
        until("a round is done", lambda: federation.server_status()["round"] >= 1)
        assert AGENT in federation.versions("proxied")[1]["cohort"]
        proxy.end()
        until("it is away", lambda: not federation.connected(AGENT))
        log = federation.own_log(AGENT)
        assert "no connection to" in log
        proxy.start()
        done = federation.server_status()["round"]
        until("it goes on", lambda: federation.server_status()["round"] > done + 1)
