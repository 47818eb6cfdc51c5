"""Which of a site's models finds better: on the choosing part to decide, on the judging part only to show.

``evaluate.py`` scores arrays; here a site's tasks, its models and the frozen encoder's vectors are put together.  All
models of one call are embedded in one pass, so the encoder sees no text twice for a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from nexus_common.layout import Layout, Vector
from nexus_common.report import QualityLine
from numpy.typing import NDArray

from nexus_client.agent_api import Example
from nexus_client.embed import Progress
from nexus_client.evaluate import (
    Difference,
    Floats,
    Quality,
    QuestionScores,
    bm25_scores,
    difference,
    quality,
    rank_of_first,
    spearman,
    spearman_difference,
    spearman_rows,
    vector_scores,
)
from nexus_client.material import Ids, RankingTask, ScoredTask, Task, parts_of, texts_of
from nexus_client.workspace import Workspace

Embeddings = NDArray[np.float32]
KEYWORD, BASE = "keyword", "base"
EXAMPLES = 4
RANKED = {"nDCG@10": "ndcg10", "MRR@10": "mrr10"}


@dataclass(frozen=True)
class Scores:
    """A model's raw figures over all tasks of one part: per question, and per scored pair."""

    questions: QuestionScores
    cosines: NDArray[np.floating]


def row_scores(
    workspace: Workspace,
    tasks: Sequence[Task],
    adapters: Sequence[tuple[Layout, Vector] | None],
    progress: Progress = lambda *_: None,
) -> list[Floats]:
    """Each model's score of each question (nDCG@10) and scored pair (its part of Spearman's), [n]; None is the base.

    ``progress`` hears each batch of texts, and may raise to put it off.
    """
    if not tasks:
        return [np.empty(0) for _ in adapters]
    numbers = texts_of(tasks)
    embedded = iter(workspace.embed([adapter for adapter in adapters if adapter is not None], numbers, progress))
    vectors = (workspace.base_vectors(numbers, progress) if adapter is None else next(embedded) for adapter in adapters)
    return [_rows(tasks, numbers, each) for each in vectors]


def _rows(tasks: Sequence[Task], numbers: Ids, vectors: Embeddings) -> Floats:
    scored = np.concatenate([np.empty(0), *(task.score for task in tasks if isinstance(task, ScoredTask))])
    return _row_scores(_scores(tasks, numbers, vectors), scored)


def _row_scores(found: Scores, scored: Floats) -> Floats:
    return np.concatenate([found.questions.ndcg10, spearman_rows(found.cosines, scored)])


def chosen_scores(workspace: Workspace, adapters: Sequence[tuple[Layout, Vector]]) -> list[float] | None:
    """One figure for each adapter on the choosing part: the mean over questions and, where there are, scored pairs.

    None where the choosing part is empty.
    """
    tasks = workspace.choosing_part
    return [float(rows.mean()) for rows in row_scores(workspace, tasks, adapters)] if tasks else None


def figure_of(tasks: Sequence[Task], numbers: Ids, vectors: Embeddings) -> float:
    """The mean over the questions and pairs of some tasks; ``vectors`` [n, 384] belong to ``numbers`` [n]."""
    return float(_rows(tasks, numbers, vectors).mean())


@dataclass(frozen=True)
class Judged:
    """The table of the judging part, what one adapter improved most, and the score of each row by model."""

    lines: list[QualityLine]
    examples: list[Example]
    rows: Mapping[str, Floats]


def judge(
    workspace: Workspace,
    adapters: Mapping[str, tuple[Layout, Vector]],
    *,
    shown: str | None = None,
    also: Mapping[str, str] = MappingProxyType({}),
    given: Mapping[str, Embeddings] = MappingProxyType({}),
) -> Judged:
    """Judge keyword search, base, and each adapter; examples are of ``shown``, else of the last one.

    ``also`` gives models a second name, under which they stand in the table too; ``given`` are vectors [n, 384] from
    elsewhere of the judging part's texts, as ``texts_of`` orders them.  Where that part is empty, so is all of it.
    """
    tasks = workspace.material.judge
    if not tasks:
        return Judged([], [], {})
    numbers = texts_of(tasks)
    embedded = {BASE: workspace.base_vectors(numbers)}
    embedded |= dict(zip(adapters, workspace.embed(list(adapters.values()), numbers), strict=True))
    found = {model: _scores(tasks, numbers, vectors) for model, vectors in embedded.items()}
    found |= {name: found[model] for name, model in also.items()}
    found |= {name: _scores(tasks, numbers, vectors) for name, vectors in given.items()}
    texts = workspace.material.texts.items
    ranking = [task for task in tasks if isinstance(task, RankingTask)]
    lines: list[QualityLine] = []
    if ranking:
        keyword = _joined(
            [
                bm25_scores([texts[q] for q in task.queries], [texts[p] for p in task.passages], task.positives)
                for task in ranking
            ]
        )
        rows = {KEYWORD: keyword} | {model: scores.questions for model, scores in found.items()}
        base = found[BASE].questions
        for model, scores in rows.items():
            for metric, name in RANKED.items():
                values = getattr(scores, name)
                apart = None if model == BASE else difference(metric, values, getattr(base, name))
                lines.append(_line(model, quality(metric, values), apart))
    right = np.empty(0)
    if score := [task.score for task in tasks if isinstance(task, ScoredTask)]:
        right = np.concatenate(score)
        for model, all_scores in found.items():
            apart = None if model == BASE else spearman_difference(all_scores.cosines, found[BASE].cosines, right)
            lines.append(_line(model, spearman(all_scores.cosines, right), apart))
    shown = shown or next(reversed(embedded))
    examples = _examples(ranking, texts, numbers, embedded[BASE], embedded[shown]) if shown != BASE else []
    per_row = {model: _row_scores(scores, right) for model, scores in found.items()}
    return Judged(lines, examples, per_row)


def _scores(tasks: Sequence[Task], numbers: Ids, vectors: Embeddings) -> Scores:
    """Figures of one model; ``vectors`` [n, 384] belong to ``numbers`` [n]."""
    ranked, cosines = [], [np.empty(0, np.float32)]
    for task in tasks:
        first, second = (vectors[np.searchsorted(numbers, part)] for part in parts_of(task))
        if isinstance(task, RankingTask):
            ranked.append(vector_scores(first, second, task.positives))
        else:
            cosines.append((first * second).sum(axis=1))
    return Scores(_joined(ranked), np.concatenate(cosines))


def _joined(parts: Sequence[QuestionScores]) -> QuestionScores:
    return QuestionScores(
        np.concatenate([part.ndcg10 for part in parts] or [np.empty(0)]),
        np.concatenate([part.mrr10 for part in parts] or [np.empty(0)]),
    )


def _line(model: str, found: Quality, apart: Difference | None) -> QualityLine:
    against = None if apart is None else f"{apart.verdict} ({100 * apart.mean:+.1f})"
    return QualityLine(
        model=model,
        metric=found.metric,
        mean=found.mean,
        low=found.low,
        high=found.high,
        questions=found.questions,
        against_base=against,
    )


def _examples(
    ranking: Sequence[RankingTask], texts: Sequence[str], numbers: Ids, before: Embeddings, after: Embeddings
) -> list[Example]:
    """The questions whose right passage rose most from before to after."""
    found = []
    for task in ranking:
        q, p = np.searchsorted(numbers, task.queries), np.searchsorted(numbers, task.passages)
        asked, passages = after[q], after[p]
        old = rank_of_first(before[q], before[p], task.positives)
        new = rank_of_first(asked, passages, task.positives)
        for i in np.argsort(np.log(new) - np.log(old), kind="stable")[:EXAMPLES]:
            if new[i] < old[i]:
                best = task.positives[i][int(np.argmax(passages[task.positives[i]] @ asked[i]))]
                found.append(
                    Example(
                        question=texts[task.queries[i]],
                        passage=texts[task.passages[best]],
                        rank_before=int(old[i]),
                        rank_after=int(new[i]),
                    )
                )
    return sorted(found, key=lambda one: one.rank_after / one.rank_before)[:EXAMPLES]
