"""Files of a generation of the index, each written once, synced, and for this account alone."""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nexus_common.disk import FULL, room
from nexus_common.errors import NexusError


def write_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[Any]) -> None:
    """A .npy file, part after part: a mapped one would end the process where the disk is full."""

    def chunks() -> Iterator[bytes]:
        yield _npy_header(shape, dtype)
        for part in parts:
            yield np.ascontiguousarray(part, dtype).tobytes()

    write_file(path, chunks())


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    out = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, described)
    return out.getvalue()


def write_file(path: Path, chunks: Iterable[bytes]) -> None:
    """A new file, synced, for this account alone; NexusError where the disk is full."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        raise NexusError(
            f"the index cannot be written ({problem.strerror}): {room(path.parent)}; free some space; the old index "
            "goes on answering"
        ) from None
