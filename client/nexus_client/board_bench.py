"""``nexus-client bench``: what search does on this machine, and the machine's own limit beside it.

Each precision runs in a process of its own that loads encoder and adapter as ``search`` and ``serve`` do, without a
web server or an index: a server takes some 20 MB and a second more.  The limit is what the encoder's weight products
alone take in float32 with numpy's BLAS, weights too large for a cache to keep from one text to the next: an 8-bit graph
can be below it.  The texts are built in; nothing of the site's is read but settings and the model.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from nexus_common.errors import NexusError
from nexus_common.rpc import Body
from nexus_common.versions import StoredAdapter

from nexus_client.encoder_file import PRECISIONS, Precision, encoder_file
from nexus_client.light import LightEncoder
from nexus_client.light_adapter import LightAdapter, pooled

QUERIES: Final = (
    "chest pain", "When are visiting hours?", "how do I cancel my card", "Is it safe to fly after an operation?",
    "opening hours of the branch", "blood pressure tablets side effects", "Can I change my appointment online?",
    "what does a stamp on the prescription mean", "transfer abroad fees", "who can see my record",
)  # fmt: skip
PASSAGE: Final = (
    "Bring your insurance card and the letter of your doctor to the first appointment. If you cannot come, tell us by "
    "telephone at least one day before, so that somebody else can have the place. Blood is taken in the morning, "
    "before breakfast; water is fine. The results are sent to the practice that has asked for them, usually within "
    "three days. Parking is free for two hours in front of the main entrance, and a wheelchair can be had at the desk. "
    "Children are welcome to come along; there is a corner with toys and books on every floor."
)
WARM_UP: Final = 10
FEWEST: Final = 20


class Measured(Body):
    """One precision on this machine: milliseconds of short queries, of ``query_pieces`` word pieces, and passages."""

    precision: Precision
    start_seconds: float
    queries_per_second: float
    p50: float
    p95: float
    p99: float
    passages_per_second: float
    query_pieces: int
    pieces: int
    adapter_share: float
    idle_mb: float
    most_mb: float


class Limit(Body):
    """What the encoder's weight products alone take in float32, milliseconds; and those of large matrices."""

    query_ms: float
    passage_ms: float
    gflops: float


class BoardReport(Body):
    """All of it."""

    machine: str
    model: str
    threads: int
    measured: list[Measured]
    limit: Limit

    @property
    def line(self) -> str:
        """One line that compares with others'."""
        each = "; ".join(
            f"{m.precision} {m.queries_per_second:.0f} queries/s, p99 {m.p99:.1f} ms, "
            f"{m.passages_per_second:.1f} passages/s, {m.most_mb:.0f} MB"
            for m in self.measured
        )
        return f"nexus bench 1: {self.machine}, {self.threads} threads; {each}; limit {self.limit.gflops:.0f} GFLOP/s"


def bench(base: Path, graphs: Path, name: str, model: Path | None, threads: int, seconds: float) -> BoardReport:
    """Measure, ``seconds`` for each kind of text; graphs are made in their folder where they are missing."""
    measured = []
    for precision in PRECISIONS:
        graph = encoder_file(base, graphs, precision)
        began = time.monotonic()
        command = ["measure", precision, str(graph), str(base), str(threads), str(seconds), str(model or "")]
        with _child(command, threads) as child:
            _told(child)
            answered = time.monotonic() - began
            measured.append(Measured(start_seconds=answered, **_told(child)))
    first = measured[0]
    with _child(["limit", str(base), str(first.query_pieces), str(first.pieces), str(seconds)], threads) as child:
        limit = Limit(**_told(child))
    return BoardReport(machine=_machine(), model=name, threads=threads, measured=measured, limit=limit)


@contextmanager
def _child(arguments: list[str], threads: int) -> Iterator[Any]:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-m", "nexus_client.board_bench", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process.stdout


def _told(child: IO[str]) -> dict[str, Any]:
    """The next line of a process that measures; NexusError where it has ended."""
    if not (line := child.readline()):
        raise NexusError("the process that measures has ended; what it said stands above")
    found: dict[str, Any] = json.loads(line)
    return found


def _machine() -> str:
    """Processor, cores, memory and versions, in words."""
    facts = {"model name": platform.machine(), "Model": ""}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in facts:
            facts[name.strip()] = value.strip()
    board = Path("/proc/device-tree/model")
    told = board.read_text().strip("\0\n") if board.exists() else facts["Model"] or facts["model name"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{platform.machine()}, {told}, {os.cpu_count()} cores, {memory:.0f} GB, onnxruntime {version('onnxruntime')}"
    )


def _timed(work: Callable[[int], object], seconds: float) -> list[float]:
    """Milliseconds of each call, for ``seconds`` and at least ``FEWEST`` calls."""
    for i in range(WARM_UP):
        work(i)
    took, ends = list[float](), time.monotonic() + seconds
    while time.monotonic() < ends or len(took) < FEWEST:
        began = time.perf_counter()
        work(len(took))
        took.append(1000 * (time.perf_counter() - began))
    return took


def _megabytes(name: str) -> float:
    """``VmRSS`` or ``VmHWM`` of this process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1000


def _measure(precision: Precision, graph: str, base: str, threads: str, seconds: str, model: str) -> None:
    encoder = LightEncoder(Path(graph), Path(base), int(threads))
    stored = StoredAdapter.read(Path(model)) if model else None
    adapter = LightAdapter(stored.layout, stored.vector) if stored else None
    states = adapter is not None and adapter.reads_states

    def embed(text: str) -> object:
        (ids,) = encoder.pieces([text]).ids
        x = pooled(adapter, encoder.encode(ids, states=states))
        return x if adapter is None else adapter.project(x[None])

    embed(QUERIES[0])
    _tell({"ready": True})
    idle = _megabytes("VmRSS")
    queries = _timed(lambda i: embed(QUERIES[i % len(QUERIES)]), float(seconds))
    passages = _timed(lambda _: embed(PASSAGE), float(seconds))
    encoded = [encoder.encode(ids, states=states) for ids in encoder.pieces(QUERIES).ids]
    share = 0.0
    if adapter is not None:
        alone = _timed(lambda i: adapter.project(adapter.pool(encoded[i % len(encoded)])[None]), float(seconds) / 10)
        share = float(np.median(alone) / np.median(queries))
    p50, p95, p99 = (float(x) for x in np.percentile(queries, (50, 95, 99)))
    _tell(
        {
            "precision": precision, "queries_per_second": 1000 / float(np.mean(queries)), "p50": p50, "p95": p95,
            "p99": p99, "passages_per_second": 1000 / float(np.mean(passages)),
            "query_pieces": round(encoder.pieces(QUERIES).count / len(QUERIES)),
            "pieces": encoder.pieces([PASSAGE]).count, "adapter_share": share, "idle_mb": idle,
            "most_mb": _megabytes("VmHWM"),
        }
    )  # fmt: skip


def _limit(base: str, query: str, passage: str, seconds: str) -> None:
    about = json.loads((Path(base) / "config.json").read_text())
    h, inner = int(about["hidden_size"]), int(about["intermediate_size"])
    layers = int(about["num_hidden_layers"])
    rng = np.random.default_rng(0)
    shapes = [(h, h)] * 4 * layers + [(h, inner), (inner, h)] * layers
    weights = [rng.standard_normal(shape, np.float32) for shape in shapes]

    def products(tokens: int) -> float:
        x = {width: rng.standard_normal((tokens, width), np.float32) for width in (h, inner)}
        return float(np.median(_timed(lambda _: [x[len(weight)] @ weight for weight in weights], float(seconds))))

    square = rng.standard_normal((1536, 1536), np.float32)
    large = float(np.median(_timed(lambda _: square @ square, float(seconds))))
    each = {"query_ms": products(int(query)), "passage_ms": products(int(passage))}
    _tell(each | {"gflops": 2 * 1536**3 / large / 1e6})


def _tell(found: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    {"measure": _measure, "limit": _limit}[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]
