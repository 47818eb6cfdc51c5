"""A site's local steps on cached states of the frozen encoder: three losses, one optimiser, a fixed number of steps.

Ranking: InfoNCE (van den Oord et al. 2018) with in-batch negatives, known hard negatives and passages drawn from the
site's own corpus; every candidate that is also a right answer is masked.  Scored pairs: the mean squared error of the
cosine, or CoSENT (Su 2022).  To each, distillation from the base model adds what keeps the adapter from forgetting
(Li and Hoiem 2016).  Nothing here reads a file or talks to anybody.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import torch
from nexus_common.adapter import DendriticAdapter, DendriticLayer, LayerMaker
from nexus_common.errors import NexusError
from nexus_common.layout import Layout, Vector
from nexus_common.recipe import LocalSettings
from torch import Tensor

from nexus_client.material import Ids, RankingTask, ScoredTask, Task, size, texts_of

COSENT_SCALE: Final = 20.0
DISTILLED: Final = 64  # texts a step
SCORED_SHARE: Final = 0.3


class States(Protocol):
    """The frozen encoder's output for numbered texts."""

    def pooled(self, numbers: Ids) -> Tensor:
        """[n, 384] float32, length 1."""

    def tokens(self, numbers: Ids) -> tuple[Tensor, Tensor]:
        """States of all their tokens end to end [tokens, 384] float32, and each text's length [n]."""


@dataclass(frozen=True)
class Learner:
    """An adapter bound to the states that feed it: numbers in, embeddings out.

    ``dropout`` (Srivastava et al. 2014) falls on what the projection adds to the pooled vector, not on the vector
    itself: out = x + f(m * x) - m * x with a mask m.  So every step keeps the base model's geometry, which is what lets
    a few hundred rows train for many rounds.  Masks come from ``generator``: a repeated round is the same one.
    """

    adapter: DendriticAdapter
    states: States
    device: torch.device
    dropout: float = 0.0
    generator: torch.Generator | None = None

    def embed(self, numbers: Ids) -> Tensor:
        """[n, 384] of length 1; each distinct number is computed once."""
        distinct, back = np.unique(numbers, return_inverse=True)
        return self.project(self.pooled(distinct))[torch.from_numpy(back).to(self.device)]

    def pooled(self, numbers: Ids) -> Tensor:
        """x [n, 384]."""
        if self.adapter.salience is None:
            return self.states.pooled(numbers).to(self.device)
        states, lengths = self.states.tokens(numbers)
        return self.adapter.salience.pool(states.to(self.device), lengths.to(self.device))

    def project(self, x: Tensor) -> Tensor:
        """[n, 384] -> [n, 384] of length 1, with a mask of dropout."""
        kept = (torch.rand(x.shape, generator=self.generator) >= self.dropout).to(self.device) / (1 - self.dropout)
        y = x + self.adapter.projection.layer(kept * x) - kept * x
        return torch.nn.functional.normalize(y, dim=-1)


def best_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def warm_up() -> None:
    """Load what torch's optimisers import at first use (seconds on a small board), so that no round pays for it."""
    make_optimiser(DendriticAdapter(Layout()), LocalSettings())


def clipped(update: Vector, clip_norm: float) -> Vector:
    """The update, scaled down to L2 norm ``clip_norm`` where it is longer."""
    norm = float(np.linalg.norm(update.astype(np.float64)))
    return update if norm <= clip_norm else (update * (clip_norm / norm)).astype(np.float32)


def local_update(
    layout: Layout,
    vector: Vector,
    tasks: Sequence[Task],
    states: States,
    settings: LocalSettings,
    rng: np.random.Generator,
    on_step: Callable[[int, float], None] = lambda *_: None,
    layer: LayerMaker = DendriticLayer,
) -> Vector:
    """Train for ``settings.steps`` steps from ``vector``; the change of it, clipped to L2 norm ``clip_norm``.

    ``on_step`` hears how many steps are done, and the loss of the newest one's batch.
    Raises NexusError where there is nothing to train on or the result is not finite.
    """
    tasks = [task for task in tasks if size(task)]
    if not tasks:
        raise NexusError("there are no training rows; `nexus-client check` says why")
    device = best_device()
    adapter = DendriticAdapter(layout, layer).load_vector(vector).to(device)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    learner = Learner(adapter, states, device, settings.dropout, generator)
    optimiser = make_optimiser(adapter, settings)
    texts = texts_of(tasks)
    for step in range(settings.steps):
        loss = step_loss(learner, tasks, texts, settings, rng)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        on_step(step + 1, loss.item())
    trained = adapter.vector()
    if not np.isfinite(trained).all():
        raise NexusError(
            f"training diverged within {settings.steps} steps; lower local.learning_rate (now {settings.learning_rate})"
        )
    return clipped(trained - vector, settings.clip_norm)


def make_optimiser(adapter: DendriticAdapter, settings: LocalSettings) -> torch.optim.Optimizer:
    """Adam, with a rate of its own for the salience head, whose parameters are few and start at 0."""
    groups = [{"params": list(adapter.projection.parameters()), "lr": settings.learning_rate}]
    if adapter.salience is not None:
        groups.append({"params": list(adapter.salience.parameters()), "lr": settings.salience_learning_rate})
    return torch.optim.Adam(groups)


def step_loss(
    learner: Learner, tasks: Sequence[Task], texts: Ids, settings: LocalSettings, rng: np.random.Generator
) -> Tensor:
    """The loss of one step: a batch of one task, drawn by its rows; and how far the adapter moves some of all texts."""
    odds = np.array([size(task) for task in tasks], float)
    task = tasks[int(rng.choice(len(tasks), p=odds / odds.sum()))]
    return task_loss(learner, task, settings, rng) + distillation(learner, task, texts, settings, rng)


def distillation(
    learner: Learner, task: Task, texts: Ids, settings: LocalSettings, rng: np.random.Generator
) -> Tensor | float:
    """What distillation adds to a task's loss; less to the loss of scored pairs, which is much smaller."""
    weight = settings.distillation * (1.0 if isinstance(task, RankingTask) else SCORED_SHARE)
    return weight * moved(learner, texts, rng) if weight else 0.0


def moved(learner: Learner, texts: Ids, rng: np.random.Generator) -> Tensor:
    """Mean of 1 - cosine between the embeddings, without dropout, and the base model's, over some of these texts."""
    numbers = rng.choice(texts, min(DISTILLED, len(texts)), replace=False)
    found, base = replace(learner, dropout=0.0).embed(numbers), learner.states.pooled(numbers).to(learner.device)
    return 1 - (found * base).sum(dim=-1).mean()


def task_loss(learner: Learner, task: Task, settings: LocalSettings, rng: np.random.Generator) -> Tensor:
    """The loss of one random batch of one task."""
    if isinstance(task, RankingTask):
        return ranking_loss(learner, task, settings, rng)
    rows = rng.choice(len(task.a), min(settings.batch_rows, len(task.a)), replace=False)
    return scored_loss(learner, task, rows, settings)


def ranking_loss(learner: Learner, task: RankingTask, settings: LocalSettings, rng: np.random.Generator) -> Tensor:
    """InfoNCE over one batch of questions, each with one of its right passages drawn at random."""
    rows = rng.choice(len(task.queries), min(settings.batch_rows, len(task.queries)), replace=False)
    right = [task.positives[row] for row in rows]
    targets = np.array(
        [
            rng.choice(places[task.passages[places] != task.queries[row]])
            for row, places in zip(rows, right, strict=True)
        ]
    )
    hard = [rng.choice(task.negatives[row]) for row in rows if len(task.negatives[row])]
    drawn = rng.choice(len(task.passages), min(settings.corpus_negatives, len(task.passages)), replace=False)
    candidates, label = np.unique(np.concatenate([targets, hard, drawn]).astype(np.int64), return_inverse=True)
    label = label[: len(rows)]  # column of each row's own target
    also_right = np.zeros((len(rows), len(candidates)), bool)
    for i, row in enumerate(rows):
        places = np.searchsorted(candidates, task.positives[row])  # np.isin would take a quarter of a round
        there = places < len(candidates)
        there[there] = candidates[places[there]] == task.positives[row][there]
        also_right[i, places[there]] = True
        also_right[i] |= task.passages[candidates] == task.queries[row]
        also_right[i, label[i]] = False
    both = learner.embed(np.concatenate([task.queries[rows], task.passages[candidates]]))
    queries, passages = both[: len(rows)], both[len(rows) :]  # [rows, 384], [candidates, 384]
    logits = queries @ passages.T / settings.temperature
    logits = logits.masked_fill(torch.from_numpy(also_right).to(logits.device), -torch.inf)
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(label).to(logits.device))


def scored_loss(learner: Learner, task: ScoredTask, rows: Ids, settings: LocalSettings) -> Tensor:
    """Cosine against score: squared error, or CoSENT: log(1 + sum exp(s (cos_i - cos_j))) over score_i < score_j."""
    count = len(rows)
    both = learner.embed(np.concatenate([task.a[rows], task.b[rows]]))  # [2 rows, 384]
    cosine = (both[:count] * both[count:]).sum(dim=-1)
    score = torch.from_numpy(task.score[rows]).to(cosine.device)
    if settings.scored_loss == "cosine-mse":
        return (cosine - score).square().mean()
    differences = COSENT_SCALE * (cosine[:, None] - cosine[None, :])
    wrong_order = differences.masked_fill(score[:, None] >= score[None, :], -torch.inf).flatten()
    return torch.logsumexp(torch.cat([wrong_order.new_zeros(1), wrong_order]), dim=0)
