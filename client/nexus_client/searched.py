"""The model in use as search has it: by the vectors of the index, for ``evaluate`` to judge beside the others.

Models are judged and chosen with the encoder in float32.  Search runs its graph, with 8-bit weights unless
``precision`` in ``site.toml`` says otherwise, and keeps passages as float16: what that costs shows on the site's own
questions.
"""

from contextlib import closing
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nexus_client.cache import NotCached
from nexus_client.index_build import graph_of
from nexus_client.light import LightEncoder
from nexus_client.light_adapter import LightAdapter, head_of, pooled
from nexus_client.light_models import light_model
from nexus_client.material import RankingTask, texts_of
from nexus_client.shelf import Shelf
from nexus_client.vectors import Vectors
from nexus_client.workspace import PROJECT_ROWS, Workspace

MOST_LOST: Final = 0.01
"""Of the score, by 8-bit weights, before a person should know."""


def judged_as_searched(workspace: Workspace, name: str) -> NDArray[np.float32] | None:
    """The texts of the judging part, [n, 384] as ``texts_of`` orders them, under a held model.

    Passages as they lie in the index, questions encoded now.  None where the index lacks one of the passages under
    this model: nobody searches here, or it is being updated.
    """
    place, settings, base = workspace.place, workspace.settings, workspace.base_hash
    tasks, texts = workspace.material.judge, workspace.material.texts.items
    asked = {texts[number] for task in tasks if isinstance(task, RankingTask) for number in task.queries}
    if not tasks or not (folder := place.vectors(base, settings.precision)).exists():
        return None
    adapter, judged = light_model(Shelf(place), name, base), [texts[number] for number in texts_of(tasks)]
    with closing(Vectors(folder)) as vectors:
        missing = set(vectors.missing([head_of(adapter)], judged))
        kept = [text for text in judged if text not in missing]
        try:
            stored = dict(zip(kept, vectors.of(head_of(adapter), kept), strict=True))
        except NotCached:  # another process updates the index
            return None
    if missing - asked:
        return None
    encoder = LightEncoder(graph_of(place, settings, base), settings.base_folder, settings.cpu_threads)
    states = adapter is not None and adapter.reads_states
    for text, ids in zip(missing, encoder.pieces([*missing]).ids, strict=True):
        stored[text] = pooled(adapter, encoder.encode(ids, states=states))
    x = np.array([stored[text] for text in judged], np.float32)
    return x if adapter is None else _projected(adapter, x)


def _projected(adapter: LightAdapter, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([adapter.project(x[at : at + PROJECT_ROWS]) for at in range(0, len(x), PROJECT_ROWS)])
