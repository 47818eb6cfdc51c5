"""A site's text, ready to work with: rows read, hold-out set apart, every text through the frozen encoder once.

Everything that trains or judges at a site goes through here: the agent's rounds, ``evaluate``, ``train --local``.
"""

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from nexus_common.adapter import DendriticAdapter, LayerMaker
from nexus_common.base_model import base_hash
from nexus_common.errors import NexusError, Refusal
from nexus_common.layout import WIDTH, Layout, Vector
from nexus_common.recipe import Recipe
from numpy.typing import NDArray

from nexus_client.cache import Cache
from nexus_client.data import SiteRows, read_rows
from nexus_client.embed import CachedStates, Encoder, Progress
from nexus_client.engines import layer_of
from nexus_client.held_out import some
from nexus_client.material import Ids, RankingTask, Task, size, texts_of
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.split import Material, build_material
from nexus_client.train import best_device

PROJECT_ROWS: Final = 8192
CHOOSING_QUESTIONS: Final = 500  # of each task
CHOOSING_PASSAGES: Final = 2000  # that they are searched among
SOME_ANSWERS: Final = 8  # a label's utterances all answer each other


@dataclass(frozen=True)
class Readied:
    """What a plan trains on here and what is held out to report by: tasks whose states are in the cache, and these."""

    tasks: list[Task]
    held_out: list[Task]
    states: CachedStates


class Workspace:
    """One site's text and caches, loaded at first use; the encoder and its cache are worked on under a lock.

    Only the agent's workspace ``prunes``: takes what is no longer needed out of the cache, under nobody's feet.
    """

    def __init__(self, place: SiteHome, settings: SiteSettings, *, prunes: bool = False) -> None:
        self.place, self.settings, self._prunes = place, settings, prunes
        torch.set_num_threads(settings.cpu_threads)
        self._lock = threading.RLock()

    @cached_property
    def base_folder(self) -> Path:
        """The frozen encoder's folder."""
        return self.settings.base_folder

    @cached_property
    def base_hash(self) -> str:
        """The frozen encoder's name by content."""
        return base_hash(self.base_folder)

    @cached_property
    def encoder(self) -> Encoder:
        """The frozen encoder with its cache."""
        return Encoder(self.base_folder, Cache(self.place.state / "cache" / self.base_hash[:16]))

    @cached_property
    def rows(self) -> SiteRows:
        """All usable rows; NexusError where there are none."""
        return read_rows(self.settings.data, self.place.settings_folder, self.base_folder / "tokenizer.json")

    @cached_property
    def material(self) -> Material:
        """Rows as tasks, hold-out apart."""
        return build_material(self.rows, self.settings.holdout_share)

    @cached_property
    def quick_part(self) -> list[Task]:
        """The small part of the choosing tasks that versions are reported on and accepted by; ``ready`` caches it."""
        return some(self.material.choose, self.material.texts.items)

    @cached_property
    def choosing_part(self) -> list[Task]:
        """The choosing tasks that this site's models are chosen by, bounded: a small board takes minutes for them."""
        return some(self.material.choose, self.material.texts.items, CHOOSING_QUESTIONS, CHOOSING_PASSAGES)

    @cached_property
    def fingerprint(self) -> str:
        """Names rows, hold-out and base together: what a locally trained adapter depends on."""
        parts = [self.rows.fingerprint, self.settings.holdout_share, self.base_hash, self.settings.salience_rows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def layer(self) -> LayerMaker:
        """The engine that trains here; NexusError where its package is not installed."""
        return layer_of(self.settings.engine)

    def check_base(self, recipe: Recipe) -> None:
        """Refuse a recipe over another base model than this site's."""
        if recipe.base_model != self.base_hash:
            raise Refusal(
                "unknown-base-model",
                f"the plan names base {recipe.base_model[:12]}…, this site has "
                f"{self.base_hash[:12]}… ({self.base_folder}); set base_model in site.toml",
            )

    def ready(self, recipe: Recipe, progress: Progress = lambda *_: None) -> Readied:
        """Embed what is missing and return what trains; what is no longer needed leaves the cache.

        Where the adapter has salience, or may grow it, all stages train on the rows whose token states are kept.
        """
        with self._lock:
            material = self.material
            if not material.train:
                raise Refusal("no-data", f"none of {self.rows.count} rows is a training row; see `nexus-client check`")
            texts, cache = material.texts.items, self.encoder.cache
            held_out = self.quick_part
            if all(arm.salience is None for stage in recipe.stages for arm in stage.arms):
                if self._prunes:
                    cache.keep_only(pooled=texts, tokens=texts)
                self.encoder.fill(texts, tokens=(), progress=progress)
                return Readied(material.train, held_out, CachedStates(cache, texts))
            numbers = first_texts(material.train, texts, self.settings.salience_rows)
            tasks = [task for task in (task.only(set(numbers)) for task in material.train) if size(task)]
            if not tasks:
                raise NexusError(
                    f"salience_rows = {self.settings.salience_rows} leaves no training row; raise it in site.toml "
                    "(default 5000)"
                )
            tokens = [texts[number] for number in dict.fromkeys([*numbers, *map(int, texts_of(held_out))])]
            if self._prunes:
                cache.keep_only(pooled=texts, tokens=tokens)
            self.encoder.fill(texts, tokens=tokens, progress=progress)
            return Readied(tasks, held_out, CachedStates(cache, texts))

    def embed(
        self, adapters: Sequence[tuple[Layout, Vector]], numbers: Ids, progress: Progress = lambda *_: None
    ) -> list[NDArray[np.float32]]:
        """The texts of these numbers under each adapter, [n, 384] of length 1; each text is encoded once at most.

        ``progress`` hears each batch of texts, and may raise to end it.
        """
        device = best_device()
        models = [DendriticAdapter(layout).load_vector(vector).to(device).eval() for layout, vector in adapters]
        pooling = [i for i, model in enumerate(models) if model.salience is not None]
        projecting = [i for i, model in enumerate(models) if model.salience is None]
        texts = [self.material.texts.items[number] for number in numbers]
        place = {text: i for i, text in enumerate(texts)}
        out = [np.empty((len(texts), WIDTH), np.float32) for _ in models]
        with self._lock, torch.inference_mode():
            try:
                done = 0
                for batch, states, lengths in self.encoder.token_batches(texts) if pooling else ():
                    progress(done, len(texts))
                    done += len(batch)
                    rows = [place[text] for text in batch]
                    for i in pooling:
                        out[i][rows] = models[i](states.to(device), lengths.to(device)).cpu().numpy()
            finally:
                self.encoder.release()
            if projecting:
                self.encoder.fill(texts, tokens=(), progress=progress)
            for at in range(0, len(texts), PROJECT_ROWS) if projecting else ():
                part = torch.from_numpy(self.encoder.cache.pooled(texts[at : at + PROJECT_ROWS])).to(device)
                for i in projecting:
                    out[i][at : at + PROJECT_ROWS] = models[i](part).cpu().numpy()
        return out

    def base_vectors(self, numbers: Ids, progress: Progress = lambda *_: None) -> NDArray[np.float32]:
        """The same texts under the base model."""
        texts = [self.material.texts.items[number] for number in numbers]
        with self._lock:
            self.encoder.fill(texts, tokens=(), progress=progress)
            return self.encoder.cache.pooled(texts)


def first_texts(tasks: Sequence[Task], texts: Sequence[str], limit: int) -> list[int]:
    """Numbers of at most ``limit`` texts of training rows, in an order that adding rows does not change."""
    rows: list[tuple[int, ...]] = []
    for task in tasks:
        if isinstance(task, RankingTask):
            right = (task.passages[places[:SOME_ANSWERS]] for places in task.positives)
            rows += [(int(q), *map(int, p)) for q, p in zip(task.queries, right, strict=True)]
            rows += [(int(p),) for p in task.passages]
        else:
            rows += [(int(a), int(b)) for a, b in zip(task.a, task.b, strict=True)]
    rows.sort(key=lambda row: hashlib.sha256(texts[row[0]].encode()).digest())
    return list(dict.fromkeys(number for row in rows for number in row))[:limit]
