"""Wall time of a masked round beside a plainly averaged one: real server, real site processes, loopback, no training.

Both have the same connections, audit logs and commits to disk, and take turns.  The difference is what secure
aggregation costs a federation whose sites train for no time at all.
"""

import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from nexus_common import wire
from nexus_common.plan import Plan
from nexus_server.aggregate import make_optimiser
from nexus_server.app import Server
from nexus_server.exchange import Failure
from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.site import PLAIN
from tests.processes.harness import Federation, until, write_rows

SIZES, ROUNDS, MORE_SECONDS, TIMES = (3, 16), 20, 0.3, 3.0
TRIPS = ("train", "round", "commit-set", "open")
console = Console(width=150)
logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # which tells of questions that were held to the end


class Timed:
    """An exchange that keeps how long each trip took."""

    def __init__(self, exchange: object) -> None:
        self.inner, self.seconds = exchange, dict[str, list[float]]()

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def ask(self, messages: Mapping[str, wire.Message], timeout: float) -> dict[str, wire.Message | Failure]:
        """As the exchange does."""
        began = time.monotonic()
        answers = self.inner.ask(messages, timeout)
        self.seconds.setdefault(wire.purpose(next(iter(messages.values()))), []).append(time.monotonic() - began)
        return answers


class Bench:
    """One server in this process, and a process for each site."""

    def __init__(self, federation: Federation, plan: Plan, control: Plan) -> None:
        self.server = Server(federation.home / "server")
        self.plan, self.control, registry = plan, control, self.server.registry
        self.exchange, rounds = Timed(self.server.conductor.exchange), self.server.conductor.rounds
        rounds.exchange = rounds.masked.exchange = self.exchange
        first = plan.adapter.layout.first_vector(plan.adapter.seed_bytes)
        registry.propose(plan)
        registry.create_run(control, first, state="control")
        registry.create_run(plan, first)

    def masked(self) -> float:
        """Seconds of the next masked round."""
        began, registry = time.monotonic(), self.server.registry
        done = registry.run(self.plan.name).done
        while registry.run(self.plan.name).done == done:
            self.server.conductor.turn()
        return time.monotonic() - began

    def plain(self) -> float:
        """Seconds of the next round of the control: vectors down, vectors up, their mean, a new version on disk."""
        began, registry, plan = time.monotonic(), self.server.registry, self.control
        run = registry.run(plan.name)
        before = registry.vector(plan.name, run.round)
        request = wire.TrainRound(PLAIN, run.round, 0, 0, 0, wire.pack(before))
        answers = self.exchange.inner.ask(dict.fromkeys(plan.names, request), plan.round_deadline_seconds)
        updates = [wire.unpack(answers[name].vector, plan.adapter.layout) for name in plan.names]
        optimiser = make_optimiser(plan.server, plan.adapter.layout.dim)
        optimiser.restore(registry.optimiser_state(run))
        after = optimiser.apply(before, np.mean(updates, axis=0, dtype=np.float64))
        seconds = time.monotonic() - began
        assert registry.commit_round(run, after, optimiser.state(), list(plan.names), seconds, 0, [], 0)
        return time.monotonic() - began


@contextmanager
def running(federation: Federation, names: list[str]) -> Iterator[Bench]:
    """A server and sites under a plan, and their end."""
    size = len(names)
    plan = federation.plan(f"masked-{size}", names, rounds=ROUNDS + 1)
    bench = Bench(federation, plan, federation.plan(f"plain-{size}", names, rounds=ROUNDS + 1))
    path, sites = federation.home / f"{plan.name}.json", list[subprocess.Popen[bytes]]()
    path.write_bytes(plan.canonical)
    try:
        for name in names:
            arguments = f"127.0.0.1:{federation.port}", str(path), str(federation.keys(name))
            sites.append(subprocess.Popen([sys.executable, "-m", "tests.bench.site", *arguments]))
        until("all are connected", lambda: bench.exchange.inner.alive() == set(names))
        yield bench
    finally:
        for site in sites:
            site.kill()
            site.wait()
        bench.server.close()


def enrol(federation: Federation, names: list[str]) -> None:
    """A consortium of these sites, all at rest."""
    console.print(f"enrolling {len(names)} sites")
    federation.init()
    federation.start("server")
    for name in names:
        federation.join(name, write_rows(federation.home / f"{name}.jsonl", 1, "box"))
    federation.end("server")


@contextmanager
def consortium(size: int) -> Iterator[Bench]:
    """That many enrolled sites, running."""
    names = [f"site-{i:02}" for i in range(size)]
    with Federation() as federation:
        enrol(federation, names)
        with running(federation, names) as bench:
            yield bench


def by_turns(bench: Bench) -> tuple[float, list[tuple[float, float]]]:
    """Seconds of the first masked round, which deals keys, and of pairs of a masked and a plain one."""
    bench.plain()
    first = bench.masked()
    bench.exchange.seconds.clear()
    return first, [(bench.masked(), bench.plain()) for _ in range(ROUNDS)]


def measure(size: int) -> list[object]:
    """One row of the table."""
    with consortium(size) as bench:
        return row(bench, size)


def row(bench: Bench, size: int) -> list[object]:
    """Rounds by turns, and what they come to."""
    first, pairs = by_turns(bench)
    masked, plain = (statistics.median(each) for each in zip(*pairs, strict=True))
    trips = [statistics.median(bench.exchange.seconds[trip]) for trip in TRIPS]
    more = statistics.median(one - other for one, other in pairs)
    met = more <= MORE_SECONDS if size == 3 else masked <= TIMES * plain
    return [size, plain, masked, more, masked / plain, "met" if met else "NOT met", *trips, first]


def main() -> None:
    """Measure and print."""
    table = Table(title=f"Wall seconds of a round, median of {ROUNDS}", title_justify="left", box=box.MARKDOWN)
    for head in ("sites", "plain", "masked", "added", "times", "goal", *TRIPS, "with new keys"):
        table.add_column(head, justify="right")
    for size in SIZES:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in measure(size)))
    console.print(table, f"goals: at most {MORE_SECONDS} s more with 3 sites, at most {TIMES} times with 16")


if __name__ == "__main__":
    main()
