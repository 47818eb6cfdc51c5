"""``nexus-client serve``: embeddings for OpenAI's clients, search over the site's own text, a page for a person.

Texts of all requests pass the encoder one after the other, a few of each request in turn, so a long request delays a
short one by milliseconds, and memory does not grow with the number of askers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from nexus_common.errors import NexusError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nexus_client import openai_api, search_page
from nexus_client.guard import Bodies, Guard, Metrics, Names, paths_of
from nexus_client.index_updates import IndexUpdates
from nexus_client.light import Floats, LightEncoder, Pieces, groups
from nexus_client.light_adapter import LightAdapter, pooled
from nexus_client.model_list import BASE, Gone
from nexus_client.openai_api import ApiError
from nexus_client.search import MOST_HITS, hits
from nexus_client.snapshot import NEXUS, Snapshot, Snapshots

log = logging.getLogger(__name__)
WATCHES_EVERY_SECONDS: Final = 0.5
TURN_PIECES: Final = 512  # of one request, before the next one's turn
TURN_TEXTS: Final = 32
MOST_QUERY_CHARACTERS: Final = 10_000


class Service:
    """What answers; one a process."""

    def __init__(self, site: str, encoder: LightEncoder, snapshots: Snapshots, updates: IndexUpdates) -> None:
        self._site, self._encoder, self._snapshots, self._updates = site, encoder, snapshots, updates
        self._turn, self._bodies, self.metrics = asyncio.Lock(), Bodies(), Metrics()
        self._count(snapshots.current)

    def app(self, token: str | None, names: Names | None) -> Guard:
        """The ASGI application."""
        routes = [
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/adapt", self._adapt, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/search", self._search),
            Route("/healthz", self._health),
            Route("/metrics", self._metrics),
            Route("/", self._page),
        ]
        handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            ApiError: _refused, HTTPException: _no_route, Exception: _fault,
        }  # fmt: skip
        inner = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._watch)
        return Guard(inner, self.metrics, token, names)

    @asynccontextmanager
    async def _watch(self, _: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watching())
        try:
            yield
        finally:
            task.cancel()
            self._updates.stop()

    async def _watching(self) -> None:
        now = True
        while True:
            try:
                now = await asyncio.to_thread(self._snapshots.refresh) or now
                self._count(self._snapshots.current)
                generation = self._snapshots.current.generation
                made = generation.manifest if generation else None
                await asyncio.to_thread(self._updates.look, made, now=now)
                now = False
            except Exception:
                log.exception("looking for new models met a fault")  # and what is there goes on answering
            await asyncio.sleep(WATCHES_EVERY_SECONDS)

    def _count(self, snapshot: Snapshot) -> None:
        self.metrics.rows.set(len(snapshot.generation or ()))
        self.metrics.model.clear()
        self.metrics.model.labels(snapshot.served, snapshot.searching or "").set(1)

    async def _embeddings(self, request: Request) -> Response:
        snapshot = self._snapshots.current
        with await self._bodies.read(request) as body:
            asked = await asyncio.to_thread(openai_api.read_embeddings, body)
            name, adapter = _known(snapshot, asked.model)
            texts = asked.texts
            vectors, pieces = await self._embed(texts, adapter, request)
            return await _json(openai_api.answer, f"{NEXUS}@{name}", vectors, asked.encoding_format, pieces)

    async def _adapt(self, request: Request) -> Response:
        snapshot = self._snapshots.current
        with await self._bodies.read(request) as body:
            asked = await asyncio.to_thread(openai_api.read_adapt, body)
            name, adapter = _known(snapshot, asked.model)
            if adapter is not None and adapter.reads_states:
                raise ApiError(
                    409,
                    f"model {name!r} pools the words of a text in its own way, which base vectors do not tell; embed "
                    "the texts again at /v1/embeddings",
                    param="model",
                    code="needs_text",
                )
            vectors = await asyncio.to_thread(lambda: asked.vectors)
            adapted = vectors if adapter is None else await asyncio.to_thread(adapter.project, vectors)
            return await _json(openai_api.answer, f"{NEXUS}@{name}", adapted, asked.encoding_format, None)

    async def _embed(
        self, texts: Sequence[str], adapter: LightAdapter | None, request: Request
    ) -> tuple[Floats, Pieces]:
        """[n, 384]; a client that is gone gets no more turns."""
        ids, cut = list[list[int]](), list[bool]()
        for group in groups(texts):
            async with self._turn:
                found = await asyncio.to_thread(self._encoder.pieces, group)
            ids, cut = ids + found.ids, cut + found.cut
        pieces = Pieces(ids, cut)
        states, out = adapter is not None and adapter.reads_states, list[Floats]()

        def encode(some: Sequence[list[int]]) -> Floats:
            found = np.stack([pooled(adapter, self._encoder.encode(ids, states=states)) for ids in some])
            return found if adapter is None else adapter.project(found)

        for some in turns(pieces.ids):
            async with self._turn:
                out.append(await asyncio.to_thread(encode, some))
            if await request.is_disconnected():
                raise ApiError(499, "the client is gone")
        self.metrics.texts.inc(len(texts))
        self.metrics.cut.inc(sum(pieces.cut))
        return np.concatenate(out), pieces

    async def _models(self, _: Request) -> Response:
        snapshot = self._snapshots.current
        return JSONResponse({"object": "list", "data": [self._shown(snapshot, name) for name in _names(snapshot)]})

    async def _model(self, request: Request) -> Response:
        snapshot, asked = self._snapshots.current, request.path_params["name"]
        _known(snapshot, asked)
        return JSONResponse(self._shown(snapshot, asked))

    def _shown(self, snapshot: Snapshot, asked: str) -> dict[str, Any]:
        held = snapshot.models.named(snapshot.model(asked)[0])
        return {"id": asked, "object": "model", "created": int(held.at) if held else 0, "owned_by": self._site}

    async def _search(self, request: Request) -> Response:
        snapshot, asked = self._snapshots.current, request.query_params
        query, count = asked.get("q", ""), asked.get("k", "5")
        if not query.strip() or len(query) > MOST_QUERY_CHARACTERS:
            raise ApiError(400, f"q must be a question of 1 to {MOST_QUERY_CHARACTERS} characters", param="q")
        if not (count.isascii() and count.isdigit() and len(count) < 4 and 1 <= int(count) <= MOST_HITS):
            raise ApiError(400, f"k must be a whole number from 1 to {MOST_HITS}", param="k")
        generation, name = snapshot.generation, snapshot.searching
        if generation is None or name is None:
            raise ApiError(503, "the index is being made; try again in a while", code="no_index")
        adapter = snapshot.adapters[name]
        async with self._turn:
            found = await asyncio.to_thread(hits, generation, self._encoder, name, adapter, query, int(count))
        self.metrics.texts.inc()
        shown = {"model": f"{NEXUS}@{name}", "rows": len(generation), "hits": [asdict(hit) for hit in found]}
        return JSONResponse(shown, headers={"Cache-Control": "no-store"})

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _page(self, _: Request) -> Response:
        return Response(search_page.PAGE, headers=search_page.HEADERS)


def turns(ids: Sequence[list[int]]) -> list[list[list[int]]]:
    """Texts in their order, in parts of at most ``TURN_TEXTS``, and ``TURN_PIECES`` where there are several."""
    parts, size = list[list[list[int]]](), 0
    for one in ids:
        if not parts or len(parts[-1]) == TURN_TEXTS or size + len(one) > TURN_PIECES:
            parts.append([])
            size = 0
        parts[-1].append(one)
        size += len(one)
    return parts


def _names(snapshot: Snapshot) -> list[str]:
    names = [NEXUS, f"{NEXUS}@{BASE}", *(f"{NEXUS}@{held.name}" for held in snapshot.models.held)]
    return [name for name in names if _usable(snapshot, name)]


def _usable(snapshot: Snapshot, asked: str) -> bool:
    try:
        snapshot.model(asked)
    except NexusError:
        return False
    return True


def _known(snapshot: Snapshot, asked: str) -> tuple[str, LightAdapter | None]:
    """ApiError where there is no such model, or none any more."""
    try:
        return snapshot.model(asked)
    except Gone as gone:
        told = f"{gone}; embed your texts again with one of these (older versions are served for two more)"
        raise ApiError(410, told, param="model", code="model_gone") from None
    except NexusError as problem:
        raise ApiError(404, str(problem), param="model", code="model_not_found") from None


async def _json(make: Callable[..., Any], *parts: Any) -> Response:
    """Long answers are written beside the event loop."""
    return await asyncio.to_thread(lambda: JSONResponse(make(*parts)))


async def _refused(_: Request, refused: ApiError) -> Response:
    return JSONResponse(refused.body, refused.status, {"Retry-After": "1"} if refused.status in (429, 503) else None)


async def _no_route(request: Request, problem: HTTPException) -> Response:
    told = ApiError(problem.status_code, f"{problem.detail}; there is {', '.join(paths_of(request.app))}")
    return JSONResponse(told.body, told.status, problem.headers)


async def _fault(_: Request, fault: Exception) -> Response:
    told = (
        str(fault) if isinstance(fault, NexusError) else f"the server met a fault ({type(fault).__name__}); see its log"
    )
    return JSONResponse(ApiError(500, told).body, 500)
