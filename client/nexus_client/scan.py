"""Nearest rows by dot product in numpy alone: a scan of one bit a number, then exact scores of the best few hundred.

The sketch keeps the sign of each of the 384 numbers, 48 bytes a row; the Hamming distance to the query's signs orders
rows nearly as the angle does (Charikar 2002), and 400 are scored exactly from the float16 rows, which stay on disk.
Below 20,000 rows plain products are as fast and exact.  No graph, nothing to tune, nothing to compact; beyond some
millions of rows an approximate index, such as faiss, is the better tool.
"""

from functools import cached_property
from typing import Final

import numpy as np
from nexus_common.layout import WIDTH
from numpy.typing import NDArray

from nexus_client.light import Floats
from nexus_client.vectors import Halves

SCANNED_ROWS: Final = 20_000  # up to here every row is scored
RESCORED: Final = 400
Sketch = NDArray[np.uint64]


class Rows:
    """Vectors [n, 384] and, where there are many, their sketch [6, n]."""

    def __init__(self, vectors: Halves, sketch: Sketch | None) -> None:
        self.vectors, self._sketch = vectors, sketch

    @cached_property
    def _exact(self) -> Floats:
        """In memory as float32: 30 MB at most."""
        return self.vectors.astype(np.float32)

    def best(
        self, direction: Floats, k: int, offset: float = 0.0, norms: Floats | None = None
    ) -> tuple[NDArray[np.int64], Floats]:
        """The k rows with the highest (x.direction + offset) / norm, falling."""
        if self._sketch is None:
            rows, scores = np.arange(len(self.vectors)), self._exact @ direction
        else:
            rows = self._near(direction, max(RESCORED, k))
            scores = self.vectors[rows].astype(np.float32) @ direction
        scores = scores + np.float32(offset)
        if norms is not None:
            scores = scores / norms[rows]
        k = min(k, len(rows))
        top = np.argpartition(-scores, k - 1)[:k] if k else rows[:0]
        top = top[np.argsort(-scores[top], kind="stable")]
        return rows[top], scores[top]

    def _near(self, direction: Floats, count: int) -> NDArray[np.int64]:
        """Rows with the fewest signs unlike the direction's."""
        if self._sketch is None:
            raise ValueError("there is no sketch")
        apart = np.zeros(len(self.vectors), np.uint16)
        for word, wanted in zip(self._sketch, sketch_of(direction[None])[:, 0], strict=True):
            apart += np.bitwise_count(word ^ wanted)
        near: NDArray[np.int64] = np.sort(np.argpartition(apart, count)[:count])  # in the order they lie on disk
        return near


def sketch_of(vectors: NDArray[np.floating]) -> Sketch:
    """The signs of vectors [n, 384] as [6, n] words of 64 bits."""
    return np.ascontiguousarray(np.packbits(vectors > 0, axis=1).view(np.uint64).reshape(-1, WIDTH // 64).T)
