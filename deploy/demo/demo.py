"""`make demo`: a real federation on this machine, in four processes, each site with its own folder, keys and text.

Everything it shows comes from the programs themselves (`--json`); it starts, asks, prints, and stops them.
"""

import argparse
import datetime as dt
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import show

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BIN = Path(sys.executable).parent
SITES = {
    "hospital-a": HERE / "hospital-a" / "questions.jsonl",
    "hospital-b": HERE / "hospital-b" / "faq.csv",
    "bank-a": HERE / "bank-a" / "handbook",
}
PEOPLE = {
    "hospital-a": ("St Example Hospital", "Dr A. Example, DPO"),
    "hospital-b": ("Riverside Hospital Trust", "B. Example, DPO"),
    "bank-a": ("Example Savings Bank", "C. Example, DPO"),
}
PURPOSE = "better search in the own patient leaflets, staff notes and handbooks"
PERFORATED = "hospital-b" if find_spec("perforatedai") else None  # Perforated AI's own package computes there
RUN_SECONDS = 900


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Demo:
    """The federation's folders and processes; ``stop`` ends all of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.processes: list[subprocess.Popen[bytes]] = []
        self.elsewhere: set[str] = set()

    def command(self, program: str, *args: str) -> list[str]:
        """A command line on the demo's folders."""
        folder = self.home / ("server" if program == "nexus-server" else "sites")
        return [str(BIN / program), "--home", str(folder), *args]

    def ask(self, program: str, *args: str, stdin: str | None = None) -> Any:
        """Run a command with --json and return what it printed; end the demo with its error where it fails."""
        command = self.command(program, "--json", *args)
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)
        if done.returncode:
            sys.exit(done.stderr.strip() or f"{program} {' '.join(args)} failed ({done.returncode})")
        return json.loads(done.stdout)

    def start(self, program: str, log: str, *args: str) -> None:
        """Start a program that runs until it is stopped."""
        with (self.home / log).open("w") as file:
            command = self.command(program, *args)
            self.processes.append(
                subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            )

    def until(self, what: str, good: Callable[[], bool], seconds: float = 60) -> None:
        """Wait; end the demo where a process ended or it takes too long."""
        end = time.monotonic() + seconds
        while not good():
            self.look()
            if time.monotonic() > end:
                sys.exit(f"timed out after {seconds:.0f} s: {what}; see {self.home}/*.log")
            time.sleep(0.1)

    def look(self) -> None:
        """All processes must be there; remember remote addresses other than loopback that they are connected to."""
        for process in self.processes:
            if process.poll() is not None:
                sys.exit(f"{process.args} ended with {process.returncode}; see {self.home}/*.log")
            try:
                found = psutil.Process(process.pid).net_connections(kind="inet")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            self.elsewhere |= {c.raddr.ip for c in found if c.raddr and c.raddr.ip not in ("127.0.0.1", "::1")}

    def account(self) -> list[dict[str, Any]]:
        """End the agents, and hold each site's audit log against what the server counted."""
        server, *agents = self.processes
        _end(agents)
        self.processes = [server]
        counted = {line["site"]: line["bytes_received"] for line in self.ask("nexus-server", "sites")["sites"]}
        found = []
        for site in SITES:
            log = self.ask("nexus-client", "audit", "--site", site)
            traffic = [line["bytes"] for line in log["entries"] if line["event"] == "traffic"]
            facts = {"lines": log["lines"], "head": log["head"], "bytes_logged": sum(traffic)}
            found.append({"site": site, **facts, "bytes_counted": counted[site]})
        return found

    def attack(self) -> dict[str, Any]:
        """What an attack would find in one more round's messages of hospital-a; the agents have ended."""
        show.step("and an attack: which of hospital-a's questions were trained on?")
        import replay  # noqa: PLC0415  torch takes seconds, and until here nothing needs it

        return replay.attacked(self.home / "sites", "hospital-a")

    def stop(self) -> None:
        """End all processes that still run, the server last."""
        _end(self.processes)
        self.processes = []

    def enrol(self) -> None:
        """Server up, three sites enrolled by one pasted line each, three agents up."""
        show.step("nexus-server init: state folder, keys and the consortium's certificate authority")
        port, enrol_port = (f"127.0.0.1:{free}" for free in free_ports(2))
        self.ask("nexus-server", "init", "--name", "demo", "--address", port, "--enrol-address", enrol_port)
        self.start("nexus-server", "server.log")
        self.until("the server is up", (self.home / "server" / "admin.sock").exists)
        for site, data in SITES.items():
            controller, contact = PEOPLE[site]
            asked = self.ask("nexus-server", "invite", site, "--controller", controller, "--contact", contact)
            self.ask("nexus-client", "join", "--data", str(data), stdin=asked["line"] + "\n")
            self._edit(site)
            self.start("nexus-client", f"{site}.log", "--site", site)
            show.step(f"{site} joined with one pasted line; its agent runs; its text: {data.relative_to(ROOT)}")
        if PERFORATED:
            show.step(
                f"{PERFORATED} computes with Perforated AI's own package, the others with ours: the same to the bit"
            )

    def _edit(self, site: str) -> None:
        """What an administrator does in an editor: fewer threads (three sites share this machine), policy, engine."""
        processors, folder = os.cpu_count() or 1, self.home / "sites" / site
        for name, old, new in (
            ("site.toml", f"cpu_threads = {processors}", f"cpu_threads = {max(1, processors // 2)}"),
            ("site.toml", "# engine =", "engine =" if site == PERFORATED else "# engine ="),
            ("policy.toml", "accept_no_record_privacy = false", "accept_no_record_privacy = true"),
        ):
            path = folder / name
            path.write_text(path.read_text().replace(old, new))

    def approve(self) -> None:
        """One plan, proposed to three sites, whose people compare its words and approve it."""
        show.step("nexus-server plan new, plan propose: purpose, people, keys and every setting; clip from a dry run")
        file, end = self.home / "plan.toml", dt.date.today() + dt.timedelta(days=365)
        options = ["--purpose", PURPOSE, "--end", str(end), "--recipe", str(HERE / "recipe.toml")]
        self.ask("nexus-server", "plan", "new", "demo", "--file", str(file), *options)
        self.ask("nexus-server", "plan", "propose", str(file))
        for site in SITES:
            self.until(f"{site} has the plan", lambda s=site: self._status(s)["proposed"] == ["demo"])
        with ThreadPoolExecutor() as pool:
            shown = list(pool.map(lambda s: self.ask("nexus-client", "plan", "show", "--site", s)["words"], SITES))
        show.step("on the telephone each site reads out the plan's twelve words; all must be equal:")
        show.words(shown)
        for (site, (_, person)), heard in zip(PEOPLE.items(), [*shown[1:], shown[0]], strict=True):
            command = ["plan", "approve", "--site", site, "--by", person]
            self.ask("nexus-client", *command, stdin=" ".join(heard) + "\n")
            show.step(f"{site}: nexus-client plan approve --by '{person}', with the words as another site read them")

    def _status(self, site: str) -> Any:
        return self.ask("nexus-client", "status", "--site", site)

    def train(self) -> dict[str, Any]:
        """Start the run and show its rounds as they are made; the last status."""
        show.step("nexus-server train demo: each site embeds its own text once, then the rounds")
        self.ask("nexus-server", "train", "--detach", "demo")
        shown, status = 0, dict[str, Any]()

        def ended() -> bool:
            nonlocal shown, status
            status = self.ask("nexus-server", "status")
            while shown < status["round"]:
                shown += 1
                show.round_done(status, shown)
            return status["state"] not in (None, "running")

        self.until("the run's last round", ended, RUN_SECONDS)
        for site in SITES:
            self.until(f"{site} has the last version", lambda s=site: self._status(s)["version"] == status["round"])
        return status

    def evaluate(self) -> list[dict[str, Any]]:
        """Every site's own figures, side by side."""
        show.step("each site judges at home, on its own hold-out: keyword search, base, own models; one is chosen")
        with ThreadPoolExecutor() as pool:
            reports = list(pool.map(lambda site: self.ask("nexus-client", "evaluate", "--site", site), SITES))
        self.look()
        return reports

    def report(self) -> None:
        """The run's page: what the server may know of it, for a browser."""
        self.ask("nexus-server", "report", "demo", "--output", str(self.home / show.PAGE))


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        process.terminate()
    for process in reversed(processes):
        process.wait(20)


def main() -> None:
    """The whole demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=ROOT / ".demo", help="folder for everything; emptied first")
    demo = Demo(parser.parse_args().home.absolute())
    began = time.monotonic()
    shutil.rmtree(demo.home, ignore_errors=True)
    (demo.home / "sites").mkdir(parents=True)
    show.title()
    try:
        demo.enrol()
        demo.approve()
        status = demo.train()
        reports = demo.evaluate()
        demo.report()
        logs = demo.account()
        found = demo.attack()
    finally:
        demo.stop()
    result = show.summary(reports, status, time.monotonic() - began) | {"audit": logs, "attack": found}
    (demo.home / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
    show.everything(reports, result, demo.elsewhere, demo.home, BIN)


if __name__ == "__main__":
    main()
