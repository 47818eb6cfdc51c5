"""What a site makes of a federated version for itself: trained on with a pull back towards it, or mixed with its own.

The pull is L2 towards the start as a proximal step (Parikh and Boyd 2014): after each round of local steps a share of
the way back is gone.  Mixtures are averages in weight space (Wortsman et al. 2022).  All of it follows from the
version, this site's rows and the plan's seed, so the same site makes the same candidates again.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from nexus_common.adapter import DendriticLayer, LayerMaker
from nexus_common.layout import Layout, Vector
from nexus_common.stages import grown
from nexus_common.versions import StoredAdapter

from nexus_client.train import local_update
from nexus_client.workspace import Readied

PULLS: Final = (0.5, 0.2)  # of the way back to the version, after each round
ROUNDS: Final = 5
MIXTURES: Final = (0.25, 0.5, 0.75)  # of the adapter that this site trained alone
TRIED: Final = len(PULLS) + len(MIXTURES)  # of which one is picked
OnStep = Callable[[int, float], None]


def candidates(
    site: str,
    readied: Readied,
    version: StoredAdapter,
    alone: StoredAdapter,
    on_step: OnStep = lambda *_: None,
    layer: LayerMaker = DendriticLayer,
) -> Iterator[tuple[Layout, Vector]]:
    """Every personal adapter to choose from; ``on_step`` hears each step, and may raise to end it."""
    local, seed = version.recipe.local, version.recipe.adapter.seed
    for at, pull in enumerate(PULLS):
        rng = np.random.default_rng([seed, at, version.number, *site.encode()])
        vector = version.vector
        for _ in range(ROUNDS):
            data = readied.tasks, readied.states, local
            trained = vector + local_update(version.layout, vector, *data, rng, on_step, layer)
            vector = (version.vector + np.float32(1 - pull) * (trained - version.vector)).astype(np.float32)
        yield version.layout, vector
    yield from mixtures(version, alone)


def mixtures(version: StoredAdapter, alone: StoredAdapter) -> Iterator[tuple[Layout, Vector]]:
    """Averages of two adapters in the smallest layout that holds both; none where their activations differ."""
    if version.layout.activation != alone.layout.activation:
        return
    layout, seed = _joint(version.layout, alone.layout), version.recipe.adapter.seed_bytes
    one, other = (grown(adapter.vector, adapter.layout, layout, seed) for adapter in (version, alone))
    for share in MIXTURES:
        yield layout, ((1 - share) * one + share * other).astype(np.float32)


def _joint(one: Layout, other: Layout) -> Layout:
    heads = [layout.salience for layout in (one, other) if layout.salience is not None]
    return Layout(max(one.projection, other.projection), max(heads, default=None), one.activation)
