"""``make bench-million``: a million stored vectors under a new version, and a search among them.

The vectors are the base model's of medquad's documents and, beyond them, those plus scaled differences of pairs, so
that they lie as real ones do.  Beside each time: the machine's own matrix product over as many numbers, and how long
the encoder would take for a million passages, from as many seconds of it as are given.  One thread.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from nexus_client.cache import Cache
from nexus_client.embed import default_base
from nexus_client.encoder_file import encoder_file
from nexus_client.index import norms_of, projections
from nexus_client.index_files import write_array
from nexus_client.light import Floats, LightEncoder
from nexus_client.light_adapter import LightAdapter, unit
from nexus_client.scan import Rows, sketch_of
from nexus_client.vectors import Halves
from nexus_common.base_model import base_hash
from nexus_common.layout import WIDTH, Layout

from tests.bench import simulate
from tests.bench.data import Retrieval, require_data

CHUNK: Final = 8192
ASKED: Final = 50
NOISE: Final = 0.02  # about what training changes in a weight


def vectors(count: int, real: Floats) -> Iterator[Halves]:
    """Real ones first, then real ones moved by differences of pairs; all of length 1."""
    yield real.astype(np.float16)
    rng, left = np.random.default_rng(0), count - len(real)
    while left > 0:
        size = min(CHUNK, left)
        one, two, three = (real[rng.integers(len(real), size=size)] for _ in range(3))
        scale = rng.uniform(0.2, 0.8, (size, 1)).astype(np.float32)
        yield unit(one + scale * (two - three)).astype(np.float16)
        left -= size


def adapter(dendrites: int) -> LightAdapter:
    """A trained one's like: the identity and noise."""
    layout, rng = Layout(dendrites), np.random.default_rng(1)
    noise = NOISE * rng.standard_normal(layout.dim).astype(np.float32)
    return LightAdapter(layout, layout.first_vector(b"") + noise)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def product(count: int) -> float:
    """The machine's limit: float32 products [8192, 384] x [384, 384] over ``count`` rows."""
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((CHUNK, WIDTH), np.float32), rng.standard_normal((WIDTH, WIDTH), np.float32)
    return seconds(lambda: [x @ w for _ in range(count // CHUNK)])


def encoding(texts: list[str], folder: Path, budget: float) -> float:
    """Seconds a passage, int8."""
    encoder = LightEncoder(encoder_file(default_base(), folder, "int8"), default_base(), 1)
    pieces, done, began = encoder.pieces(texts).ids, 0, time.perf_counter()
    while time.perf_counter() - began < budget:
        encoder.encode(pieces[done % len(pieces)], states=True)
        done += 1
    return (time.perf_counter() - began) / done


def recall(rows: Rows, exact: Halves, queries: Floats, norms: Floats, model: LightAdapter) -> tuple[float, float]:
    """Of the true ten best the share that search finds, and milliseconds a search."""
    found = took = 0.0
    for query in model.project(queries):
        direction, offset = model.turned(query)
        parts = [exact[at : at + CHUNK].astype(np.float32) @ direction for at in range(0, len(exact), CHUNK)]
        best = np.argsort(-(np.concatenate(parts) + offset) / norms)[:10]
        began = time.perf_counter()
        got, _ = rows.best(direction, 10, offset, norms)
        took += time.perf_counter() - began
        found += len({*got.tolist()} & {*best.tolist()}) / 10
    return found / len(queries), 1000 * took / len(queries)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--encode-seconds", type=float, default=30)
    arguments = parser.parse_args()
    require_data()
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        raise SystemExit("OPENBLAS_NUM_THREADS=1 python -m tests.bench.million (make bench-million does)")
    data = Retrieval("medquad", "medquad", "own")
    texts = data.texts.items
    simulate.encode(texts)
    cache = Cache(simulate.CACHE / base_hash(default_base())[:16])
    real = cache.pooled(texts)
    cache.close()
    with tempfile.TemporaryDirectory(dir=simulate.CACHE.parent) as name:
        folder, count = Path(name), arguments.rows
        write_array(folder / "x.npy", (count, WIDTH), np.dtype(np.float16), vectors(count, real))
        x = np.load(folder / "x.npy", mmap_mode="r")
        linear, bent = adapter(0), adapter(1)
        took: dict[str, list[float]] = {"product": [], "norms": [], "projected": []}
        for turn in range(arguments.turns):
            out = folder / f"y{turn}.npy"
            took["product"].append(product(count))
            took["norms"].append(seconds(lambda: norms_of(linear, x)))
            took["projected"].append(seconds(lambda out=out: write_array(out, x.shape, x.dtype, projections(bent, x))))
            out.unlink()
        limit, norms, projected = (float(np.median(each)) for each in took.values())
        again = count * encoding(texts, folder, arguments.encode_seconds)
        sketch = np.concatenate([sketch_of(x[at : at + CHUNK]) for at in range(0, count, CHUNK)], axis=1)
        asked = real[np.random.default_rng(3).integers(len(real), size=ASKED)]
        share, ms = recall(Rows(x, np.ascontiguousarray(sketch)), x, asked, norms_of(linear, x), linear)
    print(f"{count} stored vectors, one thread, median of {arguments.turns} turns\n")
    print("| a new version is | needs | seconds | times one matrix product | encoding all again takes |")
    print("| --- | --- | --: | --: | --: |")
    print(f"| linear | norms | {norms:.1f} | {norms / limit:.2f} | {again / norms:.0f} times as long |")
    print(f"| with a dendrite | projected vectors, file to file | {projected:.1f} | {projected / limit:.2f} | "
          f"{again / projected:.0f} times as long |")  # fmt: skip
    print(f"\none matrix product over all: {limit:.1f} s; encoding all again: {again / 3600:.1f} h (computed from "
          f"{arguments.encode_seconds:g} s of it); a search under the linear version: {ms:.1f} ms, {share:.3f} of the "
          "true ten best found")  # fmt: skip


if __name__ == "__main__":
    main()
