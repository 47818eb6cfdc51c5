"""Real nexus-server and nexus-client processes in a temporary folder, and what tests ask of them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
from nexus_client import agent_api
from nexus_client.agent_api import StatusReport
from nexus_client.link import Handler, Link
from nexus_client.policy import change_policy
from nexus_client.site import SiteHome
from nexus_common import certs, rpc
from nexus_common.audit import AuditLog
from nexus_common.journal import Journal
from nexus_common.plan import Plan
from nexus_server import admin_api
from nexus_server.admin_api import Status, VersionList
from nexus_server.planning import plan_toml
from nexus_server.settings import admin_socket

from tests.plans import make_plan, member

BIN = Path(sys.executable).parent
SLOW = 90.0


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(what: str, good: Callable[[], Any], seconds: float = SLOW) -> Any:
    """Wait for something to become true and return it."""
    end = time.monotonic() + seconds
    while not (found := good()):
        assert time.monotonic() < end, f"timed out after {seconds} s: {what}"
        time.sleep(0.1)
    return found


class Federation:
    """A consortium's folders and processes; a context manager that leaves none behind."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self._folder = tempfile.TemporaryDirectory(prefix="nx")  # short: sockets lie in it
        self.home = Path(self._folder.name)
        self.port, self.enrol_port, metrics_port = free_ports(3)
        self.metrics_ports = {"server": metrics_port}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.links: dict[str, Link] = {}
        self._threads: dict[str, threading.Thread] = {}  # of links
        self.server_program = [str(BIN / "nexus-server")]
        self._log_from: dict[str, int] = {}  # where the log of the newest process begins

    def __enter__(self) -> "Federation":
        return self

    def __exit__(self, *_: object) -> None:
        for site in list(self.links):
            self.unlink(site)
        for process in self.processes.values():
            process.kill()
            process.wait()
        self._folder.cleanup()

    def call(self, program: str, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        home = self.home / ("server" if program == "nexus-server" else "sites")
        environment = os.environ | {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
        return subprocess.run(
            [str(BIN / program), "--home", str(home), *args],
            env=environment,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=300,
            check=False,
        )

    def ask(self, program: str, *args: str, stdin: str = "") -> Any:
        """A command's JSON; the test fails with its error where it fails."""
        done = self.call(program, "--json", *args, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, name: str, wait: bool = True, *, program: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start the server (``server``) or a site's agent, or ``program`` in its place, and wait until it answers."""
        usual = self.server_program if name == "server" else [str(BIN / "nexus-client")]
        command = [*(program or usual), *([] if name == "server" else ["--site", name])]
        home = self.home / ("server" if name == "server" else "sites")
        environment = os.environ | {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
        path = self.home / f"{name}.log"
        self._log_from[name] = path.stat().st_size if path.exists() else 0
        with path.open("ab") as log:
            process = subprocess.Popen(
                [*command, "--home", str(home)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self.processes[name] = process
        if wait:
            until(f"{name} is up", lambda: self._up(name))
        return process

    def start_all(self, names: Iterable[str]) -> None:
        """Start several agents side by side and wait for all."""
        for name in names:
            self.start(name, wait=False)
        for name in names:
            until(f"{name} is up", lambda n=name: self._up(n))

    def _up(self, name: str) -> bool:
        process = self.processes[name]
        assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.log(name)}"
        return "is ready at" in self.own_log(name) if name == "server" else self.connected(name)

    def own_log(self, name: str) -> str:
        """What the newest process of that name printed so far."""
        return (self.home / f"{name}.log").read_bytes()[self._log_from[name] :].decode(errors="replace")

    def connected(self, site: str) -> bool:
        """Whether an agent runs and has reached the server."""
        try:
            return self.site_status(site)["connection"] == "connected"
        except ConnectionError:
            return False

    def site_status(self, site: str) -> Any:
        """``nexus-client status`` of a running agent, without the second that a new process takes to ask for it."""
        return self._call(SiteHome.of(self.home / "sites", site).socket, agent_api.SERVICE, "status", StatusReport)

    def log(self, name: str) -> str:
        """What a process printed so far."""
        return (self.home / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def dies(self, name: str) -> None:
        """Wait until a process has ended by SIGKILL, which it sends itself."""
        process = self.processes[name]
        until(f"{name} dies", lambda: process.poll() is not None)
        assert process.returncode == -signal.SIGKILL, self.log(name)
        del self.processes[name]

    def end(self, name: str) -> int:
        """SIGTERM, and the exit code."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(30)

    def init(self, *options: str) -> None:
        """Make the consortium."""
        self.ask(
            "nexus-server",
            "init",
            "--address",
            f"{self.host}:{self.port}",
            "--enrol-address",
            f"{self.host}:{self.enrol_port}",
            "--contact",
            "Kim, ext. 12",
            *options,
        )
        self._set_metrics_port("server", self.home / "server" / "server.toml")

    def _set_metrics_port(self, name: str, settings: Path) -> None:
        """One of its own: other tests run beside this one."""
        port = f'metrics = "127.0.0.1:{self.metrics_ports[name]}"'
        settings.write_text(re.sub("metrics = .*", port, settings.read_text()))

    def metrics(self, name: str) -> str:
        """What the server (``server``) or a site's agent exposes."""
        found = httpx.get(f"http://127.0.0.1:{self.metrics_ports[name]}/metrics", trust_env=False, timeout=SLOW)
        assert found.status_code == 200, found.text
        return found.text

    def join(self, site: str, data: Path) -> None:
        """Invite and join."""
        people = ["--controller", f"Controller of {site}", "--contact", f"Dr {site}"]
        line = self.ask("nexus-server", "invite", site, *people)["line"]
        self.ask("nexus-client", "join", "--data", str(data), stdin=line + "\n")
        settings = self.home / "sites" / site / "site.toml"  # many sites share this machine's processors
        settings.write_text(re.sub("cpu_threads = [0-9]+", "cpu_threads = 1", settings.read_text()))
        (self.metrics_ports[site],) = free_ports(1)
        self._set_metrics_port(site, settings)
        self.policy(site, accept_no_record_privacy=True)

    def found(self, *sites: str, rows: int = 20) -> None:
        """Make the consortium, start its server, and enrol sites with a little text each."""
        self.init()
        self.start("server")
        for site in sites:
            self.join(site, write_rows(self.home / f"{site}.jsonl", rows, f"box of {site}"))

    def keys(self, site: str) -> Path:
        """Where an enrolled site's keys and certificates lie."""
        return self.home / "sites" / site / "state" / "keys"

    def link(self, site: str, handle: Handler) -> Link:
        """The site's real connection in this process, with ``handle`` in place of training: cheap, or a liar."""
        journal = Journal(AuditLog(self.keys(site).parent / "audit.jsonl"))
        made = Link(f"{self.host}:{self.port}", self.keys(site), handle, journal)
        self.links[site], self._threads[site] = made, threading.Thread(target=made.run, daemon=True)
        self._threads[site].start()
        until(f"{site} is connected", lambda: made.state == "connected")
        return made

    def unlink(self, site: str) -> None:
        """End a link, and wait for its thread."""
        self.links.pop(site).stop()
        self._threads.pop(site).join(SLOW)

    def server_status(self) -> Any:
        """``nexus-server status``, asked for in the same way."""
        return self._call(admin_socket(self.home / "server"), admin_api.SERVICE, "status", Status)

    def versions(self, run: str) -> list[dict[str, Any]]:
        """``nexus-server models``: the versions of one run."""
        found = self._call(admin_socket(self.home / "server"), admin_api.SERVICE, "models", VersionList)
        return [version for version in found["versions"] if version["run"] == run]

    @staticmethod
    def _call(socket: Path, service: str, method: str, answer: type[rpc.Body]) -> Any:
        with rpc.channel(rpc.local_address(socket)) as channel:
            return rpc.call(channel, service, method, rpc.Nothing(), answer).model_dump(mode="json")

    def policy(self, site: str, **values: Any) -> None:
        """Change a site's policy, as its administrator would in an editor."""
        change_policy(self.home / "sites" / site / "policy.toml", **values)

    def plan(self, name: str, sites: Iterable[str], **settings: Any) -> Plan:
        """A plan of enrolled sites with their real keys."""
        members = [member(site, certs.load_identity(self.keys(site) / "identity.key")) for site in sorted(sites)]
        quick = {"gather_seconds": 30.0, "round_deadline_seconds": 60.0}
        return make_plan((), **{"name": name, "sites": members, **quick, **settings})

    def write_plan(self, plan: Plan) -> Path:
        """The plan's file."""
        path = self.home / f"{plan.name}.toml"
        path.write_text(plan_toml(plan))
        return path

    def train(self, plan: Plan, *, approved_by: Iterable[str] | None = None) -> None:
        """Begin a run whose sites have approved it: all of the plan's, or those named."""
        for site in plan.names if approved_by is None else approved_by:
            self.policy(site, approved_plans=[plan.hash.hex()])
        self.ask("nexus-server", "train", str(self.write_plan(plan)), "--detach")
        until(f"run {plan.name} begins", lambda: self.server_status()["run"] == plan.name)

    def rest(self) -> None:
        """End what runs or waits to run, so that one test's failure stays its own."""
        if "server" not in self.processes:
            return
        for run in [self.server_status()[key] for key in ("run", "wanted")]:
            if run:
                self.call("nexus-server", "stop", run)
        until("nothing runs", lambda: self.server_status()["state"] not in ("running", "stopping"))

    def approve(self, site: str, name: str, words: str, *options: str) -> subprocess.CompletedProcess[str]:
        """What a person does at a site after the call."""
        command = ["plan", "approve", name, "--site", site, "--by", f"DPO of {site}", *options]
        return self.call("nexus-client", *command, stdin=words + "\n")

    def words(self, site: str, name: str) -> str:
        """The words that a site's people read out."""
        until(f"{site} has plan {name}", lambda: name in self.site_status(site)["proposed"])
        return " ".join(self.ask("nexus-client", "plan", "show", name, "--site", site)["words"])


def write_rows(path: Path, count: int, topic: str) -> Path:
    """A small site: questions and passages about numbered things."""
    rows = [
        {"query": f"where is {topic} number {i}", "passage": f"the {topic} with number {i} is kept in room {i * 7}"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
