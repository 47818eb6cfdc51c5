"""The embedding cache: what the frozen encoder said of each text, so that it sees each text once.

LMDB, one folder per base model, keys = kind + SHA-256 of the text, so an interrupted run loses nothing and two
processes may read at once.  It reveals text as text does: mode 0700, never sent, deleted with the rows it came
from.  Pooled vectors are float32, token states float16 (768 bytes a token, the price of salience).
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import lmdb
import numpy as np
from nexus_common.disk import room
from nexus_common.errors import NexusError, Refusal
from nexus_common.layout import WIDTH
from numpy.typing import NDArray

Kind = Literal[b"p", b"t"]
POOLED: Final[Kind] = b"p"
TOKENS: Final[Kind] = b"t"
LOCK_BYTES: Final = 8192  # of the 126 readers that LMDB provides for
MAP_BYTES: Final = 1 << 40  # address space, not disk: the file grows with its content


class NotCached(NexusError):
    """An entry that was there is gone: another program works on the same folder."""


class Cache:
    """Frozen-encoder outputs by text."""

    def __init__(self, folder: Path) -> None:
        self._env = open_environment(folder)

    def missing(self, kind: Kind, texts: Iterable[str]) -> list[str]:
        """Those texts that have no entry of this kind yet."""
        with self._env.begin() as view:
            return [text for text in texts if view.get(_key(kind, text)) is None]

    def put(self, kind: Kind, entries: Sequence[tuple[str, NDArray[Any]]]) -> None:
        """Store a batch, whole or not at all."""
        dtype = np.float32 if kind == POOLED else np.float16
        try:
            with self._env.begin(write=True) as change:
                for text, array in entries:
                    change.put(_key(kind, text), np.ascontiguousarray(array, dtype).tobytes())
        except lmdb.Error as problem:
            raise unwritable(self._env, problem) from None

    def pooled(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, 384]; every text must be there."""
        with self._env.begin(buffers=True) as view:
            rows = [np.frombuffer(_found(view, POOLED, text), np.float32) for text in texts]
            return np.stack(rows) if rows else np.empty((0, WIDTH), np.float32)

    def tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """States of all their tokens end to end [tokens, 384], and each text's length [n]; every text must be there."""
        with self._env.begin(buffers=True) as view:
            each = [np.frombuffer(_found(view, TOKENS, text), np.float16).reshape(-1, WIDTH) for text in texts]
            states = np.concatenate(each) if each else np.empty((0, WIDTH), np.float16)
            return states, np.array([len(one) for one in each], np.int64)

    def keep_only(self, *, pooled: Collection[str], tokens: Collection[str]) -> int:
        """Delete all entries but the pooled vectors and token states of these texts; how many were deleted."""
        wanted = {_key(POOLED, text) for text in pooled} | {_key(TOKENS, text) for text in tokens}
        with self._env.begin(write=True) as change:
            gone = [bytes(key) for key in change.cursor().iternext(values=False) if bytes(key) not in wanted]
            for key in gone:
                change.delete(key)
        return len(gone)

    def close(self) -> None:
        """Release the file."""
        self._env.close()


def open_environment(folder: Path) -> lmdb.Environment:
    """A folder of LMDB that can be deleted at any time; NexusError where it cannot be opened."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _allocate(folder / "lock.mdb", LOCK_BYTES)
        return lmdb.open(str(folder), map_size=MAP_BYTES, metasync=True, mode=0o600, max_spare_txns=2)
    except (lmdb.Error, OSError) as problem:
        raise NexusError(
            f"the embedding cache {folder} cannot be opened ({problem}); {room(folder)}; it can be deleted at any "
            "time and is then made again"
        ) from None


def unwritable(environment: lmdb.Environment, problem: Exception) -> Refusal:
    """That a write has failed, mostly for want of room."""
    path = environment.path()
    return Refusal("no-space", f"the embedding cache {path} cannot be written ({problem}); {room(Path(path))}")


def _allocate(path: Path, size: int) -> None:
    """Give a file room on the disk: LMDB maps this one, and a page without room would end the process (SIGBUS)."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
    finally:
        os.close(file)


def _found(view: lmdb.Transaction, kind: Kind, text: str) -> bytes | memoryview:
    value = view.get(_key(kind, text))
    if value is None:
        raise NotCached("a text has left the embedding cache while it was in use; it is embedded again")
    return value


def _key(kind: Kind, text: str) -> bytes:
    return kind + hashlib.sha256(text.encode()).digest()
