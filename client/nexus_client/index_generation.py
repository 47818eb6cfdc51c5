"""Writing a generation of the index: all its files beside the old one, then the pointer that makes it count."""

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from nexus_common.disk import sync_folder, write_durably
from nexus_common.layout import WIDTH

from nexus_client.corpus import Passage
from nexus_client.index import Generation, Manifest, line_of, mapped, norms_of, projections
from nexus_client.index_files import write_array, write_file
from nexus_client.light_adapter import LightAdapter, head_of
from nexus_client.scan import SCANNED_ROWS, sketch_of
from nexus_client.vectors import Vectors

COPIED_AT_ONCE: Final = 8192


@dataclass(frozen=True)
class Contents:
    """Of a generation; what of the manifest follows from passages and models is filled in when it is written."""

    passages: list[Passage]
    models: dict[str, LightAdapter | None]
    manifest: Manifest


def generations(index: Path) -> list[Path]:
    """Folders of all that there are, whole or not."""
    return [one for one in index.iterdir() if one.is_dir() and one.name.isdigit()]


def write_generation(index: Path, contents: Contents, vectors: Vectors, old: Generation | None) -> None:
    """All files, then the pointer; what the ``old`` generation has already is linked.

    NotCached where a passage has no vector under one of the models' heads.
    """
    newest = max((int(one.name) for one in generations(index)), default=0)
    number = max(1 + newest, time.time_ns() // 1_000_000)  # a name is never used again, also where all were deleted
    folder = index / f"{number:08}"
    folder.mkdir(mode=0o700)
    named, lengths = hashlib.sha256(), [0]
    for passage in contents.passages:
        named.update(line := line_of(passage))
        lengths.append(len(line))
    told = {
        "passages": named.hexdigest(), "rows": len(contents.passages), "at": time.time(),
        "models": {name: head_of(one) for name, one in contents.models.items()},
    }  # fmt: skip
    manifest = contents.manifest.model_copy(update=told)
    offsets = np.cumsum(lengths, dtype=np.int64)
    write_file(folder / "passages.jsonl", map(line_of, contents.passages))
    write_array(folder / "offsets.npy", offsets.shape, offsets.dtype, [offsets])
    _Rows(folder, manifest, old).write(contents, vectors)
    write_file(folder / "manifest.json", [manifest.model_dump_json().encode()])
    sync_folder(folder)
    sync_folder(index)
    write_durably(index / "CURRENT", folder.name.encode())


class _Rows:
    """The arrays of a generation; of an old one with the same passages they are linked."""

    def __init__(self, folder: Path, manifest: Manifest, old: Generation | None) -> None:
        self._folder, self._count = folder, manifest.rows
        self._old = old if old and _made_of(old.manifest) == _made_of(manifest) else None
        digests = self._old.manifest.digests if self._old else {}
        self._known = {name for name, digest in manifest.digests.items() if digests.get(name) == digest}

    def write(self, contents: Contents, vectors: Vectors) -> None:
        """Vectors of each head, and what each model needs."""
        texts = [passage.text for passage in contents.passages]
        for head in {head_of(adapter) for adapter in contents.models.values()}:
            parts = (vectors.of(head, texts[at : at + COPIED_AT_ONCE]) for at in range(0, len(texts), COPIED_AT_ONCE))
            self._write_rows(f"head-{head}", parts, linked=True)
        for name, adapter in contents.models.items():
            if adapter is None:
                continue
            rows, known = mapped(self._folder / f"head-{adapter.head}.npy"), name in self._known
            if not adapter.linear:
                self._write_rows(f"model-{name}", projections(adapter, rows), linked=known)
            elif not (known and self._linked(f"norms-{name}.npy")):
                norms = norms_of(adapter, rows)
                write_array(self._folder / f"norms-{name}.npy", norms.shape, norms.dtype, [norms])

    def _write_rows(self, name: str, parts: Iterable[Any], *, linked: bool) -> None:
        file = self._folder / f"{name}.npy"
        if not (linked and self._linked(file.name)):
            write_array(file, (self._count, WIDTH), np.dtype(np.float16), parts)
        if self._count > SCANNED_ROWS and not (linked and self._linked(f"{name}.sketch.npy")):
            rows = mapped(file)
            sketch = np.empty((WIDTH // 64, self._count), np.uint64)
            for at in range(0, self._count, COPIED_AT_ONCE):
                sketch[:, at : at + COPIED_AT_ONCE] = sketch_of(rows[at : at + COPIED_AT_ONCE])
            write_array(self._folder / f"{name}.sketch.npy", sketch.shape, sketch.dtype, [sketch])

    def _linked(self, name: str) -> bool:
        old = self._folder.parent / self._old.name / name if self._old else None
        if old is None or not old.exists():
            return False
        try:
            os.link(old, self._folder / name)
        except OSError:  # a file system without links
            return False
        return True


def _made_of(manifest: Manifest) -> tuple[str, str, str]:
    return manifest.base, manifest.precision, manifest.passages
