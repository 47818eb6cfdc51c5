"""Building and updating a site's index: new texts through the encoder, a generation beside the old, then the pointer.

One process builds at a time.  Each batch of vectors is durable when it is encoded, and a generation counts only once
``CURRENT`` names it, so kill -9 at any instant leaves the old index whole and costs the next build one batch.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from nexus_common.base_model import base_hash
from nexus_common.disk import sync_folder, write_durably
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH

from nexus_client.corpus import Passage, passages_of
from nexus_client.data import read_rows
from nexus_client.encoder_file import encoder_file
from nexus_client.index import Generation, Manifest, current_name, line_of, mapped, norms_of, open_current, projections
from nexus_client.index_files import write_array, write_file
from nexus_client.index_needs import needed
from nexus_client.light import LightEncoder
from nexus_client.light_adapter import PLAIN, LightAdapter, head_of, pooled
from nexus_client.light_models import light_model
from nexus_client.scan import SCANNED_ROWS, sketch_of
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.vectors import Progress, Vectors

ENCODED_AT_ONCE: Final = 1024  # texts whose word pieces are in memory together
KEPT_AT_ONCE: Final = 16  # texts whose vectors become durable together
COPIED_AT_ONCE: Final = 8192


@dataclass(frozen=True)
class Built:
    """What a build has changed: passages now, new ones, gone ones, texts encoded, texts among them that are longer than
    the base model reads; and models that it could not take in, with the reason."""

    rows: int
    added: int
    removed: int
    encoded: int
    cut: int
    models: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    changed: bool = True


class IndexBuild:
    """An update of the index, looked at first (``missing``) and then ``run``; made under ``building``."""

    def __init__(self, place: SiteHome, asked: Iterable[str]) -> None:
        self.place, self.folder, self.settings = place, place.index_folder, place.settings()
        try:
            self.old = open_current(self.folder)
        except NexusError:  # damaged: made again, from the vectors that are kept
            self.old = None
        self._made = self.old.manifest if self.old else None
        self.base = base_hash(self.settings.base_folder)
        self.needed = needed(place, self.settings, self.base, self._made, asked)
        self._left_out = dict[str, str]()

    @property
    def due(self) -> bool:
        """Whether there is anything to do."""
        return not self.needed.covered_by(self._made)

    @cached_property
    def passages(self) -> list[Passage]:
        """The site's text as it is now; of a source that is gone or empty, nothing."""
        tokenizer = self.settings.base_folder / "tokenizer.json"
        return passages_of(read_rows(self.settings.data, self.place.settings_folder, tokenizer, or_nothing=True))

    @cached_property
    def models(self) -> dict[str, LightAdapter | None]:
        """Those that the index will answer for."""
        shelf, found = Shelf(self.place), dict[str, LightAdapter | None]()
        for name in sorted(self.needed.models):
            try:
                found[name] = light_model(shelf, name, self.base)
            except NexusError as problem:
                self._left_out[name] = str(problem)
        return found

    @cached_property
    def vectors(self) -> Vectors:
        """What was encoded before."""
        (self.folder / "vectors").mkdir(mode=0o700, exist_ok=True)
        return Vectors(self.folder / "vectors" / f"{self.base[:16]}-{self.settings.precision}")

    @cached_property
    def missing(self) -> list[str]:
        """Texts to encode."""
        return self.vectors.missing(self._heads, [passage.text for passage in self.passages])

    @cached_property
    def _heads(self) -> dict[str, LightAdapter | None]:
        """One model of each head."""
        return {head_of(adapter): adapter for adapter in self.models.values()}

    def run(self, progress: Progress = lambda *_: None) -> Built:
        """Build what is due."""
        began = time.monotonic()
        if not self.due:
            return Built(len(self.old or ()), 0, 0, 0, 0, tuple(sorted(self._made.models)) if self._made else (),
                         changed=False)  # fmt: skip
        before = self.old.texts if self.old else set[str]()
        cut, texts = self._encode(progress), {passage.text for passage in self.passages}
        self.vectors.keep_only(self._heads, texts)  # before the pointer: a build that is killed here is still due
        self._write_generation()
        self.sweep()
        return Built(
            len(texts), len(texts - before), len(before - texts), len(self.missing), cut, tuple(self.models),
            self._left_out, time.monotonic() - began,
        )  # fmt: skip

    def close(self) -> None:
        """Release the vectors."""
        if "vectors" in self.__dict__:
            self.vectors.close()

    def _encode(self, progress: Progress) -> int:
        """Encode what is missing, the same pass for all heads; how many texts were cut."""
        if not self.missing:
            return 0
        graph = graph_of(self.place, self.settings, self.base)
        encoder = LightEncoder(graph, self.settings.base_folder, self.settings.cpu_threads)
        states, cut = set(self._heads) != {PLAIN}, 0
        for at in range(0, len(self.missing), ENCODED_AT_ONCE):
            some = self.missing[at : at + ENCODED_AT_ONCE]
            pieces = encoder.pieces(some)
            cut += sum(pieces.cut)
            for first in range(0, len(some), KEPT_AT_ONCE):
                last = min(first + KEPT_AT_ONCE, len(some))
                encoded = [encoder.encode(ids, states=states) for ids in pieces.ids[first:last]]
                vectors = {head: np.stack([pooled(one, e) for e in encoded]) for head, one in self._heads.items()}
                self.vectors.put(some[first:last], vectors)
                progress(at + last, len(self.missing))
        return cut

    def _write_generation(self) -> None:
        """All files, then the pointer."""
        newest = max((int(one.name) for one in self._generations()), default=0)
        number = max(1 + newest, time.time_ns() // 1_000_000)  # a name is never used again, also where all were deleted
        folder = self.folder / f"{number:08}"
        folder.mkdir(mode=0o700)
        named, lengths = hashlib.sha256(), [0]
        for passage in self.passages:
            named.update(line := line_of(passage))
            lengths.append(len(line))
        made = (self.base, self.settings.precision, named.hexdigest())
        same = self.old if self._made and made == (self._made.base, self._made.precision, self._made.passages) else None
        offsets = np.cumsum(lengths, dtype=np.int64)
        write_file(folder / "passages.jsonl", map(line_of, self.passages))
        write_array(folder / "offsets.npy", offsets.shape, offsets.dtype, [offsets])
        self._write_heads(folder, same)
        manifest = Manifest(
            base=self.base, precision=self.settings.precision, stamp=self.needed.stamp, passages=named.hexdigest(),
            rows=len(self.passages), models={name: head_of(one) for name, one in self.models.items()},
            digests={name: self.needed.models[name] for name in self.models}, left_out=self._left_out,
            marks={name: self.needed.marks[name] for name in self._left_out}, in_use=self.needed.in_use,
            asked=tuple(sorted(self.needed.asked)), at=time.time(),
        )  # fmt: skip
        write_file(folder / "manifest.json", [manifest.model_dump_json().encode()])
        sync_folder(folder)
        sync_folder(self.folder)
        write_durably(self.folder / "CURRENT", folder.name.encode())

    def _write_heads(self, folder: Path, same: Generation | None) -> None:
        """Vectors of each head and what each model needs; of a generation with the same passages they are linked."""
        texts, count = [passage.text for passage in self.passages], len(self.passages)
        for head in self._heads:
            parts = (self.vectors.of(head, texts[at : at + COPIED_AT_ONCE]) for at in range(0, count, COPIED_AT_ONCE))
            self._write_rows(folder, f"head-{head}", parts, same)
        for name, adapter in self.models.items():
            if adapter is None:
                continue
            vectors = mapped(folder / f"head-{adapter.head}.npy")
            kept = same if same and same.manifest.digests.get(name) == self.needed.models[name] else None
            if not adapter.linear:
                self._write_rows(folder, f"model-{name}", projections(adapter, vectors), kept)
            elif not self._linked(folder, f"norms-{name}.npy", kept):
                norms = norms_of(adapter, vectors)
                write_array(folder / f"norms-{name}.npy", norms.shape, norms.dtype, [norms])

    def _write_rows(self, folder: Path, name: str, parts: Iterable[Any], same: Generation | None) -> None:
        count = len(self.passages)
        if not self._linked(folder, f"{name}.npy", same):
            write_array(folder / f"{name}.npy", (count, WIDTH), np.dtype(np.float16), parts)
        if count > SCANNED_ROWS and not self._linked(folder, f"{name}.sketch.npy", same):
            vectors = mapped(folder / f"{name}.npy")
            sketch = np.empty((WIDTH // 64, count), np.uint64)
            for at in range(0, count, COPIED_AT_ONCE):
                sketch[:, at : at + COPIED_AT_ONCE] = sketch_of(vectors[at : at + COPIED_AT_ONCE])
            write_array(folder / f"{name}.sketch.npy", sketch.shape, sketch.dtype, [sketch])

    def _linked(self, folder: Path, name: str, same: Generation | None) -> bool:
        old = self.folder / same.name / name if same else None
        if old is None or not old.exists():
            return False
        try:
            os.link(old, folder / name)
        except OSError:  # a file system without links
            return False
        return True

    def _generations(self) -> list[Path]:
        return [one for one in self.folder.iterdir() if one.is_dir() and one.name.isdigit()]

    def sweep(self) -> None:
        """Older generations go, what was left of unfinished ones, and vectors of other encoders."""
        current, store = current_name(self.folder), f"{self.base[:16]}-{self.settings.precision}"
        old = [one for one in self._generations() if one.name != current]
        old += [one for one in (self.folder / "vectors").glob("*") if one.name != store]
        for one in old:
            shutil.rmtree(one)


@contextmanager
def building(
    place: SiteHome, asked: Iterable[str] = (), *, on_wait: Callable[[], None] = lambda: None
) -> Iterator[IndexBuild]:
    """Look at the index with the right to build it.

    ``on_wait`` is called where another process has that right, and may raise in place of waiting.
    """
    place.index_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(place.index_folder / "build.lock", os.O_RDWR | os.O_CREAT, 0o600)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        build = IndexBuild(place, asked)
        build.sweep()
        try:
            yield build
        finally:
            build.close()


def graph_of(place: SiteHome, settings: SiteSettings, base: str) -> Path:
    """The encoder's graph, made at first use."""
    return encoder_file(settings.base_folder, place.graphs(base), settings.precision)
