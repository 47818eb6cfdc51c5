"""Cascade-Correlation (Fahlman and Lebiere 1990) in a federation: a dendrite follows the residual error, then joins.

S = sum_u |sum_n (V_nu - mean V_u)(E_nu - mean E_u)| over the units u and texts n of a batch, V the candidate's
activity, E what the loss wants of the projection's output.  The signs of the sums are those of all sites together,
which secure aggregation could tell; each site then climbs its own part of S, and the changes are averaged.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import numpy as np
import torch
from nexus_client.material import Task
from nexus_client.train import task_loss
from nexus_common.adapter import DendriticLayer
from nexus_common.recipe import LocalSettings
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tests.bench.search_models import Model, Pupil

ROUNDS: Final = 3


def correlate(
    model: Model, learners: list[tuple[Pupil, Callable[[], Task], np.random.Generator]], settings: LocalSettings
) -> None:
    """Train the candidate of a model's projection in place, and wire it in."""
    layer = cast("DendriticLayer", model.projection)
    candidate = layer.dendrites[0]
    for one in candidate.parameters():
        one.requires_grad_(requires_grad=True)
    for _ in range(ROUNDS):
        begins = parameters_to_vector(candidate.parameters()).detach().clone()
        with torch.no_grad():
            each = [_covariance(candidate, *_residual(model, *one, settings)) for one in learners]
            signs = torch.stack(each).sum(0).sign()
        ends = []
        for one in learners:
            vector_to_parameters(begins.clone(), candidate.parameters())
            optimiser = torch.optim.Adam(candidate.parameters(), settings.learning_rate)
            for _ in range(settings.steps):
                x, wanted = _residual(model, *one, settings)
                optimiser.zero_grad()
                (-(signs * _covariance(candidate, x, wanted)).sum()).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            ends.append(parameters_to_vector(candidate.parameters()).detach().clone())
        vector_to_parameters(torch.stack(ends).mean(0), candidate.parameters())
    for top in layer.tops:
        top.requires_grad_(requires_grad=True)


def _covariance(candidate: nn.Module, x: Tensor, wanted: Tensor) -> Tensor:
    """Of each unit's activity with what is wanted of it, [384]; both over a batch's texts."""
    activity = torch.tanh(candidate(x))
    scale = wanted.norm().clamp_min(1e-12)  # Adam would not care, signs do not either
    found: Tensor = ((activity - activity.mean(0)) * (wanted - wanted.mean(0)) / scale).sum(0)
    return found


def _residual(
    model: Model, learner: Pupil, drawn: Callable[[], Task], rng: np.random.Generator, settings: LocalSettings
) -> tuple[Tensor, Tensor]:
    """What goes into the projection [texts, 384] in a batch without dropout, and what the loss wants to come out."""
    with torch.enable_grad(), _watched(model.projection) as seen:
        task_loss(learner.without_dropout(), drawn(), settings, rng).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    x, y = seen
    return x, -cast("Tensor", y.grad)


@contextmanager
def _watched(projection: nn.Module) -> Iterator[list[Any]]:
    seen: list[Any] = []

    def note(_: nn.Module, given: tuple[Tensor], made: Tensor) -> None:
        made.retain_grad()
        seen[:] = [given[0].detach(), made]

    handle = projection.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
