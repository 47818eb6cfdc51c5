"""What the search trains: the shipped adapter's places and others, behind one interface: numbers of texts in, y out.

Every model begins as the base model, to the bit.  The first 384 numbers of x take the place of the base model's pooled
vector; dropout falls on what the projection adds to them, as in the product (``nexus_client.train.Learner``).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, cast

import numpy as np
import torch
from nexus_client.material import Ids
from nexus_client.train import Learner
from nexus_common.adapter import DendriticLayer
from nexus_common.layout import WIDTH, first_dendrite_values
from torch import Tensor, nn

from tests.bench.dendrite_arms import Small, identity
from tests.bench.search_states import KINDS, POSITIONS, SearchStates

HEAD_DEVIATION: Final = 5  # of a further head's first values, in those of a dendrite (0.01)


class Pooling(nn.Module):
    """x_k = sum_t g_t h_t / |...|, g_t = sigmoid(v_k . h_t + u_k . f_t), for each head k; [n, 384 heads].

    f_t says what kind of word piece t is or where it stands; v = u = 0 at birth, but for further heads, which would
    else stay what the first one is.
    """

    def __init__(self, heads: int, features: int, seed: bytes) -> None:
        super().__init__()
        further = first_dendrite_values(seed, "heads", (heads - 1) * WIDTH).reshape(-1, WIDTH)
        first = np.concatenate([np.zeros((1, WIDTH), np.float32), HEAD_DEVIATION * further])
        self.v, self.u = nn.Parameter(torch.from_numpy(first)), nn.Parameter(torch.zeros(heads, features))

    def forward(self, tokens: Tensor, lengths: Tensor, features: Tensor | None) -> Tensor:
        """Token states [all tokens, 384] of texts that stand end to end, features by number [all tokens]."""
        scores = nn.functional.linear(tokens, self.v)  # [all tokens, heads]
        if features is not None:
            scores = scores + self.u.T[features]
        order, starts = torch.arange(len(tokens), device=tokens.device), lengths.cumsum(0) - lengths
        pooled = [
            nn.functional.embedding_bag(order, tokens, starts, mode="sum", per_sample_weights=gate.contiguous())
            for gate in torch.sigmoid(scores).unbind(dim=-1)
        ]
        return torch.cat([nn.functional.normalize(one, dim=-1) for one in pooled], dim=-1)


class Diagonal(nn.Module):
    """y = (1 + d) * x + b: 768 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 384] -> [n, 384]."""
        return x + self.scale * x + self.bias


def linear(width: int) -> nn.Linear:
    """[n, width] -> [n, 384]: the identity over the first 384, nothing of the others."""
    made = nn.Linear(width, WIDTH)
    with torch.no_grad():
        made.weight.copy_(torch.eye(WIDTH, width))
        made.bias.zero_()
    return made


class Model(nn.Module):
    """Pooling, perhaps with vectors of earlier layers beside it, then a projection."""

    def __init__(
        self, pooling: Pooling | None, projection: nn.Module, features: str = "", *, layers: bool = False
    ) -> None:
        super().__init__()
        self.salience, self.projection, self.features, self.layers = pooling, projection, features, layers

    def pooled(self, states: SearchStates, numbers: Ids) -> Tensor:
        """x [n, width]."""
        if self.salience is None:
            x = states.pooled(numbers)
        else:
            x = self.salience(*states.tokens(numbers), states.features(self.features, numbers))
        return torch.cat([x, states.layers(numbers)], dim=-1) if self.layers else x

    @property
    def further(self) -> Tensor:
        """The projection's weights over all but the first 384."""
        return cast("nn.Linear", self.projection).weight[:, WIDTH:]


@dataclass(frozen=True)
class Pupil(Learner):
    """The product's learner over a ``Model``."""

    def pooled(self, numbers: Ids) -> Tensor:
        """x [n, width]."""
        return self._model.pooled(cast("SearchStates", self.states), numbers)

    def project(self, x: Tensor) -> Tensor:
        """[n, width] -> [n, 384] of length 1."""
        kept = (torch.rand(x.shape, generator=self.generator) >= self.dropout).to(x) / (1 - self.dropout)
        y = x[:, :WIDTH] + self._model.projection(kept * x) - (kept * x)[:, :WIDTH]
        return nn.functional.normalize(y, dim=-1)

    def without_dropout(self) -> "Pupil":
        """As the model is used."""
        return replace(self, dropout=0.0)

    @property
    def _model(self) -> Model:
        return cast("Model", self.adapter)


Maker = Callable[[bytes], Model]


def shipped(seed: bytes) -> Model:
    """Salience and a linear projection."""
    return Model(Pooling(1, 0, seed), linear(WIDTH))


def projection_alone(_: bytes) -> Model:
    """No salience."""
    return Model(None, linear(WIDTH))


def salience_alone(seed: bytes) -> Model:
    """384 parameters."""
    return Model(Pooling(1, 0, seed), nn.Identity())


def heads(count: int) -> Maker:
    """Several salience heads, each with its part of the projection."""
    return lambda seed: Model(Pooling(count, 0, seed), linear(count * WIDTH))


def featured(features: str) -> Maker:
    """Salience that sees ``kinds`` of word pieces, or ``positions``."""
    count = {"kinds": KINDS, "positions": POSITIONS}[features]
    return lambda seed: Model(Pooling(1, count, seed), linear(WIDTH), features)


def layered(seed: bytes) -> Model:
    """A branch that reads two earlier layers."""
    return Model(Pooling(1, 0, seed), linear(3 * WIDTH), layers=True)


def diagonal(seed: bytes) -> Model:
    """Salience and a projection of 768 parameters."""
    return Model(Pooling(1, 0, seed), Diagonal())


def low_rank(rank: int) -> Maker:
    """Salience and a projection of rank r."""
    return lambda seed: Model(Pooling(1, 0, seed), Small(rank, identity, seed))


def dendritic(seed: bytes) -> Model:
    """Salience and a projection with one dendrite, not yet wired in."""
    layer = DendriticLayer(WIDTH, 1, "tanh", bias=True)
    first = torch.from_numpy(first_dendrite_values(seed, "candidate", WIDTH * WIDTH)).reshape(WIDTH, WIDTH)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(WIDTH))
        layer.dendrites[0].weight.copy_(100 * first)  # awake: over x of length 1 it bends
        layer.dendrites[0].bias.zero_()
    for one in (*layer.dendrites.parameters(), *layer.tops):
        one.requires_grad_(requires_grad=False)  # until it is wired in
    return Model(Pooling(1, 0, seed), layer)
