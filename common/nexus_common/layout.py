"""The adapter as one flat float32 vector: which parameter lies where, under which hash, starting from which values.

Both sides use it, and the server has no torch, so it is numpy only.  Parameter names are those of the modules in
``adapter.py``; W is stored as torch stores it, ``[out, in]``.  The first dendrite weights derive from the run's seed
(design: "Growth in a federation", 1), the same bits on every CPU, so that nobody can choose them.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from nexus_common.errors import Refusal

Vector = NDArray[np.float32]
Activation = Literal["tanh", "sigmoid"]
WIDTH: Final = 384
MAX_DENDRITES: Final = 8


@dataclass(frozen=True)
class Entry:
    """One parameter: its name, its shape, and where it starts in the vector."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of float32 values."""
        return math.prod(self.shape)

    @property
    def span(self) -> slice:
        """The parameter's place in the vector."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Layout:
    """``projection``: dendrites of the 384 -> 384 layer; ``salience``: those of the 384 -> 1 head, None = no head."""

    projection: int = 0
    salience: int | None = None
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        counts = [self.projection, self.salience or 0]
        if not all(isinstance(count, int) and 0 <= count <= MAX_DENDRITES for count in counts):
            raise Refusal("layout", f"{counts} dendrites; each place takes 0 to {MAX_DENDRITES}")
        if self.activation not in ("tanh", "sigmoid"):
            raise Refusal("layout", f"activation {self.activation!r}; known are 'tanh' and 'sigmoid'")

    def __str__(self) -> str:
        places = {} if self.salience is None else {"salience": self.salience}
        counts = (places | {"projection": self.projection}).items()
        return ", ".join(f"{place} ({count} dendrite{'' if count == 1 else 's'})" for place, count in counts)

    @property
    def dendrites(self) -> int:
        """Those of both places."""
        return self.projection + (self.salience or 0)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every parameter in vector order: salience before projection, as the data flows."""
        shapes: list[tuple[str, tuple[int, ...]]] = []
        if self.salience is not None:
            shapes += [(f"salience.{n}", s) for n, s in _layer_shapes(1, self.salience, bias=False)]
        shapes += [(f"projection.{n}", s) for n, s in _layer_shapes(WIDTH, self.projection, bias=True)]
        entries, start = [], 0
        for name, shape in shapes:
            entries.append(Entry(name, shape, start))
            start += math.prod(shape)
        return tuple(entries)

    @cached_property
    def dim(self) -> int:
        """Length of the vector."""
        return sum(entry.size for entry in self.entries)

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 over the canonical description; two layouts are the same exactly if this is."""
        described = [self.activation, [[e.name, list(e.shape)] for e in self.entries]]
        return hashlib.sha256(b"nexus layout 1\n" + json.dumps(described).encode()).digest()

    def split(self, vector: Vector) -> dict[str, Vector]:
        """Views of the vector's parameters by name; refuses a vector of another length."""
        if vector.shape != (self.dim,) or vector.dtype != np.float32:
            raise Refusal("layout", f"a {vector.dtype} vector of shape {vector.shape}, expected float32 ({self.dim},)")
        return {entry.name: vector[entry.span].reshape(entry.shape) for entry in self.entries}

    def join(self, parameters: dict[str, Vector]) -> Vector:
        """The inverse of ``split``; every parameter must be there in its shape, and no other."""
        given = {name: value.shape for name, value in parameters.items()}
        if given != {entry.name: entry.shape for entry in self.entries}:
            raise Refusal("layout", f"parameters {given} do not match the layout")
        return np.concatenate([parameters[e.name].ravel() for e in self.entries]).astype(np.float32, copy=False)

    def first_vector(self, seed: bytes) -> Vector:
        """The adapter at birth: the base model's own output, whatever the number of dendrites.

        W = identity, b = 0, and every top weight t is 0; dendrite weights are 0.01 x near-normal values from ``seed``.
        """
        vector = np.zeros(self.dim, np.float32)
        for entry in self.entries:
            kind = entry.name.split(".", 1)[1]
            if entry.name == "projection.weight":
                vector[entry.span] = np.eye(WIDTH, dtype=np.float32).ravel()
            elif kind.startswith("dendrites."):
                vector[entry.span] = first_dendrite_values(seed, entry.name, entry.size)
        return vector


def _layer_shapes(out: int, dendrites: int, *, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Parameters of one dendritic layer 384 -> out, in the order in which its module declares them."""
    yield "weight", (out, WIDTH)
    if bias:
        yield "bias", (out,)
    for i in range(dendrites):
        yield f"dendrites.{i}.weight", (out, WIDTH)
        if bias:
            yield f"dendrites.{i}.bias", (out,)
    for i in range(dendrites):
        yield f"tops.{i}", (out,)
    for i in range(1, dendrites):
        yield f"links.{i - 1}", (i, out)


def first_dendrite_values(seed: bytes, name: str, count: int) -> Vector:
    """0.01 x near-normal float32 values, a function of ``seed`` and the parameter's name alone.

    z = (sum of 12 u16 - 393,210) / 65,536 from an AES-256-CTR stream (Irwin-Hall: mean 0, variance 1 to within 1e-4).
    """
    key = HKDF(SHA256(), 32, salt=None, info=b"nexus first dendrite 1\n" + name.encode()).derive(seed)
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(24 * count))
    sums = np.frombuffer(stream, "<u2").reshape(count, 12).sum(axis=1, dtype=np.int64)
    values: Vector = (np.float64(0.01) * ((sums - 393_210) / 65_536)).astype(np.float32)
    return values
