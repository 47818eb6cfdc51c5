"""``make bench-flower``: wall time of a round beside stock Flower's, in real processes on loopback; no site trains.

NEXUS's plain and masked rounds come from ``tests.bench.rounds``: 148,224 numbers each way, stock Flower's are 147,840.
Stock Flower is what its users start: a SuperLink with TLS, a SuperNode for each site, and ``flwr run`` of an app with
FedAvg; its rounds are timed inside its ServerApp, half of them before NEXUS's and half after.  It has TLS as NEXUS has,
but no client certificates, masks, signatures, audit logs or versions on disk.  Its ServerApp looks for replies every
3 s, its SuperNodes ask for work every 3 s and start a new process for each message: on two processors those processes
are what a round of 16 sites waits for.  These take 5 GB of memory and most of this benchmark's ten minutes.
"""

import datetime as dt
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil
from nexus_common import certs
from rich import box
from rich.table import Table

from tests.bench.rounds import ROUNDS, SIZES, by_turns, console, consortium
from tests.processes.harness import BIN, free_ports, until

FLOATS, OVERHEAD_SECONDS, SHARE = 147_840, 0.5, 12
HALF: Final = {3: 8, 16: 4}  # rounds of stock Flower on either side, by sites; one more comes before and does not count
PATIENCE_SECONDS: Final = 180.0  # for one of its rounds
PROJECT = """
[project]
name = "stock"
version = "1.0.0"
description = "Rounds of no training"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "stock.app:server"
clientapp = "stock.app:client"

[tool.flwr.app.config]
floats = {floats}
sites = {sites}
rounds = {rounds}
stamps = "{stamps}"
"""
APP = '''"""FedAvg over clients that do not train: each answers with an array of its own, so that all of them travel."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


def anything(floats):
    return ArrayRecord([np.random.default_rng().standard_normal(floats, np.float32)])


@server.main()
def main(grid, context):
    config, heard = context.run_config, [0]

    def count(replies, weighted_by):
        heard.append(len(replies))
        return MetricRecord()

    def stamp(number, arrays):
        with Path(config["stamps"]).open("a") as file:
            file.write(f"{time.monotonic()} {heard[-1]}\\n")

    nodes = config["sites"]
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes,
                      train_metrics_aggr_fn=count)
    strategy.start(grid, anything(config["floats"]), config["rounds"], evaluate_fn=stamp)


@client.train()
def train(message, context):
    arrays = anything(message.content["arrays"].to_numpy_ndarrays()[0].size)
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
'''


@contextmanager
def quiet_home() -> Iterator[tuple[Path, dict[str, str]]]:
    """A temporary folder, and an environment that keeps programs in it and off the network; its programs end with it.

    A SuperLink's executor and Ray's processes detach themselves, so they are found by this environment.  Flower's off
    switches are in it, too: ``nexus_common.flower`` has set them.
    """
    with tempfile.TemporaryDirectory(prefix="nx") as folder:
        nowhere = "http://127.0.0.1:9"
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | {
            "HOME": folder,
            "FLWR_HOME": f"{folder}/flwr",
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux, too, this keeps Ray on 127.0.0.1
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # Flower finds its other programs there
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
            "NO_PROXY": "127.0.0.1,localhost",
        }
        try:
            yield Path(folder), environment
        finally:
            while left := [process for process in psutil.process_iter() if _has_home(process, folder)]:
                for process in left:
                    with suppress(psutil.Error):
                        process.kill()
                psutil.wait_procs(left, 5)


def _has_home(process: psutil.Process, folder: str) -> bool:
    with suppress(psutil.Error):
        return process.environ().get("HOME") == folder
    return False


def write_certificates(home: Path) -> None:
    """What the SuperLink shows, and the CA that the others trust."""
    now, ca_key, key = dt.datetime.now(dt.UTC), certs.new_transport_key(), certs.new_transport_key()
    ca = certs.make_authority(ca_key, "bench", now)
    certs.save_key(home / "server.key", key)
    (home / "ca.pem").write_bytes(certs.pem(ca))
    shown = certs.issue_server(ca_key, ca, key.public_key(), ["127.0.0.1"], now)
    (home / "server.pem").write_bytes(certs.pem(shown))


def write_app(home: Path, address: str, size: int, rounds: int) -> None:
    """The app, and where ``flwr run`` finds the SuperLink."""
    package = home / "app" / "stock"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "app.py").write_text(APP)
    project = PROJECT.format(floats=FLOATS, sites=size, rounds=rounds, stamps=home / "stamps")
    (package.parent / "pyproject.toml").write_text(project)
    (home / "flwr").mkdir()
    connection = f'[superlink.bench]\naddress = "{address}"\nroot-certificates = "{home / "ca.pem"}"\n'
    (home / "flwr" / "config.toml").write_text('[superlink]\ndefault = "bench"\n\n' + connection)


def stock(size: int) -> list[float]:
    """Seconds of stock Flower's rounds with that many sites; its first, which also unpacks the app, is left out."""
    with quiet_home() as (home, environment):
        port, *ports = free_ports(size + 1)
        address, rounds, log = f"127.0.0.1:{port}", HALF[size] + 1, home / "superlink.log"
        write_certificates(home)
        write_app(home, address, size, rounds)

        def start(name: str, *command: object) -> None:
            with (home / f"{name}.log").open("wb") as file:
                subprocess.Popen([*map(str, command)], env=environment, stdout=file, stderr=file, cwd=home)

        def told(words: str, times: int = 1) -> None:
            until(f"the SuperLink says {words}", lambda: log.read_text().count(words) >= times)

        shown = "--ssl-certfile", home / "server.pem", "--ssl-keyfile", home / "server.key"
        only = "--host", "127.0.0.1", "--port"
        start("superlink", "flower-superlink", *only, port, *shown, "--ssl-ca-certfile", home / "ca.pem",
              "--disable-runtime-dependency-installation")  # fmt: skip
        told("Uvicorn running")
        for number, own in enumerate(ports):
            start(f"supernode-{number}", "flower-supernode", "--superlink", address, *only, own,
                  "--root-certificates", home / "ca.pem")  # fmt: skip
        told("Activated node_id", size)
        subprocess.run(["flwr", "run", "app", "bench"], env=environment, cwd=home, capture_output=True, check=True)
        return round_seconds(home / "stamps", size, rounds)


def round_seconds(path: Path, size: int, rounds: int) -> list[float]:
    """Wait for all rounds; every one must have heard all sites."""
    path.touch()
    for number in range(rounds + 1):
        until(f"round {number} ends", lambda n=number: path.read_text().count("\n") > n, PATIENCE_SECONDS)
    lines = [line.split() for line in path.read_text().splitlines()]
    assert [int(heard) for _, heard in lines] == [0] + [size] * rounds, "some clients did not answer"
    times = [float(seconds) for seconds, _ in lines]
    return [after - before for before, after in itertools.pairwise(times[1:])]


def measure(size: int) -> list[object]:
    """One row of the table."""
    console.print(f"{size} sites: stock Flower, the first half")
    theirs = stock(size)
    with consortium(size) as bench:
        _, pairs = by_turns(bench)
    console.print(f"{size} sites: stock Flower, the second half")
    theirs += stock(size)
    masked, plain, other = (statistics.median(each) for each in (*zip(*pairs, strict=True), theirs))
    goals = [other >= SHARE * masked] + [masked <= OVERHEAD_SECONDS] * (size == 3)
    verdict = "met" if all(goals) else "NOT met"
    span = f"{min(theirs):.1f} to {max(theirs):.1f}"
    return [size, plain, masked, other, span, len(theirs), other / plain, other / masked, verdict]


def main() -> None:
    """Measure and print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and so does all that was started
    began = time.monotonic()
    title = f"Wall seconds of a round without training: medians, of {ROUNDS} rounds of NEXUS"
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for head in ("sites", "NEXUS plain", "NEXUS masked", "stock Flower", "its span", "its rounds", "stock / plain",
                 "stock / masked", "goals"):  # fmt: skip
        table.add_column(head, justify="right")
    for size in SIZES:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in measure(size)))
    console.print(table)
    console.print(f"goals: a masked round takes at most {OVERHEAD_SECONDS} s with 3 sites, and a twelfth of stock's")
    console.print(f"{os.cpu_count()} processors; {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
