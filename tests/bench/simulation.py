"""``make bench-sim``: many simulated sites in one process, beside Flower's own simulation engine on the same work.

A site "trains" by adding its number to every weight, and the server takes the plain mean of float32 replies: secure
aggregation is for at most 64 sites, and Flower has none here.  NEXUS's grid runs one site after the other in one
process, with its wire format, Flower's serialisation and an audit log; Flower's engine is Ray with one worker for each
processor.  The last row is the whole of the product but the network: plan, keys, masks, signatures, versions on disk.
Each row is a process of its own, whose peak of memory the kernel tells; what Ray's processes beside it hold is looked
at once, after the last round.  Flower's first round waits for Ray's processes; the figure in all includes that, and the
end of Ray.
"""

import collections
import importlib.metadata
import importlib.util
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from nexus_common import wire
from nexus_common.audit import AuditLog
from nexus_server.records import FINISHED
from rich import box
from rich.table import Table

from tests.bench.flower_stock import quiet_home
from tests.bench.rounds import console
from tests.federation.sim import SimGrid
from tests.federation.test_rounds import Federation, plan_of

ROUNDS, FLOATS, LIMIT_SECONDS = 10, 150_000, 1800
COMPARED, TURNS = 100, 3  # the two rows of so many sites take turns; shown is the middle one of each
AGGREGATION: Final = {"range": 1.0}  # that of the shipped recipe, but for updates as long as these
ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Seconds in all and, at the median, from one mark to the next."""

    def __init__(self) -> None:
        self.began, self.marks = time.monotonic(), list[float]()

    def mark(self, *_: object) -> None:
        """A round begins or ends."""
        self.marks.append(time.monotonic())

    def read(self) -> tuple[float, float]:
        """Both figures, now."""
        assert len(self.marks) == ROUNDS + 1, "not all rounds were done"
        return time.monotonic() - self.began, statistics.median(b - a for a, b in itertools.pairwise(self.marks))


@dataclass(frozen=True)
class Took:
    """What one row took: seconds in all and of a round, and memory in MB of the process and of those beside it."""

    seconds: float
    round: float
    numbers: int = FLOATS
    beside: float | None = None
    peak: float = 0.0


def plain(count: int) -> Took:
    """NEXUS's grid and wire format, plain float32 replies and their mean."""
    clock, names = Clock(), [f"site-{number:04}" for number in range(count)]

    def site(number: int) -> Callable[[wire.Message], wire.Message]:
        def train(message: wire.Message) -> wire.Message:
            assert isinstance(message, wire.TrainRound)
            return wire.Masked((np.frombuffer(message.vector, "<f4") + np.float32(number)).tobytes())

        return train

    with tempfile.TemporaryDirectory() as folder:
        grid = SimGrid({name: site(number) for number, name in enumerate(names)})
        exchange, vector = grid.exchange(AuditLog(Path(folder) / "audit.jsonl")), np.zeros(FLOATS, "<f4")
        clock.mark()
        for number in range(ROUNDS):
            request = wire.TrainRound(bytes(32), number, 0, 0, 0, vector.tobytes())
            total = np.zeros(FLOATS)
            for answer in exchange.ask(dict.fromkeys(names, request), LIMIT_SECONDS).values():
                assert isinstance(answer, wire.Masked)
                total += np.frombuffer(answer.vector, "<f4")
            vector = (total / count).astype("<f4")
            clock.mark()
    check(vector, count)
    return Took(*clock.read())


def flower(count: int) -> Took:
    """Flower's engine, with FedAvg over as many clients."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server, clock, beside = ClientApp(), ServerApp(), Clock(), list[float]()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        (vector,) = message.content["arrays"].to_numpy_ndarrays()
        arrays = ArrayRecord([vector + np.float32(context.node_config["partition-id"])])
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
        first = ArrayRecord([np.zeros(FLOATS, np.float32)])
        done = strategy.start(grid, first, ROUNDS, evaluate_fn=clock.mark)
        beside.append(sum(one.memory_full_info().uss for one in psutil.Process().children(recursive=True)) / 1e6)
        check(done.arrays.to_numpy_ndarrays()[0], count)

    run_simulation(
        server,
        client,
        count,
        backend_config={
            "init_args": {"num_cpus": os.cpu_count()},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return Took(*clock.read(), beside=beside[0])


def masked(count: int) -> Took:
    """The whole protocol, in the round logic of a deployment; a closing round, for the last figures, comes on top."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(
            tuple(f"site-{number:02}" for number in range(count)),
            rounds=ROUNDS,
            min_cohort=count,
            aggregation=AGGREGATION,
        )
        federation = Federation(Path(folder), plan)
        clock.mark()
        for _ in range(ROUNDS):
            federation.turns(1)
            clock.mark()
        while federation.state != FINISHED:
            federation.turns(1)
        took = Took(*clock.read(), plan.adapter.layout.dim)
        cohorts = [version.cohort for version in federation.registry.versions(plan.name)[1:]]
        assert cohorts == [plan.names] * ROUNDS, "not all sites were in all sums"
        federation.registry.close()
    return took


def check(vector: np.ndarray, count: int) -> None:
    """The mean of the sites' numbers, once a round."""
    np.testing.assert_allclose(vector, ROUNDS * (count - 1) / 2, rtol=1e-5)


PARTS: Final[dict[str, Callable[[int], Took]]] = {"plain": plain, "flower": flower, "masked": masked}
ROWS: Final = (
    ("NEXUS's grid, plain mean", "plain", COMPARED),
    ("Flower's engine (Ray), plain mean", "flower", COMPARED),
    ("NEXUS's grid, plain mean", "plain", 1000),
    ("NEXUS, all of the masked protocol", "masked", 64),
)


def measured(part: str, count: int) -> Took:
    """One part, in a process of its own."""
    with quiet_home() as (home, environment):
        result, log = home / "result.json", home / "log"
        command = [sys.executable, "-m", "tests.bench.simulation", part, str(count), str(result)]
        with log.open("wb") as file:
            subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=LIMIT_SECONDS, check=False
            )
        if not result.exists():
            raise RuntimeError(f"{part} of {count} sites failed:\n{log.read_text(errors='replace')[-4000:]}")
        return Took(**json.loads(result.read_text()))


def run_part(part: str, count: str, result: str) -> None:
    """What such a process does."""
    took = asdict(PARTS[part](int(count)))
    took["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # of kilobytes, on Linux
    Path(result).write_text(json.dumps(took))


def ray_requirement() -> str:
    """The version of Ray that the installed Flower asks for."""
    return next(one.split(";")[0].strip() for one in importlib.metadata.requires("flwr") or () if one.startswith("ray"))


def middle(turns: list[Took]) -> Took:
    """The turn that took neither the longest nor the shortest."""
    return sorted(turns, key=lambda took: took.seconds)[len(turns) // 2]


def table_of(found: Mapping[tuple[str, int], list[Took]]) -> Table:
    """All rows; one that could not be measured stays blank."""
    title = f"{ROUNDS} rounds in simulation; a round: the median"
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for head in ("", "sites", "numbers", "all, s", "a round, s", "peak, MB", "beside it, MB"):
        table.add_column(head, justify="right" if head else "left")
    for name, part, count in ROWS:
        if not (turns := found.get((part, count))):
            table.add_row(name, str(count))
            continue
        took = middle(turns)
        beside = "" if took.beside is None else f"{took.beside:.0f}"
        cells = f"{took.seconds:.1f}", f"{took.round:.2f}", f"{took.peak:.0f}", beside
        table.add_row(name, str(count), f"{took.numbers:,}", *cells)
    return table


def main() -> None:
    """Measure and print."""
    if len(sys.argv) > 1:
        run_part(*sys.argv[1:])
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and so do the parts
    has_ray = importlib.util.find_spec("ray") is not None
    able = [row for row in ROWS if has_ray or row[1] != "flower"]
    found = collections.defaultdict[tuple[str, int], list[Took]](list)
    for title, part, count in [row for row in able if row[2] == COMPARED] * (TURNS - 1) + able:
        console.print(f"{title}: {count} sites")
        found[part, count].append(measured(part, count))
    console.print(table_of(found))
    if has_ray:
        other, own = middle(found["flower", COMPARED]), middle(found["plain", COMPARED])
        times = f"{other.seconds / own.seconds:.1f} times as long, {other.round / own.round:.1f} times for a round"
        console.print(f"{COMPARED} sites: Flower's engine takes {times}")
    else:
        console.print(f"Flower's engine needs Ray, which is not installed: {sys.executable} -m pip install "
                      f"'{ray_requirement()}'")  # fmt: skip
    console.print(f"{os.cpu_count()} processors")


if __name__ == "__main__":
    main()
