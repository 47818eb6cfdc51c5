"""``make chaos SECONDS=1800 SEED=7``: kills, cuts, delays, freezes of real processes from a seed, and what must hold.

A real server, one real agent, and four sites that train trivially, each behind a wire of its own.  Whatever happens: no
committed version is lost or changed, no slot serves two inputs and no model opens twice, audit logs are whole, every
wait is explained by ``status``, and once left alone the run goes on with all sites.
"""

import argparse
import collections
import contextlib
import random
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from nexus_common.audit import verify
from nexus_common.plan import Plan

from tests.chaos.network import Wire
from tests.processes.harness import Federation, until

AGENT = "hospital-a"
SIMULATED = ("bank-a", "bank-b", "bank-c", "hospital-b")
SITES = tuple(sorted((AGENT, *SIMULATED)))
CALM_SECONDS = 120.0  # in which a run must go on once everything is mended
EVENTS = {
    "kill a site": 5,
    "kill the server": 3,
    "cut a wire": 5,
    "cut all wires": 1,
    "slow a wire": 3,
    "freeze": 2,
    "kill the agent": 1,
}


class Chaos:
    """A federation, and what happens to it."""

    def __init__(self, federation: Federation, seed: int) -> None:
        self.federation, self.chance = federation, random.Random(seed)  # noqa: S311  what happens when, not keys
        self.counts, self.versions = collections.Counter[str](), list[tuple[int, str]]()
        federation.found(*SITES, rows=60)
        self.wires = {site: Wire(federation.port) for site in SITES}
        self.plan = self._plan()
        self._mend: list[tuple[float, str]] = []  # when which wire is mended
        for site in SIMULATED:
            self._start(site)
        self._start(AGENT)
        federation.train(self.plan, approved_by=[AGENT])

    def _plan(self) -> Plan:
        settings = self.federation.home / "sites" / AGENT / "site.toml"
        address = f'server = "127.0.0.1:{self.wires[AGENT].port}"'
        settings.write_text(re.sub('server = ".*"', address, settings.read_text()))
        plan = self.federation.plan(
            "chaos",
            SITES,
            rounds=1000,
            gather_seconds=5.0,
            local={"steps": 3, "batch_rows": 8, "clip_norm": 20.0},
            server={"step": 1.0},
            aggregation={"slots": 5, "range": 1.0},
            adapter={"salience": False},
        )
        (self.federation.home / "plan.json").write_bytes(plan.canonical)
        return plan

    def _start(self, site: str) -> None:
        if site == AGENT:
            self.federation.start(AGENT, wait=False)
            return
        keys, plan = self.federation.keys(site), self.federation.home / "plan.json"
        address = f"127.0.0.1:{self.wires[site].port}"
        with (self.federation.home / f"{site}.log").open("ab") as log:
            command = [sys.executable, "-m", "tests.chaos.site", site, address, str(keys), str(plan)]
            self.federation.processes[site] = subprocess.Popen(command, stdout=log, stderr=log)

    def happen(self) -> None:
        """One event."""
        event = self.chance.choices(list(EVENTS), list(EVENTS.values()))[0]
        site, now = self.chance.choice(SIMULATED), time.monotonic()
        self.counts[event] += 1
        if event == "kill the server":
            self.federation.kill("server")
            time.sleep(self.chance.random() * 2)
            self.federation.start("server", wait=False)
        elif event in ("kill a site", "kill the agent"):
            victim = AGENT if event == "kill the agent" else site
            self.federation.kill(victim)
            time.sleep(self.chance.random())
            self._start(victim)
        elif event == "freeze":
            process = self.federation.processes[self.chance.choice((*SIMULATED, "server"))]
            process.send_signal(signal.SIGSTOP)
            time.sleep(self.chance.random() * 4)
            process.send_signal(signal.SIGCONT)
        elif event == "slow a wire":
            self.wires[site].delay = self.chance.random() / 5
            self._mend.append((now + 5, site))
        else:
            for one in SITES if event == "cut all wires" else (self.chance.choice(SITES),):
                self.wires[one].cut()
                self._mend.append((now + self.chance.random() * 12, one))

    def run(self, seconds: float) -> None:
        """Events until time is up, then calm; AssertionError where something does not hold."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.happen()
            pause = time.monotonic() + self.chance.random() * 3
            while time.monotonic() < pause:
                self.look()
                time.sleep(0.25)
        for wire in self.wires.values():
            wire.mend()
        done = len(self.committed())
        until("the run goes on", lambda: len(self.committed()) > done + 1, CALM_SECONDS)
        until("with all sites", self.everybody, CALM_SECONDS)
        self.check()

    def look(self) -> None:
        """Mend what is due; versions are only ever added, and every wait is explained."""
        due, now = [one for one in self._mend if one[0] <= time.monotonic()], time.monotonic()
        self._mend = [one for one in self._mend if one[0] > now]
        for _, site in due:
            self.wires[site].mend()
        found = self.committed()
        assert found[: len(self.versions)] == self.versions, "a committed version is gone or another"
        self.versions = found
        with contextlib.suppress(ConnectionError, FileNotFoundError):
            status = self.federation.server_status()
            if status["state"] == "running" and status["phase"] in ("waiting", "opening"):
                assert status["missing"], f"a wait for nobody: {status}"

    def committed(self) -> list[tuple[int, str]]:
        """Numbers and hashes, as they lie on the server's disk."""
        path = self.federation.home / "server" / "state" / "registry.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            query = "SELECT number, hash FROM versions WHERE run = ? ORDER BY number"
            return [tuple(row) for row in database.execute(query, (self.plan.name,))]

    def everybody(self) -> bool:
        """Whether all sites are in the newest sum."""
        versions = self.federation.versions(self.plan.name)
        return bool(versions[-1]["cohort"] == list(SITES))

    def check(self) -> None:
        """What holds of everything that is left behind."""
        states = [version["state"] for version in self.federation.versions(self.plan.name)]
        self.counts["versions"], self.counts["midpoints"] = len(states), states.count("midpoint")
        self.federation.ask("nexus-server", "audit", "--verify")
        self.federation.ask("nexus-client", "audit", "--site", AGENT, "--verify")
        for site in SIMULATED:
            state = self.federation.keys(site).parent
            verify(state / "audit.jsonl")
            self._check_notes(site, state / "notes")
        folder = self.federation.home / "server" / "state" / "versions"
        for number, name in self.committed():
            assert (folder / f"{name}.safetensors").exists(), f"version {number} has no file"

    def _check_notes(self, site: str, path: Path) -> None:
        opened, slots = collections.Counter[str](), dict[str, str]()
        for line in path.read_text().splitlines():
            kind, *rest = line.split()
            if kind == "opened":
                opened[rest[0]] += 1
            else:
                assert slots.setdefault(rest[0], rest[1]) == rest[1], f"{site}: two inputs in one slot"
        twice = [model for model, count in opened.items() if count > 1]
        assert not twice, f"{site}: opened twice: {twice}"
        self.counts["inputs"] += len(slots)
        self.counts["openings"] += len(opened)

    def close(self) -> None:
        """End the wires."""
        for wire in self.wires.values():
            wire.close()


def main() -> None:
    """Run, and say what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    arguments = parser.parse_args()
    print(f"chaos for {arguments.seconds:.0f} s, seed {arguments.seed}", flush=True)
    with Federation() as federation:
        chaos = Chaos(federation, arguments.seed)
        try:
            chaos.run(arguments.seconds)
        except AssertionError:
            kept = Path(f"/tmp/nexus-chaos-{arguments.seed}")
            subprocess.run(["cp", "-r", str(federation.home), str(kept)], check=True)
            print(f"what it left is in {kept}; {dict(chaos.counts)}")
            raise
        finally:
            chaos.close()
    print("all of it held: " + ", ".join(f"{count} x {what}" for what, count in sorted(chaos.counts.items())))


if __name__ == "__main__":
    main()
