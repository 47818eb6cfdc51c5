"""The search index of a site: immutable generations in folders of their own, and which of them is current.

A generation holds the passages, for each salience head their vectors before the projection (float16) with a sketch of
one bit a number, and for each model what makes its scores of them: the norms |W x + b| of a linear projection, for the
query is turned in place of all documents, or projected vectors where it has dendrites.  ``CURRENT`` names a generation
that is whole; it is replaced in one step, and who has an older one open goes on with it.
"""

import json
from collections.abc import Iterator
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from nexus_common.config import Settings
from nexus_common.errors import NexusError
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from nexus_client.corpus import Passage
from nexus_client.encoder_file import Precision
from nexus_client.light import Floats
from nexus_client.light_adapter import LightAdapter, head_of
from nexus_client.scan import SCANNED_ROWS, Rows
from nexus_client.vectors import Halves

OPENED_AGAIN: Final = 10
PROJECTED_AT_ONCE: Final = 8192
HEADER: Final = 128  # bytes of a .npy file before its numbers


class Manifest(Settings):
    """What a generation holds.

    ``stamp`` names the files it was made of, ``passages`` their hash; ``models`` maps each model that it answers for to
    its head, ``digests`` names its numbers; ``left_out`` maps others to why it cannot, ``marks`` says as which file;
    ``in_use`` is what search answers from; ``asked`` are models that a person wanted in it.
    """

    format: Literal[1] = 1
    base: str
    precision: Precision
    stamp: str
    passages: str
    rows: int
    models: dict[str, str]
    digests: dict[str, str] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    marks: dict[str, str] = Field(default_factory=dict)
    in_use: str
    asked: tuple[str, ...] = ()
    at: float


class Generation:
    """A generation, open: its files may be deleted while it answers."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        self._text = (
            np.memmap(folder / "passages.jsonl", np.uint8, "r") if self.manifest.rows else np.empty(0, np.uint8)
        )
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._heads = {head: _rows(folder, f"head-{head}") for head in set(self.manifest.models.values())}
        self._norms = {
            name: np.load(file) for name in self.manifest.models if (file := folder / f"norms-{name}.npy").exists()
        }
        self._projected = {
            name: _rows(folder, f"model-{name}")
            for name in self.manifest.models
            if (folder / f"model-{name}.npy").exists()
        }

    def __len__(self) -> int:
        """Passages."""
        return self.manifest.rows

    def passage(self, row: int) -> Passage:
        """A row's text and where it stands."""
        start, end = self._offsets[row : row + 2]
        return Passage(*json.loads(self._text[start:end].tobytes()))

    @cached_property
    def texts(self) -> set[str]:
        """All of them."""
        return {self.passage(row).text for row in range(len(self))}

    def search(
        self, name: str, adapter: LightAdapter | None, pooled: Floats, k: int
    ) -> tuple[NDArray[np.int64], Floats]:
        """The k best rows with their cosines, falling, for a query's vector [384] before the projection.

        NexusError where the index lacks what the model needs.
        """
        head = self._heads.get(head_of(adapter))
        if head is None:
            raise NexusError(
                f"the index holds no vectors of model {name!r}, which pools texts in its own way; "
                f"`nexus-client index --model {name}` encodes them"
            )
        if adapter is None:
            return head.best(pooled, k)
        query = adapter.project(pooled[None])[0]
        if not adapter.linear:
            return self._projection(name, adapter, head).best(query, k)
        if name not in self._norms:
            self._norms[name] = norms_of(adapter, head.vectors)
        direction, offset = adapter.turned(query)
        return head.best(direction, k, offset, self._norms[name])

    def _projection(self, name: str, adapter: LightAdapter, head: Rows) -> Rows:
        if name not in self._projected:
            if len(self) > SCANNED_ROWS:
                raise NexusError(
                    f"model {name!r} has dendrites, and the index holds no vectors of it; "
                    f"`nexus-client index --model {name}` makes them"
                )
            self._projected[name] = Rows(np.concatenate([*projections(adapter, head.vectors)]), None)
        return self._projected[name]


def projections(adapter: LightAdapter, vectors: Halves) -> Iterator[Halves]:
    """All documents [n, 384] under a model's projection, in parts."""
    for at in range(0, len(vectors), PROJECTED_AT_ONCE):
        yield adapter.project(vectors[at : at + PROJECTED_AT_ONCE].astype(np.float32)).astype(np.float16)


def norms_of(adapter: LightAdapter, vectors: Halves) -> Floats:
    """|W x + b| of all documents [n]."""
    out = np.empty(len(vectors), np.float32)
    for at in range(0, len(vectors), PROJECTED_AT_ONCE):
        out[at : at + PROJECTED_AT_ONCE] = adapter.norms(vectors[at : at + PROJECTED_AT_ONCE].astype(np.float32))
    return out


def line_of(passage: Passage) -> bytes:
    """A passage as it lies in the index."""
    return json.dumps(astuple(passage), ensure_ascii=False).encode() + b"\n"


def current_name(folder: Path) -> str | None:
    """Which generation is current, None where there is no index yet."""
    try:
        name = (folder / "CURRENT").read_bytes().decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    return name if name.isdigit() else None


def open_current(folder: Path) -> Generation | None:
    """The current generation, None where there is no index yet; NexusError where it is damaged."""
    problem: Exception | None = None
    for _ in range(OPENED_AGAIN):
        if (name := current_name(folder)) is None:
            return None
        try:
            return Generation(folder / name)
        except FileNotFoundError as missing:
            problem = missing  # perhaps a build has just replaced and deleted it
        except (ValueError, OSError, EOFError, ValidationError) as broken:
            problem = broken
            break
    raise NexusError(
        f"the index in {folder} is damaged ({type(problem).__name__}); `nexus-client index` makes it again"
    ) from problem


def mapped(path: Path) -> NDArray[Any]:
    """An array that stays on disk; one without a row cannot be mapped."""
    found: NDArray[Any] = np.load(path, mmap_mode="r") if path.stat().st_size > HEADER else np.load(path)
    return found


def _rows(folder: Path, name: str) -> Rows:
    sketch = folder / f"{name}.sketch.npy"
    return Rows(mapped(folder / f"{name}.npy"), mapped(sketch) if sketch.exists() else None)
