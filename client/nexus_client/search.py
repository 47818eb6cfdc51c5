"""Search over a site's own text: one question through the encoder, its model's adapter and the index."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final

from nexus_common.base_model import base_hash
from nexus_common.errors import NexusError

from nexus_client.index import Generation, open_current
from nexus_client.index_build import building, graph_of
from nexus_client.light import LightEncoder
from nexus_client.light_adapter import LightAdapter, pooled
from nexus_client.light_models import light_model
from nexus_client.model_list import BASE, Models
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome
from nexus_client.vectors import Progress

MOST_HITS: Final = 100
LITTLE: Final = 200  # texts, some seconds: encoded before a search is answered


@dataclass(frozen=True)
class Hit:
    """A passage that was found: cosine, text, where it stands."""

    rank: int
    score: float
    file: str
    line: int
    section: str
    text: str


@dataclass(frozen=True)
class Found:
    """The hits, best first, which model found them, and what the searcher should know."""

    model: str
    hits: list[Hit]
    note: str | None = None


def hits(
    generation: Generation, encoder: LightEncoder, name: str, adapter: LightAdapter | None, query: str, k: int
) -> list[Hit]:
    """The k best passages."""
    (ids,) = encoder.pieces([query]).ids
    encoded = encoder.encode(ids, states=adapter is not None and adapter.reads_states)
    rows, scores = generation.search(name, adapter, pooled(adapter, encoded), k)
    found = zip(rows, scores, strict=True)
    return [_hit(rank, float(score), generation, int(row)) for rank, (row, score) in enumerate(found, 1)]


def answering(models: Models, generation: Generation, usable: Container[str] | None = None) -> str:
    """What search answers from: the model in use, or while the index does not have it yet, the one before."""
    held = {BASE, *(one.name for one in models.held if usable is None or one.name in usable)}
    made = generation.manifest
    ready = {name for name in held & made.models.keys() if made.digests.get(name) == models.digest(name)}
    return next(name for name in (models.in_use, generation.manifest.in_use, BASE) if name in ready)


def search_site(place: SiteHome, query: str, k: int, model: str | None, progress: Callable[[int], Progress]) -> Found:
    """Update the index where little is missing, or there is none yet; then search.

    ``progress`` hears how many texts are to be encoded and returns what hears of each batch.
    """
    if not query.strip():
        raise NexusError("there is nothing to search for: the question is empty")
    shelf, settings = Shelf(place), place.settings()
    asked = shelf.resolve(model) if model else None
    note = _update(place, progress)
    generation, base = open_current(place.index_folder), base_hash(settings.base_folder)
    if generation is None or generation.manifest.base != base:
        raise NexusError("there is no index over this base model yet; `nexus-client index` makes it")
    name = asked or answering(shelf.models, generation)
    encoder = LightEncoder(graph_of(place, settings, base), settings.base_folder, settings.cpu_threads)
    return Found(name, hits(generation, encoder, name, light_model(shelf, name, base), query, k), note)


def _update(place: SiteHome, progress: Callable[[int], Progress]) -> str | None:
    """What the searcher should know of the index."""

    def on_wait() -> None:
        if open_current(place.index_folder) is not None:
            raise _Busy

    try:
        with building(place, on_wait=on_wait) as build:
            if not build.due:
                return None
            if (count := len(build.missing)) > LITTLE and build.old is not None:
                build.drop_gone()
                return f"{count} texts are not in the index yet: `nexus-client index` encodes them"
            build.run(progress(count))
            return None
    except _Busy:
        return "another process is updating the index; this is from the one before"


class _Busy(Exception):
    """Another process has the right to build, and there is an index to answer from."""


def _hit(rank: int, score: float, generation: Generation, row: int) -> Hit:
    passage = generation.passage(row)
    return Hit(rank, score, passage.file, passage.line, passage.section, passage.text)
