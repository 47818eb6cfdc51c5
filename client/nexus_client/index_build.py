"""Building and updating a site's index: new texts through the encoder, a generation beside the old, then the pointer.

One process builds at a time.  Each batch of vectors is durable when it is encoded, and a generation counts only once
``CURRENT`` names it, so kill -9 at any instant leaves the old index whole and costs the next build one batch.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from nexus_common.base_model import base_hash
from nexus_common.errors import NexusError

from nexus_client.cache import NotCached
from nexus_client.corpus import Passage, passages_of, stamp
from nexus_client.data import read_rows
from nexus_client.encoder_file import encoder_file
from nexus_client.index import Manifest, current_name, open_current
from nexus_client.index_generation import Contents, generations, write_generation
from nexus_client.index_needs import needed
from nexus_client.light import LightEncoder
from nexus_client.light_adapter import PLAIN, LightAdapter, head_of, pooled
from nexus_client.light_models import light_model
from nexus_client.model_list import BASE
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.vectors import Progress, Vectors

ENCODED_AT_ONCE: Final = 1024  # texts whose word pieces are in memory together
KEPT_AT_ONCE: Final = 16  # texts whose vectors become durable together


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


class _TextHasChanged(Exception):
    """While it was encoded."""


class IndexBuild:
    """An update of the index, looked at first (``missing``) and then ``run``; made under ``building``."""

    def __init__(self, place: SiteHome, asked: Iterable[str]) -> None:
        self.place, self.folder, self.settings = place, place.index_folder, place.settings()
        try:
            self.old = open_current(self.folder)
        except NexusError:  # damaged: made again, from the vectors that are kept
            self.old = None
        self.base = base_hash(self.settings.base_folder)
        self.needed = needed(place, self.settings, self.base, self._made, asked)
        self._left_out = dict[str, str]()

    @property
    def _made(self) -> Manifest | None:
        """What the old one holds."""
        return self.old.manifest if self.old else None

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
        return Vectors(self.place.vectors(self.base, self.settings.precision))

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
        began, shelf = time.monotonic(), Shelf(self.place)
        if not self.due:
            return Built(len(self.old or ()), 0, 0, 0, 0, tuple(sorted(self._made.models)) if self._made else (),
                         changed=False)  # fmt: skip
        before = self.old.texts if self.old else set[str]()
        shelf.indexing([self.needed.in_use, *([self._made.in_use] if self._made else [])])
        self.drop_gone()
        try:
            cut = self._encode(progress)
        except _TextHasChanged:
            return self._begun_anew(progress)
        texts = {passage.text for passage in self.passages}
        self.vectors.keep_only(self._heads, texts)  # before the pointer: a build that is killed here is still due
        write_generation(self.folder, self._whole, self.vectors, self.old)
        shelf.indexing([self.needed.in_use])
        self.sweep()
        return Built(
            len(texts), len(texts - before), len(before - texts), len(self.missing), cut, tuple(self.models),
            self._left_out, time.monotonic() - began,
        )  # fmt: skip

    def close(self) -> None:
        """Release the vectors."""
        if "vectors" in self.__dict__:
            self.vectors.close()

    def drop_gone(self) -> None:
        """Text that has left the files leaves the answers at once, not when all that is new is encoded.

        But where most of the text was replaced, search would find nothing meanwhile: the old index answers until then.
        """
        if self.old is None or self._made is None or not self.missing:
            return
        there, known = {passage.text for passage in self.passages}, self.old.texts
        same_encoder = (self._made.base, self._made.precision) == (self.base, self.settings.precision)
        left = [passage for passage in self.passages if passage.text in known]
        replaced = len(left) < len(self.passages) and 2 * len(left) < len(self.old)
        if known <= there or replaced or not same_encoder:
            return
        shelf, models = Shelf(self.place), dict[str, LightAdapter | None]()
        for name, digest in self._made.digests.items():
            if shelf.models.digest(name) == digest:
                with suppress(NexusError):  # a file that cannot be read any more: it goes as well
                    models[name] = light_model(shelf, name, self.base)
        if BASE not in models:
            return
        with suppress(NotCached):  # a build was killed that had them out of the store: all is made anew
            contents = Contents(left, models, self._made.model_copy(update={"stamp": ""}))
            write_generation(self.folder, contents, self.vectors, self.old)
            self.old = open_current(self.folder)

    def _begun_anew(self, progress: Progress) -> Built:
        """What was encoded is kept."""
        self.close()
        again = IndexBuild(self.place, self.needed.asked)
        try:
            return again.run(progress)
        finally:
            again.close()

    def _encode(self, progress: Progress) -> int:
        """Encode what is missing, the same pass for all heads; how many texts were cut."""
        if not self.missing:
            return 0
        graph = graph_of(self.place, self.settings, self.base)
        encoder = LightEncoder(graph, self.settings.base_folder, self.settings.cpu_threads)
        states, cut = set(self._heads) != {PLAIN}, 0
        for at in range(0, len(self.missing), ENCODED_AT_ONCE):
            if at and stamp(self.settings.data, self.place.settings_folder) != self.needed.stamp:
                raise _TextHasChanged
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

    @property
    def _whole(self) -> Contents:
        """All that the index has to be up to."""
        models = self.models
        manifest = Manifest(
            base=self.base, precision=self.settings.precision, stamp=self.needed.stamp, passages="", rows=0, models={},
            digests={name: self.needed.models[name] for name in models}, left_out=self._left_out,
            marks={name: self.needed.marks[name] for name in self._left_out}, in_use=self.needed.in_use,
            asked=tuple(sorted(self.needed.asked)), at=0.0,
        )  # fmt: skip
        return Contents(self.passages, models, manifest)

    def sweep(self) -> None:
        """Older generations go, what was left of unfinished ones, and vectors of other encoders."""
        current, store = current_name(self.folder), self.place.vectors(self.base, self.settings.precision)
        old = [one for one in generations(self.folder) if one.name != current]
        old += [one for one in (self.folder / "vectors").glob("*") if one != store]
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
