"""What metric and log calls cost a round: real server, three real agents, each call timed where it is made.

The clock is read around every call, which costs as much as some of them: the figures are upper bounds.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from nexus_common.disk import write_durably
from prometheus_client import Counter, Histogram
from rich import box
from rich.console import Console
from rich.table import Table

from tests.processes.harness import Federation, until, write_rows

SITES, ROUNDS, SCRAPES, EVERY_SECONDS = ("bank-a", "hospital-a", "hospital-b"), 20, 100, 15
console = Console(width=120)


class Watched:
    """CPU time within calls of each kind, written to a file twice a second beside that of the whole process."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, {kind: [0, 0] for kind in ("metric", "log")}
        self.watch("metric", Counter, "inc")
        self.watch("metric", Histogram, "observe")
        self.watch("metric", Counter, "labels")
        self.watch("log", logging.Logger, "_log")
        threading.Thread(target=self.write, daemon=True).start()

    def watch(self, kind: str, owner: type, name: str) -> None:
        """Time each call of a method."""
        call, found = getattr(owner, name), self.found[kind]

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time_ns()
            try:
                return call(*args, **kwargs)
            finally:
                found[0] += 1
                found[1] += time.thread_time_ns() - began

        setattr(owner, name, timed)

    def write(self) -> None:
        """For this process's life."""
        while True:
            write_durably(self.path, json.dumps({"all": [0, time.process_time_ns()], **self.found}).encode())
            time.sleep(0.5)


def watched(program: str, path: str, *arguments: str) -> int:
    """Run a program in this process."""
    Watched(Path(path))
    main: Callable[[list[str]], int]
    if program == "server":
        from nexus_server.cli import main
    else:
        from nexus_client.cli import main
    return main(list(arguments))


def read(federation: Federation) -> dict[str, dict[str, list[int]]]:
    """What each process has spent by now."""
    time.sleep(1)
    return {name: json.loads((federation.home / f"{name}.json").read_text()) for name in ("server", SITES[0])}


def scrape_seconds(federation: Federation, name: str) -> float:
    """CPU time of one answer to Prometheus; what the idle process does meanwhile counts too."""
    before = read(federation)[name]["all"][1]
    with httpx.Client(trust_env=False) as http:
        for _ in range(SCRAPES):
            http.get(f"http://127.0.0.1:{federation.metrics_ports[name]}/metrics").raise_for_status()
    return (read(federation)[name]["all"][1] - before) / SCRAPES / 1e9


def main() -> None:
    """Measure and print."""
    with Federation() as federation:
        run = [sys.executable, "-m", "tests.bench.metrics"]
        federation.server_program = [*run, "server", str(federation.home / "server.json")]
        federation.init()
        federation.start("server")
        for site in SITES:
            federation.join(site, write_rows(federation.home / f"{site}.jsonl", 300, f"box of {site}"))
            federation.start(site, program=[*run, "client", str(federation.home / f"{site}.json")])
        plan = federation.plan("cost", SITES, rounds=ROUNDS + 1)
        federation.train(plan)
        until("the first round is done", lambda: federation.server_status()["round"] >= 1, 300)
        before = read(federation)
        done = federation.server_status()["round"]
        until("all are", lambda: federation.server_status()["state"] == "finished", 600)
        after, rounds = read(federation), ROUNDS + 1 - done
        head = ["process", "CPU s a round", "metric calls", "share", "log calls", "share", "one scrape"]
        title = f"{rounds} rounds of {plan.local.steps} steps"
        table = Table(*head, f"every {EVERY_SECONDS} s", box=box.SIMPLE_HEAD, title=title)
        for name, spent in after.items():
            count, used = ({kind: (spent[kind][n] - before[name][kind][n]) / rounds for kind in spent} for n in (0, 1))
            shares = [
                f for kind in ("metric", "log") for f in (f"{count[kind]:.0f}", f"{used[kind] / used['all']:.3%}")
            ]
            scrape = scrape_seconds(federation, name)
            table.add_row(
                name, f"{used['all'] / 1e9:.2f}", *shares, f"{scrape * 1e3:.1f} ms", f"{scrape / EVERY_SECONDS:.2%}"
            )
            assert used["metric"] + used["log"] < 0.01 * used["all"], f"{name}: more than 1 % of a round"
        console.print(table)


if __name__ == "__main__":
    sys.exit(watched(*sys.argv[1:]) if sys.argv[1:] else main())
