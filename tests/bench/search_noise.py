"""Record-level noise on STS-B by adapter size, in the benchmark alone: what is left of the gain at epsilon 1, 3 and 8.

DP-SGD (Abadi et al. 2016) as in ``dendrite_noise.py``, with a salience head too: a pair enters a step with probability
``SAMPLING``, its gradient is clipped, Gaussian noise is added to the sum, Adam takes the mean.  Salience and projection
can be clipped together, or each by itself (McMahan et al. 2018: with two groups the noise of each grows by the root of
two).  The learning rate is chosen by the first seed's dev figure, which is not protected here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from nexus_common.layout import WIDTH, first_dendrite_values
from torch import Tensor
from torch.func import grad, vmap

from tests.bench.dendrite_data import Similarity
from tests.bench.dendrite_noise import CLIP, SAMPLING, STEPS, noise_for
from tests.bench.search_states import SearchStates, loaded, states_of

CHUNK: Final = 64  # pairs whose gradients are in memory at once
JUDGED_AT_ONCE: Final = 512
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Noisy:
    """An adapter: its places, and whether salience (``v``) is clipped by itself."""

    name: str
    salience: bool = False
    projection: str = ""  # "linear", "diagonal", or a rank
    apart: bool = False

    def first(self, seed: int) -> Weights:
        """All parameters at birth, when it is the base model."""
        found = {"v": torch.zeros(WIDTH)} if self.salience else {}
        if self.projection == "linear":
            found |= {"weight": torch.eye(WIDTH), "bias": torch.zeros(WIDTH)}
        elif self.projection == "diagonal":
            found |= {"scale": torch.zeros(WIDTH), "bias": torch.zeros(WIDTH)}
        elif self.projection:
            rank = int(self.projection)
            drawn = first_dendrite_values(seed.to_bytes(8, "little"), "rank", rank * WIDTH).reshape(rank, WIDTH)
            found |= {"inner": 5 * torch.from_numpy(drawn), "outer": torch.zeros(WIDTH, rank)}
        return found

    @property
    def groups(self) -> list[list[str]]:
        """Names of the parameters that are clipped together."""
        names = list(self.first(0))
        return [["v"], [name for name in names if name != "v"]] if self.apart else [names]


NOISY: Final = {
    arm.name: arm
    for arm in (
        Noisy("salience alone", salience=True),
        Noisy("diagonal", projection="diagonal"),
        Noisy("rank 4", projection="4"),
        Noisy("rank 16", projection="16"),
        Noisy("linear", projection="linear"),
        Noisy("salience + linear", salience=True, projection="linear"),
        Noisy("salience + linear, clipped apart", salience=True, projection="linear", apart=True),
    )
}
EPSILONS: Final = (math.inf, 8.0, 3.0, 1.0)
RATES: Final = (3e-4, 1e-3, 3e-3)


def embedded(weights: Weights, tokens: Tensor, mask: Tensor) -> Tensor:
    """Token states [n, tokens, 384], filled up with zeros, to y [n, 384] of length 1."""
    gate = mask if "v" not in weights else torch.sigmoid(tokens @ weights["v"]) * mask
    x = torch.nn.functional.normalize((gate.unsqueeze(-2) @ tokens).squeeze(-2), dim=-1)
    if "weight" in weights:
        x = x @ weights["weight"].T + weights["bias"]
    elif "scale" in weights:
        x = x + weights["scale"] * x + weights["bias"]
    elif "outer" in weights:
        x = x + (x @ weights["inner"].T) @ weights["outer"].T
    return torch.nn.functional.normalize(x, dim=-1)


def pair_loss(weights: Weights, tokens: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """Of one pair: token states [2, tokens, 384]."""
    one, other = embedded(weights, tokens, mask)
    return (one @ other - wanted).square()


def noisy(arm: Noisy, epsilon: float, rate: float, seed: int) -> dict[str, Any]:
    """``STEPS`` protected steps; the last adapter's figures."""
    data, states = loaded("stsb"), states_of("stsb")
    if not isinstance(data, Similarity):
        raise TypeError("scored pairs are wanted")
    generator, task = torch.Generator().manual_seed(seed), data.train
    weights = {name: value.clone().requires_grad_() for name, value in arm.first(seed).items()}
    optimiser = torch.optim.Adam(weights.values(), rate)
    score = torch.from_numpy(task.score)
    deviation = noise_for(epsilon) * CLIP * math.sqrt(len(arm.groups))  # of all groups together
    for _ in range(STEPS):
        rows = (torch.rand(len(score), generator=generator) < SAMPLING).nonzero().squeeze(-1).numpy()
        total = {name: deviation * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
        for part in np.split(rows, range(CHUNK, len(rows), CHUNK)):
            for name, sums in clipped(arm, weights, states, (task.a[part], task.b[part]), score[part]).items():
                total[name] += sums
        for name, weight in weights.items():
            weight.grad = total[name] / (SAMPLING * len(score))
        optimiser.step()
    found = np.zeros((len(data.texts.items), WIDTH), np.float32)
    with torch.inference_mode():
        for numbers in np.array_split(data.judged_texts, max(1, len(data.judged_texts) // JUDGED_AT_ONCE)):
            found[numbers] = embedded(weights, *padded(states, numbers)).numpy()
    parameters = sum(weight.numel() for weight in weights.values())
    return (
        {"noise": noise_for(epsilon)}
        | {part: 100 * data.judge(found, split=part) for part in data.parts}
        | {"parameters": parameters}
    )


def clipped(
    arm: Noisy, weights: Mapping[str, Tensor], states: SearchStates, pairs: tuple[np.ndarray, np.ndarray], score: Tensor
) -> Weights:
    """The sum of the pairs' gradients, each group's clipped to L2 norm ``CLIP``."""
    tokens, mask = padded(states, np.stack(pairs, axis=1).ravel())
    tokens, mask = (one.unflatten(0, (-1, 2)) for one in (tokens, mask))
    given = {name: weight.detach() for name, weight in weights.items()}
    each = vmap(grad(pair_loss), in_dims=(None, 0, 0, 0))(given, tokens, mask, score)
    total = Weights()
    for group in arm.groups:
        norms = torch.stack([each[name].flatten(1).square().sum(1) for name in group]).sum(0).sqrt()  # [pairs]
        scale = (CLIP / norms.clamp_min(1e-12)).clamp_max(1.0)
        total |= {name: torch.tensordot(scale, each[name], dims=1) for name in group}
    return total


def padded(states: SearchStates, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
    """Token states [n, tokens, 384] of texts and which are there [n, tokens]."""
    tokens, lengths = states.tokens(numbers)
    parts = torch.split(tokens, lengths.tolist())
    filled = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    return filled, (torch.arange(filled.shape[1]) < lengths[:, None]).float()
