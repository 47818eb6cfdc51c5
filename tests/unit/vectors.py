"""Adapters for tests: near the one at birth, every part at work."""

import numpy as np
from nexus_common.layout import WIDTH, Layout, Vector


def lively(layout: Layout, seed: int = 0) -> Vector:
    """W = I + 0.02 N; dendrites and links that count, and a gate that opens and closes."""
    vector = (0.02 * np.random.default_rng(seed).standard_normal(layout.dim)).astype(np.float32)
    for entry in layout.entries:
        place, name = entry.name.split(".", 1)
        if entry.name == "projection.weight":
            vector[entry.span] += np.eye(WIDTH, dtype=np.float32).ravel()
        elif name.startswith(("tops", "links")):
            vector[entry.span] *= 15
        elif place == "salience":
            vector[entry.span] *= 5
    return vector
