"""What a site reports of a version it receives, on a fixed small part of its hold-out: loss, score, a vote.

At most ``MOST_QUESTIONS`` of the choosing part, with their answers and as many other passages, so that it costs every
site about the same.  The figures leave in the masked sum only.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
import torch
from nexus_common.adapter import DendriticAdapter
from nexus_common.layout import Layout, Vector
from nexus_common.recipe import Recipe

from nexus_client.acceptance import compare
from nexus_client.evaluate import Floats, spearman_rows, vector_scores
from nexus_client.material import RankingTask, ScoredTask, Task, parts_of, size, texts_of
from nexus_client.train import Learner, States, best_device

MOST_QUESTIONS: Final = 64
MOST_PASSAGES: Final = 256


def some(
    tasks: Sequence[Task],
    texts: Sequence[str],
    most_questions: int = MOST_QUESTIONS,
    most_passages: int = MOST_PASSAGES,
) -> list[Task]:
    """A part of the choosing tasks that adding rows changes little."""
    found: list[Task] = []
    for task in tasks:
        asked, others = parts_of(task)
        by_name = sorted(range(size(task)), key=lambda i: hashlib.sha256(texts[int(asked[i])].encode()).digest())
        rows = by_name[:most_questions]
        if isinstance(task, ScoredTask):
            found.append(ScoredTask(task.a[rows], task.b[rows], task.score[rows]))
            continue
        right = [int(task.passages[place]) for row in rows for place in task.positives[row][:1]]
        further = sorted(map(int, others), key=lambda number: hashlib.sha256(texts[number].encode()).digest())
        passages = list(dict.fromkeys([*right, *further]))[: max(most_passages, len(right))]
        kept = task.only({*passages, *(int(task.queries[row]) for row in rows)})
        chosen = [int(i) for i in np.isin(kept.queries, task.queries[rows]).nonzero()[0]]
        found.append(
            RankingTask(
                kept.queries[chosen],
                kept.passages,
                [kept.positives[i] for i in chosen],
                [kept.negatives[i] for i in chosen],
            )
        )
    return [task for task in found if size(task)]


class HeldOut:
    """The part of a site's hold-out that its reports rest on, under one plan."""

    def __init__(self, plan: Recipe, tasks: Sequence[Task], states: States) -> None:
        self.settings, self.tasks, self.states = plan.local, tasks, states
        self._base = plan.adapter.layout, plan.adapter.layout.first_vector(plan.adapter.seed_bytes)

    @cached_property
    def _base_scores(self) -> Floats:
        return self._losses_and_scores(*self._base)[1]

    def report(self, layout: Layout, vector: Vector) -> dict[str, float]:
        """``loss``, ``score`` and ``questions`` of a version, and a ``vote``: 1 where it is shown to be better than the
        base model, -1 where worse (``acceptance.py``), 0 where that cannot be told.

        It depends on the plan, the version and this site's rows alone.  Empty where nothing is held out.
        """
        if not self.tasks:
            return {}
        losses, scores = self._losses_and_scores(layout, vector)
        vote = compare(scores, self._base_scores, max_loss=0.0).vote
        return {
            "loss": losses / len(scores),
            "score": float(scores.mean()),
            "questions": float(len(scores)),
            "vote": vote,
        }

    def _losses_and_scores(self, layout: Layout, vector: Vector) -> tuple[float, Floats]:
        """The sum of the losses, and the score of each question and pair."""
        device = best_device()
        learner = Learner(DendriticAdapter(layout).load_vector(vector).to(device).eval(), self.states, device)
        numbers = texts_of(self.tasks)
        with torch.inference_mode():
            embedded = learner.embed(numbers).cpu().numpy()
        losses, scores = 0.0, list[Floats]()
        for task in self.tasks:
            first, second = (embedded[np.searchsorted(numbers, part)] for part in parts_of(task))
            if isinstance(task, ScoredTask):
                cosine = (first * second).sum(axis=1)
                losses += float(((cosine - task.score) ** 2).sum())
                scores.append(spearman_rows(cosine, task.score))
                continue
            logits = first @ second.T / self.settings.temperature
            for row, right in enumerate(task.positives):
                losses += float(np.logaddexp.reduce(logits[row]) - np.logaddexp.reduce(logits[row, right]))
            scores.append(vector_scores(first, second, task.positives).ndcg10)
        return losses, np.concatenate(scores)
