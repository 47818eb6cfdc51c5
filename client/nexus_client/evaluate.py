"""How well a model finds what is right: nDCG@10 and MRR@10 over questions, Spearman over scored pairs, with
intervals.

Arrays in, numbers out; keyword search (BM25, Robertson and Zaragoza 2009) is measured by the same ranks.
Equal scores count against a model: a wrong passage that ties with a right one stands before it.  Intervals
are 95 % percentile bootstraps over questions or pairs with a fixed seed, so that the same data give the same
table.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from nexus_common.errors import NexusError
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]
Verdict = Literal["better", "worse", "cannot tell"]

CUTOFF: Final = 10
TIE: Final = 1e-6
"""Scores nearer than this are equal: a matrix product may round the same two vectors differently."""
CHUNK_SCORES: Final = 1 << 23  # scores in memory at once: 32 MiB in float32
RESAMPLES: Final = 2000
RESAMPLED_AT_ONCE: Final = 1 << 22
FEWEST_TO_TELL: Final = 10
"""Below so many questions a bootstrap interval is too narrow to be believed."""
_DISCOUNT: Final = 1 / np.log2(np.arange(2, CUTOFF + 2))  # of ranks 1 to 10
_IDEAL: Final = np.concatenate([[0.0], np.cumsum(_DISCOUNT)])  # best gain with 0 to 10 right passages


class NotFinite(NexusError):
    """A model whose embeddings are no numbers: it cannot be judged, so it cannot be used."""


@dataclass(frozen=True)
class QuestionScores:
    """nDCG@10 and MRR@10 of each question, both [q]."""

    ndcg10: Floats
    mrr10: Floats


@dataclass(frozen=True)
class Quality:
    """One model's mean on one metric, its 95 % interval, and over how many questions or pairs."""

    metric: str
    mean: float
    low: float
    high: float
    questions: int


@dataclass(frozen=True)
class Difference(Quality):
    """How much better the first of two models is, over the same questions or pairs."""

    @property
    def verdict(self) -> Verdict:
        """Of the first model; "cannot tell" where the interval spans 0 or there are fewer than 10
        questions."""
        if self.questions < FEWEST_TO_TELL or self.low <= 0 <= self.high:
            return "cannot tell"
        return "better" if self.low > 0 else "worse"


def vector_scores(queries: Floats, passages: Floats, positives: Sequence[Ids]) -> QuestionScores:
    """Score a search by dot product.  ``queries`` [q, 384], ``passages`` [p, 384]; ``positives[i]`` are
    places in passages.

    Raises NotFinite where a vector is not.
    """
    if not (np.isfinite(queries).all() and np.isfinite(passages).all()):
        raise NotFinite(
            "some embeddings are not finite numbers, so this model cannot be judged; use an earlier version"
        )
    chunk = max(1, CHUNK_SCORES // max(1, len(passages)))
    return _scored((queries[at : at + chunk] @ passages.T for at in range(0, len(queries), chunk)), positives)


def bm25_scores(queries: Sequence[str], passages: Sequence[str], positives: Sequence[Ids]) -> QuestionScores:
    """As ``vector_scores``, for keyword search over English text (bm25s: Lucene's BM25, English stop
    words)."""
    return _scored(_bm25(queries, passages), positives)


def rank_of_first(queries: Floats, passages: Floats, positives: Sequence[Ids]) -> NDArray[np.int64]:
    """Rank from 1 of each question's best right passage [q] among all passages, wrong ones that tie before it."""
    ranks = np.zeros(len(queries), np.int64)
    for i, places in enumerate(positives):
        scores = passages @ queries[i]
        best = scores[places].max()
        scores[places] = -np.inf
        ranks[i] = 1 + int((scores >= best - TIE).sum())
    return ranks


def quality(metric: str, values: Floats) -> Quality:
    """Mean of a metric's values [q] and its interval; NexusError where there are none."""
    return Quality(metric, float(np.mean(_some(values))), *_interval(np.mean, (0.0, 1.0), values), len(values))


def difference(metric: str, first: Floats, second: Floats) -> Difference:
    """How much better the first model's values [q] are, question by question."""
    apart = _some(first) - second
    return Difference(metric, float(apart.mean()), *_interval(np.mean, (-1.0, 1.0), apart), len(apart))


def spearman(cosines: Floats, scores: Floats) -> Quality:
    """Rank correlation of cosines [n] with scores [n], 0 where one of them is constant, and its interval."""
    found = float(_correlation(_some(cosines), scores))
    return Quality("spearman", found, *_interval(_correlation, (-1.0, 1.0), cosines, scores), len(scores))


def spearman_difference(first: Floats, second: Floats, scores: Floats) -> Difference:
    """How much higher the first model's cosines [n] correlate with scores [n] than the second's."""

    def apart(one: Floats, other: Floats, right: Floats, axis: int = -1) -> Floats:
        return _correlation(one, right, axis) - _correlation(other, right, axis)

    found = float(apart(_some(first), second, scores))
    return Difference("spearman", found, *_interval(apart, (-2.0, 2.0), first, second, scores), len(scores))


def spearman_rows(cosines: Floats, scores: Floats) -> Floats:
    """What each pair adds to the rank correlation, [n]: their mean is Spearman's, their spread its standard error.

    Linearised by its influence function, so that scored pairs and questions are resampled alike (Devlin et al. 1975).
    """
    if len(cosines) < 2:
        return np.zeros(len(cosines))
    x, y = (_standardised(stats.rankdata(side)) for side in (cosines, scores))
    products = x * y
    rho = products.mean()
    found: Floats = products + rho * (1 - (x * x + y * y) / 2)
    return found


def resampled_means(values: Floats) -> Floats:
    """The bootstrap distribution of the mean of ``values`` [n >= 2], with a fixed seed; [2000]."""
    return _resampled(np.mean, values)[0]


def _standardised(values: Floats) -> Floats:
    """Mean 0 and variance 1; all 0 where the values are equal."""
    apart, spread = values - values.mean(), values.std()
    found: Floats = apart / spread if spread > 0 else np.zeros(len(values))
    return found


def _scored(chunks: Iterator[Floats], positives: Sequence[Ids]) -> QuestionScores:
    ndcg, mrr = np.zeros(len(positives)), np.zeros(len(positives))
    start = 0
    for scores in chunks:  # [some questions, p]
        part = slice(start, start + len(scores))
        ndcg[part], mrr[part] = _gains(scores, positives[part])
        start += len(scores)
    return QuestionScores(ndcg, mrr)


def _gains(scores: Floats, positives: Sequence[Ids]) -> tuple[Floats, Floats]:
    """nDCG@10 and MRR@10 of scores [n, p], which are overwritten."""
    right = np.full((len(scores), CUTOFF), -np.inf)  # best scores of right passages, falling
    count = np.array([len(places) for places in positives], np.int64)
    for i, places in enumerate(positives):
        best = -np.sort(-scores[i, places])[:CUTOFF]
        right[i, : len(best)] = best
        scores[i, places] = -np.inf
    top = min(CUTOFF, scores.shape[1])
    wrong = np.partition(scores, scores.shape[1] - top, axis=1)[:, scores.shape[1] - top :] if top else scores
    ahead = (wrong[:, None, :] >= right[:, :, None] - TIE).sum(
        axis=2
    )  # wrong passages before each right one, at most 10
    rank = ahead + np.arange(1, CUTOFF + 1)  # [n, 10], from 1
    seen = (rank <= CUTOFF) & (np.arange(CUTOFF) < count[:, None])
    gain = np.where(seen, _DISCOUNT[np.minimum(rank, CUTOFF) - 1], 0.0).sum(axis=1)
    ideal = _IDEAL[np.minimum(count, CUTOFF)]
    ndcg = np.divide(gain, ideal, out=np.zeros(len(scores)), where=ideal > 0)
    return ndcg, np.where(seen[:, 0], 1.0 / rank[:, 0], 0.0)


def _bm25(queries: Sequence[str], passages: Sequence[str]) -> Iterator[Floats]:
    """Keyword scores [1, p] of each question."""
    import bm25s  # noqa: PLC0415  where vectors are judged it is not needed

    words = partial(bm25s.tokenize, stopwords="en", show_progress=False)
    index = bm25s.BM25(backend="numpy")
    tokens = words(list(passages))
    searchable = any(len(one) for one in tokens.ids)  # else there is nothing to divide by
    if searchable:
        index.index(tokens, show_progress=False)
    for asked in words(list(queries), return_ids=False):
        known = index.get_tokens_ids(asked) if searchable else []
        found: Floats = index.get_scores_from_ids(known) if known else np.zeros(len(passages), np.float32)
        yield found[None, :].copy()


def _correlation(first: Floats, second: Floats, axis: int = -1) -> Floats:
    """Spearman's along an axis, many resamples at once; 0 where one side is constant."""
    x, y = stats.rankdata(first, axis=axis), stats.rankdata(second, axis=axis)
    x, y = x - x.mean(axis=axis, keepdims=True), y - y.mean(axis=axis, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=axis) * (y * y).sum(axis=axis))
    found: Floats = np.divide((x * y).sum(axis=axis), scale, out=np.zeros_like(scale), where=scale > 0)
    return found


def _interval(statistic: Callable[..., Any], widest: tuple[float, float], *data: Floats) -> tuple[float, float]:
    """95 % percentile bootstrap, the data resampled together; ``widest`` where one value tells nothing."""
    if len(data[0]) < 2:
        return widest
    interval = _resampled(statistic, *data)[1]
    return float(interval.low), float(interval.high)


def _resampled(statistic: Callable[..., Any], *data: Floats) -> tuple[Floats, Any]:
    """The bootstrap distribution and its 95 % interval."""
    with warnings.catch_warnings(category=stats.DegenerateDataWarning, action="ignore"):  # all values equal: width 0
        found = stats.bootstrap(
            data,
            statistic,
            paired=len(data) > 1,
            vectorized=True,
            method="percentile",
            n_resamples=RESAMPLES,
            batch=max(1, RESAMPLED_AT_ONCE // len(data[0])),
            random_state=np.random.default_rng(0),
        )
    return found.bootstrap_distribution, found.confidence_interval


def _some(values: Floats) -> Floats:
    if not len(values):
        raise NexusError(
            "no questions to judge by: the judging part of the hold-out is empty; raise "
            "holdout_share in site.toml (default 0.3333) or add rows"
        )
    return values
