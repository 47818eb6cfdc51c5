"""Record-level noise on STS-B, in the benchmark alone: what an adapter's size is worth when every pair is protected.

DP-SGD (Abadi et al. 2016): a pair enters a step with probability ``SAMPLING``, its gradient is clipped to L2 norm
``CLIP``, Gaussian noise is added to the sum, Adam takes the mean.  Epsilon is the product's own accounting, to add or
remove one pair; the learning rate is chosen on dev, which is not protected here.  Projections only.
"""

import functools
import math
from typing import Any, Final

import torch
from nexus_client.privacy import LEAST_NOISE, epsilon_of
from nexus_client.train import best_device
from scipy import optimize
from torch import Tensor
from torch.func import functional_call, grad, vmap

from tests.bench.dendrite_arms import Arm, live
from tests.bench.dendrite_data import Similarity, embed, loaded, states_of

SAMPLING, STEPS, DELTA, CLIP = 0.1, 60, 1e-5, 0.1
MOST_NOISE: Final = 16.0
CHUNK: Final = 64  # pairs whose gradients are in memory at once


@functools.cache
def noise_for(epsilon: float) -> float:
    """The noise multiplier, to two parts in a thousand, with which all steps together cost at most ``epsilon``."""
    if math.isinf(epsilon):
        return 0.0

    def over(logarithm: float) -> float:
        return math.log(epsilon_of(math.exp(logarithm), SAMPLING, STEPS, DELTA) / epsilon)

    found = optimize.brentq(over, math.log(LEAST_NOISE), math.log(MOST_NOISE), xtol=5e-4)
    return float(math.exp(found + 1e-3))


def noisy(arm: Arm, epsilon: float, rate: float, seed: int) -> dict[str, Any]:
    """``STEPS`` protected steps; the last adapter's figures."""
    data, states, adapter = loaded("stsb"), states_of("stsb"), arm.adapter(seed).to(best_device())
    assert isinstance(data, Similarity)
    layer, generator = adapter.projection.layer, torch.Generator().manual_seed(seed)
    weights = dict(layer.named_parameters())
    optimiser = torch.optim.Adam(layer.parameters(), rate)
    a, b = states.pooled(data.train.a), states.pooled(data.train.b)
    score = torch.from_numpy(data.train.score).to(a.device)

    def loss(given: dict[str, Tensor], one: Tensor, other: Tensor, wanted: Tensor) -> Tensor:
        cosine = torch.cosine_similarity(*functional_call(layer, given, (torch.stack([one, other]),)), dim=0)
        return (cosine - wanted).square()

    each = vmap(grad(loss), in_dims=(None, 0, 0, 0))
    deviation = noise_for(epsilon) * CLIP
    for _ in range(STEPS):
        rows = (torch.rand(len(a), generator=generator) < SAMPLING).nonzero().squeeze(-1)
        noise = {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}
        total = {name: deviation * drawn.to(a.device) for name, drawn in noise.items()}
        for part in rows.split(CHUNK):
            found = each({name: w.detach() for name, w in weights.items()}, a[part], b[part], score[part])
            norms = torch.stack([g.flatten(1).square().sum(1) for g in found.values()]).sum(0).sqrt()  # [pairs]
            scale = (CLIP / norms.clamp_min(1e-12)).clamp_max(1.0)
            for name, g in found.items():
                total[name] += torch.tensordot(scale, g, dims=1)
        for name, weight in weights.items():
            weight.grad = total[name] / (SAMPLING * len(a))
        optimiser.step()
    vectors = embed(adapter, states, data.judged_texts, len(data.texts.items))
    look = {part: 100 * data.judge(vectors, split=part) for part in data.parts}
    return {"curve": [look], "parameters": live(adapter), "noise": noise_for(epsilon)}
