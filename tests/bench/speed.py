"""``make bench-speed``: queries and passages a second, and memory, beside what others would run on the same machine.

Each runs in a process of its own, on the same texts and processors, and they take turns, so that a busy machine slows
all alike: what counts is the median ratio of a turn.  sentence-transformers and fastembed come from `.venv-outside`, as
their users have them.  Ours is what ``search`` and ``serve`` run, with an adapter (salience and projection) in it;
*base* is the same without one, so its ratio says what the adapter costs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from nexus_client.embed import default_base
from nexus_client.encoder_file import encoder_file
from nexus_common.layout import Layout
from nexus_common.recipe import Recipe
from nexus_common.versions import StoredAdapter

from tests.bench.data import FOLDER, lines, require_data

OUTSIDE: Final = Path(__file__).resolve().parents[2] / ".venv-outside" / "bin" / "python"
WORKER: Final = Path(__file__).with_name("speed_worker.py")
QUERIES, PASSAGES = 60, 48


class Worker:
    """One way of embedding, in a process that waits for its turn."""

    def __init__(self, name: str, python: Path, folder: Path, threads: int) -> None:
        self.name = name
        environment = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1",
                       "ORT_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "PATH": "/usr/bin:/bin",
                       "PYTHONPATH": ":".join(sys.path) if python == Path(sys.executable) else ""}  # fmt: skip
        self._process = subprocess.Popen(
            [str(python), str(WORKER), name, str(folder), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.start = self._answer()
        self.seconds: dict[str, list[float]] = {"single": [], "batch": []}
        self.memory = 0.0

    def turn(self, kind: str) -> None:
        """Embed all texts of a kind once."""
        assert self._process.stdin is not None
        self._process.stdin.write(kind + "\n")
        self._process.stdin.flush()
        told = self._answer()
        self.seconds[kind].append(told["seconds"])
        self.memory = told["memory"]

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: run {WORKER.name} by hand to see why")
        found: dict[str, float] = json.loads(line)
        return found


def adapter(folder: Path) -> None:
    """An adapter as sites have it, trained far enough to be no identity."""
    layout, rng = Layout(0, 0), np.random.default_rng(0)
    vector = layout.first_vector(b"") + 0.02 * rng.standard_normal(layout.dim).astype(np.float32)
    StoredAdapter(Recipe(), 1, vector.astype(np.float32), layout).write(folder / "adapter.safetensors")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    require_data()
    if not OUTSIDE.exists():
        raise SystemExit("`.venv-outside` is missing: make .venv-outside/.made")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = default_base()
        for precision in ("fp32", "int8"):
            encoder_file(base, folder, precision)  # type: ignore[arg-type]
        adapter(folder)
        rows: list[dict[str, Any]] = list(lines(FOLDER / "medquad" / "queries.jsonl.gz"))
        documents: list[dict[str, Any]] = list(lines(FOLDER / "medquad" / "corpus.jsonl.gz"))
        (folder / "texts.json").write_text(
            json.dumps({"base": str(base), "single": [row["text"] for row in rows[:QUERIES]],
                        "batch": [row["text"] for row in documents[:PASSAGES]]})
        )  # fmt: skip
        here = Path(sys.executable)
        names = {"NEXUS int8": here, "NEXUS int8, base": here, "NEXUS fp32": here, "onnxruntime int8": here,
                 "onnxruntime fp32": here, "sentence-transformers": OUTSIDE, "fastembed": OUTSIDE}  # fmt: skip
        workers = [Worker(each, python, folder, arguments.threads) for each, python in names.items()]
        for _ in range(arguments.turns):
            for kind in ("single", "batch"):
                for worker in workers:
                    worker.turn(kind)
        for worker in workers:
            worker.end()
    ours = workers[0].seconds
    print(f"{arguments.threads} threads, median of {arguments.turns} turns; ratio: ours int8 to it, turn by turn\n")
    print("| | queries/s | NEXUS int8 times it | passages/s | NEXUS int8 times it | MB at the end | load, s |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for worker in workers:
        cells = []
        for kind, count in (("single", QUERIES), ("batch", PASSAGES)):
            took = np.array(worker.seconds[kind])
            cells += [f"{count / np.median(took):.1f}", f"{np.median(took / np.array(ours[kind])):.2f}"]
        print(f"| {worker.name} | {' | '.join(cells)} | {worker.memory:.0f} | {worker.start['seconds']:.2f} |")


if __name__ == "__main__":
    main()
