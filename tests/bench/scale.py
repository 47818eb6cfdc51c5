"""``make bench-scale``: 40 sites at one server, and 1,000 rounds in one; real processes on loopback, no training.

``python -m tests.bench.scale [connections] [rounds]`` runs one of the two, or both.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from nexus_common.plan import Plan
from rich.console import Console

from tests.bench.rounds import enrol
from tests.processes.harness import Federation, until

CONNECTIONS, PROCESSES, IDLE_SECONDS, ROUNDS = 40, 4, 60.0, 20
LONG, EVERY, SETTLED = 1000, 50, (200, 500)  # rounds, a sample every so many, slopes over those after so many
console = Console(width=150)


@dataclass(frozen=True)
class Sample:
    """What the server has used up to a moment."""

    at: float
    cpu_seconds: float
    resident: int
    threads: int

    @classmethod
    def of(cls, server: psutil.Process) -> "Sample":
        """Now."""
        times = server.cpu_times()
        return cls(time.monotonic(), times.user + times.system, server.memory_info().rss, server.num_threads())


@contextmanager
def sites(federation: Federation, plan: Plan, processes: int) -> Iterator[None]:
    """All sites of a plan, connected, spread over some processes."""
    path, started = federation.home / f"{plan.name}.json", list[subprocess.Popen[bytes]]()
    path.write_bytes(plan.canonical)
    keys = [str(federation.keys(name)) for name in plan.names]
    try:
        for part in range(processes):
            command = ["-m", "tests.bench.site", f"127.0.0.1:{federation.port}", str(path), *keys[part::processes]]
            started.append(subprocess.Popen([sys.executable, *command]))
        until("all are connected", lambda: len(federation.server_status()["connected"]) == len(plan.names))
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def watched(federation: Federation, plan: Plan, server: psutil.Process, every: int) -> list[tuple[int, Sample, int]]:
    """Run a plan to its end; rounds done, the server, and bytes in its folder, every so many rounds."""
    federation.train(plan, approved_by=())
    found = list[tuple[int, Sample, int]]()
    while len(found) < plan.rounds // every:
        status = federation.server_status()
        assert status["failed_rounds"] < 3, status
        if status["round"] >= (len(found) + 1) * every:
            found.append((status["round"], Sample.of(server), folder_bytes(federation.home / "server")))
        time.sleep(0.05)
    return found


def slopes(found: list[tuple[int, Sample, int]]) -> tuple[float, float]:
    """Bytes a round by which memory and folder grow: least squares."""
    rounds = [done for done, _, _ in found]
    memory, folder = [sample.resident for _, sample, _ in found], [size for _, _, size in found]
    return tuple(float(np.polyfit(rounds, values, 1)[0]) for values in (memory, folder))  # type: ignore[return-value]


def connections() -> None:
    """40 sites, at rest and in rounds."""
    names = [f"site-{i:02}" for i in range(CONNECTIONS)]
    with Federation() as federation:
        enrol(federation, names)
        server = psutil.Process(federation.start("server").pid)
        time.sleep(5)
        alone = Sample.of(server)
        plan = federation.plan("scale", names, rounds=ROUNDS, round_deadline_seconds=300.0, gather_seconds=60.0)
        with sites(federation, plan, PROCESSES):
            time.sleep(5)
            began = Sample.of(server)
            time.sleep(IDLE_SECONDS)
            idle = Sample.of(server)
            report = watched(federation, plan, server, 1)
            most = max(sample.resident for _, sample, _ in report)
            versions = [version for version in federation.versions(plan.name) if version["number"]]
            first, last = report[0][1], report[-1][1]
    assert all(len(version["cohort"]) == CONNECTIONS for version in versions), "a site was missing in a sum"
    console.print(
        f"{CONNECTIONS} sites at rest for {IDLE_SECONDS:.0f} s: server {share(began, idle):.1f} % of a core, "
        f"{idle.resident / 1e6:.0f} MB resident ({alone.resident / 1e6:.0f} MB without sites: "
        f"{(idle.resident - alone.resident) / CONNECTIONS / 1e3:.0f} kB each), {idle.threads} threads\n"
        f"{len(versions)} masked rounds, all {CONNECTIONS} in each sum: median "
        f"{statistics.median(version['seconds'] for version in versions):.2f} s, slowest "
        f"{max(version['seconds'] for version in versions):.2f} s; server {share(first, last):.0f} % of a core, "
        f"{(last.cpu_seconds - first.cpu_seconds) / (len(report) - 1):.2f} CPU s a round, at most {most / 1e6:.0f} MB"
    )


def share(begin: Sample, end: Sample) -> float:
    """Percent of a core between two moments."""
    return 100 * (end.cpu_seconds - begin.cpu_seconds) / (end.at - begin.at)


def rounds() -> None:
    """1,000 rounds of three sites in one server process: does its memory grow?"""
    names = [f"site-{i:02}" for i in range(3)]
    with Federation() as federation:
        enrol(federation, names)
        server = psutil.Process(federation.start("server").pid)
        plan = federation.plan("long", names, rounds=LONG)
        began = time.monotonic()
        with sites(federation, plan, 1):
            found = watched(federation, plan, server, EVERY)
        seconds = time.monotonic() - began
    console.print(
        f"{LONG} masked rounds of {len(names)} sites in {seconds:.0f} s, resident MB every {EVERY}: "
        f"{' '.join(f'{sample.resident / 1e6:.1f}' for _, sample, _ in found)}"
    )
    for settled in SETTLED:
        memory, folder = slopes([each for each in found if each[0] > settled])
        console.print(
            f"after the first {settled}: {memory / 1e3:+.2f} kB of memory a round, {folder / 1e3:+.1f} kB of its folder"
        )


def main() -> None:
    """Measure and print."""
    wanted = sys.argv[1:] or ["connections", "rounds"]
    for part in (connections, rounds):
        if part.__name__ in wanted:
            part()


if __name__ == "__main__":
    main()
