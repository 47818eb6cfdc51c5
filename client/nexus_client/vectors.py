"""What the encoder said of each text under each salience head, so that an update of the index encodes only new texts.

LMDB, like the training cache, but float16 and before the projection (768 bytes a text and head): an interrupted build
loses one batch.  As private as text: mode 0700, and what leaves the site's files leaves here too.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import lmdb
import numpy as np
from nexus_common.layout import WIDTH
from numpy.typing import NDArray

from nexus_client.cache import NotCached, open_environment, unwritable
from nexus_client.light import Floats

Progress = Callable[[int, int], None]
Halves = NDArray[np.float16]


class Vectors:
    """Pooled vectors by head and text, of one base model at one precision."""

    def __init__(self, folder: Path) -> None:
        self._environment = open_environment(folder)

    def missing(self, heads: Collection[str], texts: Iterable[str]) -> list[str]:
        """Those texts that lack a vector under one of the heads."""
        with self._environment.begin() as view:
            return [text for text in texts if any(view.get(_key(head, text)) is None for head in heads)]

    def put(self, texts: Sequence[str], pooled: Mapping[str, Floats]) -> None:
        """Store a batch, whole or not at all: for each head vectors [n, 384] of these texts."""
        try:
            with self._environment.begin(write=True) as change:
                for head, vectors in pooled.items():
                    for text, vector in zip(texts, vectors.astype(np.float16), strict=True):
                        change.put(_key(head, text), vector.tobytes())
        except lmdb.Error as problem:
            raise unwritable(self._environment, problem) from None

    def of(self, head: str, texts: Sequence[str]) -> Halves:
        """[n, 384]; every text must be there."""
        out = np.empty((len(texts), WIDTH), np.float16)
        with self._environment.begin(buffers=True) as view:
            for i, text in enumerate(texts):
                if (found := view.get(_key(head, text))) is None:
                    raise NotCached("a text has left the index's vectors while it was in use; build the index again")
                out[i] = np.frombuffer(found, np.float16)
        return out

    def keep_only(self, heads: Collection[str], texts: Collection[str]) -> int:
        """Delete all others; how many were deleted."""
        wanted = {_key(head, text) for head in heads for text in texts}
        try:
            with self._environment.begin(write=True) as change:
                gone = [bytes(key) for key in change.cursor().iternext(values=False) if bytes(key) not in wanted]
                for key in gone:
                    change.delete(key)
        except lmdb.Error as problem:
            raise unwritable(self._environment, problem) from None
        return len(gone)

    def close(self) -> None:
        """Release the file."""
        self._environment.close()


def _key(head: str, text: str) -> bytes:
    return head.encode() + b"\n" + hashlib.sha256(text.encode()).digest()
