"""Noise by adapter size: every arm begins as the base model, and what a pair adds to a step is bounded."""

import numpy as np
import pytest
import torch

from tests.bench.search_noise import CLIP, NOISY, Noisy, clipped, embedded, padded, pair_loss
from tests.unit.test_bench_search import Whole

PAIRS = np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7])
SCORE = torch.tensor([0.9, 0.1, 0.5, 0.3])


@pytest.mark.parametrize("arm", NOISY.values(), ids=lambda arm: arm.name)
def test_every_arm_begins_as_the_base_model(arm: Noisy) -> None:
    states, numbers = Whole(20), np.arange(20)
    tokens, mask = padded(states, numbers)
    found = embedded(arm.first(3), tokens, mask)
    torch.testing.assert_close(found, states.pooled(numbers), atol=1e-6, rtol=0)


@pytest.mark.parametrize("arm", NOISY.values(), ids=lambda arm: arm.name)
def test_a_pair_adds_no_more_than_the_clip_to_each_group(arm: Noisy) -> None:
    for a, b, score in zip(*PAIRS, SCORE, strict=True):
        sums = clipped(arm, arm.first(3), Whole(20), (np.array([a]), np.array([b])), score[None])
        norms = [torch.cat([sums[name].ravel() for name in group]).norm() for group in arm.groups]
        assert len(norms) == 1 + arm.apart
        assert all(norm <= CLIP * 1.0001 for norm in norms)


def test_where_nothing_is_clipped_the_sum_is_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.search_noise.CLIP", 1e9)
    arm, states = NOISY["salience + linear"], Whole(20)
    weights = {name: value.clone().requires_grad_() for name, value in arm.first(3).items()}
    sides = [padded(states, side) for side in PAIRS]
    width = max(tokens.shape[1] for tokens, _ in sides)
    total = torch.zeros(())
    for i, score in enumerate(SCORE):
        filled = [torch.nn.functional.pad(tokens[i], (0, 0, 0, width - tokens.shape[1])) for tokens, _ in sides]
        masks = [torch.nn.functional.pad(mask[i], (0, width - mask.shape[1])) for _, mask in sides]
        total = total + pair_loss(weights, torch.stack(filled), torch.stack(masks), score)
    total.backward()
    for name, found in clipped(arm, weights, states, PAIRS, SCORE).items():
        torch.testing.assert_close(found, weights[name].grad)
