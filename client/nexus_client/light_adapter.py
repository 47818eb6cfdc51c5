"""The dendritic adapter in numpy, for search and serve: what ``nexus_common/adapter.py`` computes, without torch.

    d_i = s(W_i x + b_i + sum_{j<i} c_ij * d_j)        y = W x + b + sum_i t_i * d_i

Some 30 microseconds a query with salience.  ``head`` names the salience head: models that share it pool alike, so they
share an index.
"""

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Final

import numpy as np
from nexus_common.layout import Activation, Layout, Vector
from numpy.typing import NDArray

from nexus_client.light import Encoded, Floats

PLAIN: Final = "plain"
"""The head of models without salience: the base model's own mean over a text's tokens."""


def _sigmoid(x: Floats) -> Floats:
    gate: Floats = np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))  # exact, and never overflows
    return gate


ACTIVATIONS: Final[dict[Activation, Callable[[Floats], Floats]]] = {"tanh": np.tanh, "sigmoid": _sigmoid}


class LightAdapter:
    """One model, or the untouched base model; immutable."""

    def __init__(self, layout: Layout, vector: Vector) -> None:
        self.layout = layout
        self._activation = ACTIVATIONS[layout.activation]
        self._entries = layout.split(vector)

    @cached_property
    def head(self) -> str:
        """Hash of all that decides how token states are pooled, or ``PLAIN``."""
        if self.layout.salience is None:
            return PLAIN
        named = hashlib.sha256(f"nexus salience 1 {self.layout.activation}\n".encode())
        for name, value in self._entries.items():
            if name.startswith("salience."):
                named.update(f"{name} {value.shape}\n".encode() + np.ascontiguousarray(value, "<f4").tobytes())
        return named.hexdigest()[:32]

    @property
    def linear(self) -> bool:
        """Whether the projection has no dendrites, so that a query can be turned instead of all documents."""
        return self.layout.projection == 0

    @property
    def reads_states(self) -> bool:
        """Whether it pools token states."""
        return self.layout.salience is not None

    def pool(self, text: Encoded) -> Floats:
        """x [384] of length 1: a text's vector before the projection."""
        if self.layout.salience is None:
            return text.base
        if text.states is None:
            raise ValueError("this model pools token states, and the encoder was not asked for them")
        gate = _sigmoid(self._layer("salience", self.layout.salience, text.states)[:, 0])
        x: Floats = unit((gate @ text.states)[None])[0]
        return x

    def project(self, x: Floats) -> Floats:
        """[n, 384] -> [n, 384] of length 1."""
        return unit(self._layer("projection", self.layout.projection, x))

    def norms(self, x: Floats) -> Floats:
        """|W x + b| of each document [n]: all that a linear projection needs of it."""
        return lengths(self._layer("projection", self.layout.projection, x))

    def turned(self, query: Floats) -> tuple[Floats, float]:
        """For a projected query q: W'q [384] and b.q, so that a document scores (x.(W'q) + b.q) / |W x + b|."""
        return query @ self._entries["projection.weight"], float(query @ self._entries["projection.bias"])

    def _layer(self, place: str, dendrites: int, x: Floats) -> Floats:
        def linear(name: str) -> Floats:
            y = x @ self._entries[f"{place}.{name}weight"].T
            bias = self._entries.get(f"{place}.{name}bias")
            return y if bias is None else y + bias

        y, active = linear(""), list[NDArray[np.float32]]()
        for i in range(dendrites):
            drive = linear(f"dendrites.{i}.")
            for j, earlier in enumerate(active):
                drive += self._entries[f"{place}.links.{i - 1}"][j] * earlier
            active.append(self._activation(drive))
        for i, one in enumerate(active):
            y = y + self._entries[f"{place}.tops.{i}"] * one
        return y


def head_of(adapter: LightAdapter | None) -> str:
    """The head of a model, the base model's too."""
    return PLAIN if adapter is None else adapter.head


def pooled(adapter: LightAdapter | None, text: Encoded) -> Floats:
    """A text's vector [384] before the projection, the base model's too."""
    return text.base if adapter is None else adapter.pool(text)


def lengths(x: Floats) -> Floats:
    """L2 norms of rows [n, 384], as torch's normalize bounds them."""
    found: Floats = np.maximum(np.sqrt(np.einsum("nw,nw->n", x, x)), np.float32(1e-12))
    return found


def unit(x: Floats) -> Floats:
    """Rows [n, 384] at length 1."""
    scaled: Floats = x / lengths(x)[:, None]
    return scaled
