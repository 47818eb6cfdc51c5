"""A site's text, ready to work with: rows read, hold-out set apart, every text through the frozen encoder once.

Everything that trains or judges at a site goes through here: the agent's rounds, ``evaluate``, ``train --local``.
"""

import hashlib
import json
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from nexus_common.adapter import DendriticAdapter
from nexus_common.errors import NexusError, Refusal
from nexus_common.layout import Layout, Vector
from nexus_common.plan import Plan
from numpy.typing import NDArray

from nexus_client.cache import Cache
from nexus_client.data import SiteRows, read_rows
from nexus_client.embed import CachedStates, Encoder, Progress, base_hash, default_base
from nexus_client.material import Ids, RankingTask, Task
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.split import Material, build_material
from nexus_client.train import best_device

PROJECT_ROWS: Final = 8192


@dataclass(frozen=True)
class Readied:
    """What a plan trains on here: the tasks whose states are in the cache, and those states."""

    layout: Layout
    tasks: list[Task]
    states: CachedStates


class Workspace:
    """One site's text and caches; loading happens at first use, under a lock."""

    def __init__(self, place: SiteHome, settings: SiteSettings) -> None:
        self.place, self.settings = place, settings
        torch.set_num_threads(settings.cpu_threads)
        self._lock = threading.RLock()

    @cached_property
    def base_folder(self) -> Path:
        """The frozen encoder's folder."""
        return Path(self.settings.base_model) if self.settings.base_model else default_base()

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
    def fingerprint(self) -> str:
        """Names rows, hold-out and base together: what a locally trained adapter depends on."""
        parts = [self.rows.fingerprint, self.settings.holdout_share, self.base_hash, self.settings.salience_rows]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def check_plan(self, plan: Plan) -> None:
        """Refuse a run that cannot be this site's."""
        if self.place.site not in plan.sites:
            raise Refusal("wrong-context", f"run {plan.name} is for {', '.join(plan.sites)}, not for {self.place.site}")
        if plan.base_model != self.base_hash:
            raise Refusal("unknown-base-model", f"run {plan.name} names base {plan.base_model[:12]}…, this site has "
                          f"{self.base_hash[:12]}… ({self.base_folder}); set base_model in site.toml")  # fmt: skip

    def ready(self, layout: Layout, progress: Progress = lambda *_: None) -> Readied:
        """Embed what is missing and return what trains; texts that left the files leave the cache."""
        with self._lock:
            material = self.material
            if not material.train:
                raise Refusal("no-data", f"none of {self.rows.count} rows is a training row; see `nexus-client check`")
            texts = material.texts.items
            tasks, tokens = material.train, list[str]()
            if layout.salience is not None:
                tasks, numbers = within(material.train, self.settings.salience_rows)
                tokens = [texts[number] for number in numbers]
            self.encoder.cache.keep_only(texts)
            self.encoder.fill(texts, tokens=tokens, progress=progress)
            return Readied(layout, tasks, CachedStates(self.encoder.cache, texts))

    def embed(self, layout: Layout, vector: Vector, numbers: Ids) -> NDArray[np.float32]:
        """The texts of these numbers under an adapter: [n, 384] of length 1."""
        device = best_device()
        adapter = DendriticAdapter(layout).load_vector(vector).to(device).eval()
        texts = self.material.texts.items
        with torch.inference_mode():
            if adapter.salience is None:
                pooled = torch.from_numpy(self.encoder.cache.pooled([texts[n] for n in numbers]))
                parts = [adapter(part.to(device)).cpu() for part in pooled.split(PROJECT_ROWS)]
                return torch.cat(parts).numpy() if parts else np.empty((0, 384), np.float32)
            place = {texts[number]: i for i, number in enumerate(numbers)}
            out = np.empty((len(numbers), 384), np.float32)
            for batch, states, mask in self.encoder.token_batches(list(place)):
                out[[place[text] for text in batch]] = adapter(states.to(device), mask.to(device)).cpu().numpy()
        self.encoder.release()
        return out

    def base_vectors(self, numbers: Ids) -> NDArray[np.float32]:
        """The same texts under the base model."""
        return self.encoder.cache.pooled([self.material.texts.items[n] for n in numbers])


def within(tasks: list[Task], limit: int) -> tuple[list[Task], list[int]]:
    """The tasks cut down to at most ``limit`` texts, questions in an order that does not change, and those texts."""
    kept: dict[int, None] = {}
    cut: list[Task] = []
    for task in tasks:
        if not isinstance(task, RankingTask):
            rows = [i for i in range(len(task.a)) if _room(kept, {int(task.a[i]), int(task.b[i])}, limit)]
            cut.append(type(task)(task.a[rows], task.b[rows], task.score[rows]))
            continue
        questions = [i for i in range(len(task.queries))
                     if _room(kept, {int(task.queries[i]), *map(int, task.passages[task.positives[i]])}, limit)]  # fmt: skip
        for passage in task.passages:
            _room(kept, {int(passage)}, limit)
        cut.append(task.subset(questions).only_passages([i for i, p in enumerate(task.passages) if int(p) in kept]))
    if tasks and not any(len(task.queries) if isinstance(task, RankingTask) else len(task.a) for task in cut):
        raise NexusError(f"salience_rows = {limit} leaves no training row; raise it in site.toml (default 5000)")
    return cut, list(kept)


def _room(kept: dict[int, None], wanted: set[int], limit: int) -> bool:
    """Take the texts if they still fit."""
    if len(kept.keys() | wanted) > limit:
        return False
    kept.update(dict.fromkeys(sorted(wanted)))
    return True


