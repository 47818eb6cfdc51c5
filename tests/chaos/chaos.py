"""``make chaos SECONDS=1800 SEED=7``: what years bring, in half an hour from a seed, to real processes.

A real server, one real agent, and four sites that train trivially.  Processes are killed, frozen and started in any
order, alone or all at once; connections are cut, slowed down or go dead in silence; disks fill up; clocks differ.
Dead cables and full disks need namespaces (``house.py``) and are left out where a machine allows none.  Whatever
happens: no committed version is lost or changed, no slot serves two inputs and no model opens twice, nothing but
masked updates leaves a site, audit logs are whole, every wait is explained by ``status``, and once left alone the run
goes on with all sites.
"""

import argparse
import collections
import contextlib
import json
import random
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nexus_common.audit import verify
from nexus_common.plan import Plan

from tests.chaos import house
from tests.chaos.network import Wire
from tests.processes.harness import Federation, until
from tests.processes.volume import Volume

AGENT = "hospital-a"
SIMULATED = ("bank-a", "bank-b", "bank-c", "hospital-b")
SITES = tuple(sorted((AGENT, *SIMULATED)))
CALM_SECONDS = 120.0  # in which a run must go on once everything is mended
AHEAD_SECONDS = 60.0  # a clock is wrong by up to so much, either way
SMALL_BYTES = 50_000  # an update has more
LOOK_SECONDS = 0.25
PAUSE_SECONDS = 5.0  # between two events, at most


class Chaos:
    """A federation, and what happens to it."""

    def __init__(self, federation: Federation, seed: int, *, housed: bool) -> None:
        self.federation, self.chance = federation, random.Random(seed)  # noqa: S311  what happens when, not keys
        self.counts, self.versions = collections.Counter[str](), list[tuple[int, str]]()
        self._disks = self._disks_of(federation) if housed else {}
        self._cables = {site: house.Cable(number) for number, site in enumerate(SITES, 1)} if housed else {}
        self._mend: list[tuple[float, Callable[[], None]]] = []  # when what is mended
        self._full: dict[str, float] = {}  # whose disk was full, until when that may be felt
        federation.found(*SITES, rows=60)
        self.wires = {site: Wire(federation.host, federation.port) for site in SITES}
        self.plan = self._plan()
        for site in SITES:
            self._start(site)
        federation.train(self.plan, approved_by=[AGENT])
        self._events = {
            self.kill_a_site: 5,
            self.kill_the_server: 3,
            self.kill_the_agent: 1,
            self.kill_everything: 1,
            self.cut_a_wire: 4,
            self.cut_all_wires: 1,
            self.slow_a_wire: 3,
            self.freeze: 2,
            **({self.kill_a_cable: 3, self.fill_a_disk: 3} if housed else {}),
        }

    @staticmethod
    def _disks_of(federation: Federation) -> dict[str, Volume]:
        places = {"server": federation.home / "server"} | {site: federation.keys(site).parent for site in SITES}
        return {name: house.disk(place) for name, place in places.items()}

    def _plan(self) -> Plan:
        settings = self.federation.home / "sites" / AGENT / "site.toml"
        address = f'server = "{self.federation.host}:{self.wires[AGENT].port}"'
        settings.write_text(re.sub('server = ".*"', address, settings.read_text()))
        plan = self.federation.plan(
            "chaos",
            SITES,
            rounds=1000,
            gather_seconds=5.0,
            local={"steps": 3, "batch_rows": 8, "clip_norm": 20.0},
            server={"optimiser": "fedavg", "step": 1.0},
            aggregation={"slots": 5, "range": 1.0},
            adapter={"salience": False},
            growth={"patience": 1, "trial_rounds": 6, "candidates": ("projection",)},
        )
        (self.federation.home / "plan.json").write_bytes(plan.canonical)
        return plan

    def _start(self, name: str) -> None:
        """A process as its machine would start it: the site's in its own network, with a clock that is wrong."""
        if name == "server":
            self.federation.start("server", wait=False)
            return
        cable = self._cables[name].enter if name in self._cables else []
        ahead = str(self.chance.uniform(-AHEAD_SECONDS, AHEAD_SECONDS))
        python = [*cable, sys.executable, "-m"]
        if name == AGENT:
            self.federation.start(AGENT, wait=False, program=[*python, "tests.processes.skewed_agent", ahead])
            return
        keys, plan = self.federation.keys(name), self.federation.home / "plan.json"
        address = f"{self.federation.host}:{self.wires[name].port}"
        with (self.federation.home / f"{name}.log").open("ab") as log:
            command = [*python, "tests.chaos.site", name, address, str(keys), str(plan), ahead]
            self.federation.processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def _again(self, name: str, pause: float) -> None:
        self.federation.kill(name)
        time.sleep(self.chance.random() * pause)
        self._start(name)

    def _later(self, seconds: float, mend: Callable[[], None]) -> None:
        self._mend.append((time.monotonic() + self.chance.random() * seconds, mend))

    def kill_a_site(self) -> None:
        """kill -9, and a start within a second."""
        self._again(self.chance.choice(SIMULATED), 1)

    def kill_the_agent(self) -> None:
        """The real one."""
        self._again(AGENT, 1)

    def kill_the_server(self) -> None:
        """And start it within two seconds."""
        self._again("server", 2)

    def kill_everything(self) -> None:
        """All machines lose their power, and are up again in any order."""
        names = ["server", *SITES]
        for name in names:
            self.federation.kill(name)
        self.chance.shuffle(names)
        for name in names:
            self._start(name)
            time.sleep(self.chance.random() / 2)

    def freeze(self) -> None:
        """A process stands still for up to four seconds."""
        process = self.federation.processes[self.chance.choice((*SIMULATED, "server"))]
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.random() * 4)
        process.send_signal(signal.SIGCONT)

    def slow_a_wire(self) -> None:
        """Each piece takes up to 0.2 s more."""
        wire = self.wires[self.chance.choice(SITES)]
        wire.delay = self.chance.random() / 5
        self._later(5, wire.mend)

    def cut_a_wire(self) -> None:
        """Connections end, and new ones are refused."""
        wire = self.wires[self.chance.choice(SITES)]
        wire.cut()
        self._later(12, wire.mend)

    def cut_all_wires(self) -> None:
        """The server's network is away."""
        for wire in self.wires.values():
            wire.cut()
            self._later(12, wire.mend)

    def kill_a_cable(self) -> None:
        """Packets are lost in silence."""
        cable = self._cables[self.chance.choice(SITES)]
        cable.dead()
        self._later(15, cable.mend)

    def fill_a_disk(self) -> None:
        """The server's, or a site's."""
        name = self.chance.choice(("server", "server", *SITES))
        self._disks[name].fill()
        seconds = self.chance.random() * 8
        self._full[name] = time.monotonic() + seconds + 10
        self._mend.append((time.monotonic() + seconds, self._disks[name].empty))

    def run(self, seconds: float) -> None:
        """Events until time is up, then calm; AssertionError where something does not hold."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            event = self.chance.choices(list(self._events), list(self._events.values()))[0]
            self.counts[event.__name__.replace("_", " ")] += 1
            event()
            pause = time.monotonic() + self.chance.random() * PAUSE_SECONDS
            while time.monotonic() < pause:
                self.look()
                time.sleep(LOOK_SECONDS)
        for _, mend in self._mend:
            mend()
        self._mend = []
        done = len(self.committed())
        until("the run goes on", lambda: self.look() or len(self.committed()) > done + 1, CALM_SECONDS)
        until("with all sites", lambda: self.look() or self.everybody(), CALM_SECONDS)
        self.check()

    def look(self) -> None:
        """Mend what is due; versions are only ever added, nobody ends without a reason, every wait is explained."""
        now = time.monotonic()
        due, self._mend = [one for one in self._mend if one[0] <= now], [one for one in self._mend if one[0] > now]
        for _, mend in due:
            mend()
        found = self.committed()
        assert found[: len(self.versions)] == self.versions, "a committed version is gone or another"
        self.versions = found
        for name, process in list(self.federation.processes.items()):
            if process.poll() is not None:
                log = self.federation.log(name)[-2000:]
                assert self._full.get(name, 0) > now, f"{name} ended with {process.returncode}:\n{log}"
                self.counts["ended on a full disk"] += 1
                time.sleep(1)
                self._start(name)  # as its service manager does
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
        try:
            return bool(self.federation.versions(self.plan.name)[-1]["cohort"] == list(SITES))
        except ConnectionError:
            return False

    def check(self) -> None:
        """What holds of everything that is left behind."""
        states = [version["state"] for version in self.federation.versions(self.plan.name)]
        self.counts["versions"], self.counts["midpoints"] = len(states), states.count("midpoint")
        self.counts["trials"] = len(self.federation.server_status()["trials"])
        self.federation.ask("nexus-server", "audit", "--verify")
        for site in SITES:
            log = self.federation.keys(site).parent / "audit.jsonl"
            verify(log)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            large = {line["purpose"] for line in lines if line.get("bytes", 0) > SMALL_BYTES and "purpose" in line}
            assert large <= {"masked"}, f"{site} sent {large}"
        for site in SIMULATED:
            self._check_notes(site, self.federation.home / f"{site}.notes")
        folder = self.federation.home / "server" / "state" / "versions"
        for number, name in self.committed():
            assert (folder / f"{name}.safetensors").exists(), f"version {number} has no file"

    def _check_notes(self, site: str, path: Path) -> None:
        opened, slots = collections.Counter[str](), dict[str, str]()
        for line in path.read_text().splitlines():
            kind, *rest = line.split()
            if kind in ("opened", "weights"):
                opened[rest[0]] += 1
                self.counts["openings"] += kind == "opened"
            else:
                assert slots.setdefault(rest[0], rest[1]) == rest[1], f"{site}: two inputs in one slot"
        twice = [model for model, count in opened.items() if count > 1]
        assert not twice, f"{site}: opened twice: {twice}"
        self.counts["inputs"] += len(slots)

    def close(self) -> None:
        """End the processes and the wires, and take the disks away."""
        for name in list(self.federation.processes):
            self.federation.kill(name)
        for wire in self.wires.values():
            wire.close()
        for disk in self._disks.values():
            house.take_away(disk)


def main() -> None:
    """Run, and say what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    arguments = parser.parse_args()
    housed = house.enter("tests.chaos.chaos")
    without = "" if housed else "; this machine allows no namespaces: without dead cables and full disks"
    print(f"chaos for {arguments.seconds:.0f} s, seed {arguments.seed}{without}", flush=True)
    with Federation(house.HOST if housed else "127.0.0.1") as federation:
        chaos = Chaos(federation, arguments.seed, housed=housed)
        try:
            chaos.run(arguments.seconds)
        except AssertionError:
            kept = Path(f"/tmp/nexus-chaos-{arguments.seed}")
            subprocess.run(["cp", "-r", str(federation.home), str(kept)], check=True)
            print(f"what it left is in {kept}; {dict(chaos.counts)}")
            raise
        finally:
            chaos.close()
    done = sum(count for event, count in chaos.counts.items() if event.startswith(("kill", "cut")))
    print(f"{done} kills and cuts, and all of it held: ", end="")
    print(", ".join(f"{count} x {what}" for what, count in sorted(chaos.counts.items())))


if __name__ == "__main__":
    main()
