"""``nexus-client serve`` as a site meets it: start, memory, milliseconds a query, a swap under load; and the scan.

    python -m tests.bench.serve [--requests 10000] [--rows 1000000]

Real processes over loopback, the demo's text.  Nothing else should run meanwhile; the load average is printed.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from nexus_client.encoder_file import PRECISIONS, encoder_file
from nexus_client.light_adapter import unit
from nexus_client.scan import Rows, sketch_of
from nexus_client.shelf import Shelf
from nexus_client.site import default_base
from nexus_common.base_model import base_hash
from nexus_common.layout import WIDTH, Layout

from tests.processes.harness import until
from tests.processes.serving import Serving
from tests.sites import make_site, put_model

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "deploy" / "demo" / "hospital-a" / "questions.jsonl"
QUERIES = 300
ASKERS = 4
CLOCKS = (time.perf_counter, time.process_time)


def resident(process: int) -> float:
    """MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def timed(ask: Any, count: int, clock: Callable[[], float] = time.perf_counter) -> np.ndarray:
    """Milliseconds of each of some calls."""
    found = []
    for i in range(count):
        began = clock()
        ask(i)
        found.append(1000 * (clock() - began))
    return np.array(found)


def one_process(home: Path, graphs: Path, precision: str) -> None:
    """Start, memory, and milliseconds."""
    rows = [json.loads(line) for line in TEXT.read_text().splitlines()]
    place = make_site(home, graphs, rows=rows, precision=precision, cpu_threads=2)
    Shelf(place).choose(put_model(place, Layout()))
    with Serving(place) as served:
        until("there is an index", served.has_index)
    began = time.monotonic()
    with Serving(place) as served:
        served.embed("first")
        ready = time.monotonic() - began
        idle = resident(served.process.pid)
        questions = [row["query"] for row in rows]
        embed = timed(lambda i: served.embed(questions[i % len(questions)], encoding_format="base64"), QUERIES)
        search = timed(lambda i: served.search(questions[i % len(questions)]), QUERIES)
        before = time.monotonic()
        usage = served.embed(["pain " * 300] * 64)["usage"]
        seconds = time.monotonic() - before
        after, cut = resident(served.process.pid), usage["cut_texts"]
        took = [f"{np.median(one):.1f}, {np.percentile(one, 95):.1f} ms" for one in (embed, search)]
        print(f"{precision}: first answer {ready:.2f} s after the start; {idle:.0f} MB idle, {after:.0f} MB after "
              f"{cut} x 256 word pieces in {seconds:.1f} s; a question (median, 95 %): embedded {took[0]}; "
              f"searched in {len(rows)} rows {took[1]}")  # fmt: skip


def swaps(home: Path, graphs: Path, requests: int) -> None:
    """Requests while model and index change every second."""
    place, left, failed, models = make_site(home, graphs, cpu_threads=2), [requests], list[str](), set[str]()
    shelf, lock = Shelf(place), threading.Lock()
    with Serving(place) as served:
        until("there is an index", served.has_index)

        def ask() -> None:
            with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as http:
                while True:
                    with lock:
                        left[0] -= 1
                        if left[0] < 0:
                            return
                        number = left[0]
                    if number % 2:
                        done = http.get("/search", params={"q": f"fever {number}", "k": 3})
                    else:
                        done = http.post("/v1/embeddings", json={"input": f"fever {number}", "model": "nexus"})
                    if done.status_code == 200:
                        models.add(done.json()["model"])
                    else:
                        failed.append(done.text)

        threads = [threading.Thread(target=ask) for _ in range(ASKERS)]
        for thread in threads:
            thread.start()
        changes = 0
        while any(thread.is_alive() for thread in threads):
            changes += 1
            shelf.pin(put_model(place, Layout(changes % 3), seed=changes))
            time.sleep(1)
        print(f"swaps: {requests} requests by {ASKERS} askers while {changes} models came into use: "
              f"{len(failed)} failed, {len(models)} models answered")  # fmt: skip


def scan(count: int) -> None:
    """Milliseconds of one scan of made-up vectors that lie in clusters, and how many of the ten nearest it finds."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(count // 100, WIDTH)).astype(np.float32)
    with tempfile.NamedTemporaryFile(suffix=".f16") as file:
        vectors = np.memmap(file.name, np.float16, "w+", shape=(count, WIDTH))
        for at in range(0, count, 10_000):
            some = centres[rng.integers(0, len(centres), min(10_000, count - at))]
            vectors[at : at + len(some)] = unit(some + rng.normal(size=some.shape).astype(np.float32))
        rows = Rows(
            vectors, np.concatenate([sketch_of(vectors[at : at + 10_000]) for at in range(0, count, 10_000)], 1)
        )
        queries = unit(vectors[rng.integers(0, count, 30)] + rng.normal(0, 0.03, (30, WIDTH)).astype(np.float32))
        took, work = (timed(lambda i: rows.best(queries[i], 10), 30, clock) for clock in CLOCKS)
        found = 0
        for query in queries[:10]:
            exact = np.concatenate(
                [vectors[at : at + 50_000].astype(np.float32) @ query for at in range(0, count, 50_000)]
            )
            found += len(set(np.argsort(-exact)[:10]) & set(rows.best(query, 10)[0]))
        print(f"scan: {count} rows, median {np.median(took):.1f} ms ({np.median(work):.1f} ms of the processor), "
              f"recall of ten {found / 100:.3f}")  # fmt: skip


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    graphs = ROOT / ".bench" / "onnx" / base_hash(default_base())[:16]
    encoder_file(default_base(), graphs, "int8")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="nx") as home:
        for precision in PRECISIONS:
            one_process(Path(home) / precision, graphs, precision)
        swaps(Path(home) / "swaps", graphs, given.requests)
    for count in sorted({30_000, 100_000, given.rows}):
        scan(count)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
