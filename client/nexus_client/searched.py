"""The model in use as search has it: by the vectors of the index, for ``evaluate`` to judge beside the others.

Models are judged and chosen with the encoder in float32.  Search runs its graph, with 8-bit weights unless
``precision`` in ``site.toml`` says otherwise, and keeps passages as float16: what that costs shows on the site's own
questions.
"""

from collections.abc import Sequence
from contextlib import closing
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nexus_client.cache import NotCached
from nexus_client.index_build import graph_of
from nexus_client.light import LightEncoder
from nexus_client.light_adapter import LightAdapter, head_of, pooled
from nexus_client.light_models import light_model
from nexus_client.material import RankingTask, Task, parts_of, texts_of
from nexus_client.shelf import Shelf
from nexus_client.vectors import Vectors
from nexus_client.workspace import PROJECT_ROWS, Workspace

MOST_LOST: Final = 0.01
"""Of the score, by 8-bit weights, before a person should know."""


def judged_as_searched(workspace: Workspace, name: str) -> NDArray[np.float32] | None:
    """The texts of the judging part, [n, 384] as ``texts_of`` orders them, under a held model.

    Passages as they lie in the index, questions encoded now.  None where nobody searches here, so that there is no
    index; NexusError where that lacks a passage under this model, or cannot be read.
    """
    place, base = workspace.place, workspace.base_hash
    settings = place.settings()  # as search reads it: a process that runs for months has older ones
    tasks, texts = workspace.material.judge, workspace.material.texts.items
    if not tasks or not (folder := place.vectors(base, settings.precision)).exists():
        return None
    adapter, judged = light_model(Shelf(place), name, base), [texts[number] for number in texts_of(tasks)]
    head = head_of(adapter)
    with closing(Vectors(folder)) as vectors:
        missing = set(vectors.missing([head], judged))
        if lacking := _passages(tasks, texts) & missing:
            raise NotCached(f"the index lacks {len(lacking)} passages of the hold-out; `nexus-client index` updates it")
        kept = [text for text in judged if text not in missing]
        found = dict(zip(kept, vectors.of(head, kept).astype(np.float32), strict=True))
    if missing:
        encoder = LightEncoder(graph_of(place, settings, base), settings.base_folder, settings.cpu_threads)
        states = adapter is not None and adapter.reads_states
        for text, ids in zip(missing, encoder.pieces([*missing]).ids, strict=True):
            found[text] = pooled(adapter, encoder.encode(ids, states=states))
    x = np.stack([found[text] for text in judged])
    return x if adapter is None else _projected(adapter, x)


def _passages(tasks: Sequence[Task], texts: Sequence[str]) -> set[str]:
    """All that search covers of the tasks' texts: not what is a question alone."""
    parts = (parts_of(task)[isinstance(task, RankingTask) :] for task in tasks)
    return {texts[int(number)] for some in parts for part in some for number in part}


def _projected(adapter: LightAdapter, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([adapter.project(x[at : at + PROJECT_ROWS]) for at in range(0, len(x), PROJECT_ROWS)])
