"""nDCG, MRR and Spearman against what scikit-learn, scipy and plain reasoning say; ties never flatter."""

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nexus_client import evaluate
from nexus_client.evaluate import (
    Difference,
    bm25_scores,
    difference,
    quality,
    spearman,
    spearman_difference,
    vector_scores,
)
from nexus_common.errors import NexusError
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score


def random_search(seed: int, questions: int = 7, passages: int = 40):
    rng = np.random.default_rng(seed)
    queries, found = (rng.normal(size=(n, 384)).astype(np.float32) for n in (questions, passages))
    positives = [np.sort(rng.choice(passages, rng.integers(1, 15), replace=False)) for _ in range(questions)]
    return queries, found, positives


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_ndcg_is_that_of_scikit_learn(seed: int) -> None:
    queries, passages, positives = random_search(seed)
    relevant = np.zeros((len(queries), len(passages)))
    for i, places in enumerate(positives):
        relevant[i, places] = 1
    expected = [ndcg_score(relevant[i : i + 1], queries[i : i + 1] @ passages.T, k=10) for i in range(len(queries))]
    np.testing.assert_allclose(vector_scores(queries, passages, positives).ndcg10, expected, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_mrr_is_the_inverse_rank_of_the_first_right_passage(seed: int) -> None:
    queries, passages, positives = random_search(seed)
    order = np.argsort(-(queries @ passages.T), axis=1)
    first = [int(np.flatnonzero(np.isin(order[i], places))[0]) + 1 for i, places in enumerate(positives)]
    expected = [1 / rank if rank <= 10 else 0 for rank in first]
    np.testing.assert_allclose(vector_scores(queries, passages, positives).mrr10, expected)


def test_the_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_search(1, questions=23)
    whole = vector_scores(*data)
    monkeypatch.setattr(evaluate, "CHUNK_SCORES", 100)
    np.testing.assert_array_equal(vector_scores(*data).ndcg10, whole.ndcg10)


def test_a_model_that_gives_every_text_the_same_vector_finds_nothing() -> None:
    same = np.ones((50, 384), np.float32) / np.sqrt(384).astype(np.float32)
    scores = vector_scores(same[:3], same, [np.array([i]) for i in range(3)])
    assert not scores.ndcg10.any()
    assert not scores.mrr10.any()


def test_a_tie_places_the_wrong_passage_first() -> None:
    passages = np.eye(3, 384, dtype=np.float32)
    scores = vector_scores(passages[:1] + passages[1:2], passages, [np.array([0])])
    assert scores.mrr10.tolist() == [0.5]


def test_fewer_than_ten_passages_are_ranked_too() -> None:
    passages = np.eye(2, 384, dtype=np.float32)
    assert vector_scores(passages, passages, [np.array([0]), np.array([0, 1])]).ndcg10.tolist() == [1, 1]


def test_no_questions_give_no_scores() -> None:
    none = np.empty((0, 384), np.float32)
    assert len(vector_scores(none, none, []).ndcg10) == 0
    assert len(bm25_scores([], [], []).ndcg10) == 0


def test_vectors_that_are_not_finite_are_refused() -> None:
    queries, passages, positives = random_search(1)
    passages[3, 5] = np.nan
    with pytest.raises(NexusError, match="not finite"):
        vector_scores(queries, passages, positives)


def test_memory_stays_bounded() -> None:
    rng = np.random.default_rng(0)
    queries, passages = (rng.normal(size=(n, 384)).astype(np.float32) for n in (600, 50_000))
    tracemalloc.start()
    vector_scores(queries, passages, [np.array([i]) for i in range(600)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 130e6, "all scores at once would be 120 MB, and as much again to rank them"


def test_keyword_search_finds_shared_words_and_nothing_else() -> None:
    passages = ["Block your lost card in the app", "Fees for transfers abroad", "Opening hours of the branch"]
    scores = bm25_scores(
        ["I lost my card", "the of", "money to a foreign country"],
        passages,
        [np.array([i]) for i in (0, 2, 1)],
    )
    assert scores.mrr10.tolist() == [1, pytest.approx(1 / 3), pytest.approx(1 / 3)]


def test_keyword_search_over_stop_words_alone_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bm25_scores(["the"], ["the", "of"], [np.array([0])]).mrr10.tolist() == [0.5]
        bm25_scores(["card"], ["card one", "card two"], [np.array([0])])
    assert capfd.readouterr() == ("", "")


def test_an_interval_holds_the_mean_and_is_the_same_each_time() -> None:
    values = np.random.default_rng(3).random(200)
    found = quality("ndcg10", values)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.15)
    assert quality("ndcg10", values) == found


def test_one_question_tells_nothing() -> None:
    found = quality("ndcg10", np.array([1.0]))
    assert (found.low, found.high, found.questions) == (0, 1, 1)


def test_no_question_is_an_error_with_a_remedy() -> None:
    with pytest.raises(NexusError, match="raise holdout_share"):
        quality("ndcg10", np.array([]))


def test_verdicts_are_of_the_first_model() -> None:
    base = np.random.default_rng(0).random(100)
    assert difference("ndcg10", base + 0.1, base).verdict == "better"
    assert difference("ndcg10", base, base + 0.1).verdict == "worse"
    assert difference("ndcg10", base, base).verdict == "cannot tell"
    assert difference("ndcg10", base, base[::-1]).verdict == "cannot tell"


def test_a_handful_of_questions_cannot_tell() -> None:
    assert Difference("ndcg10", 0.5, 0.4, 0.6, 9).verdict == "cannot tell"


def test_spearman_is_that_of_scipy_with_an_interval() -> None:
    rng = np.random.default_rng(5)
    score = rng.integers(0, 6, 300) / 5
    cosine = (score + rng.normal(size=300)).astype(np.float32)
    found = spearman(cosine, score)
    assert found.mean == pytest.approx(spearmanr(cosine, score).statistic)
    assert found.low < found.mean < found.high
    assert found.questions == 300


def test_a_constant_cosine_correlates_with_nothing() -> None:
    assert spearman(np.ones(20), np.arange(20)).mean == 0


def test_models_are_compared_on_the_same_pairs() -> None:
    rng = np.random.default_rng(6)
    score = rng.random(300)
    good, poor = score + rng.normal(size=300) / 5, score + rng.normal(size=300)
    assert spearman_difference(good, poor, score).verdict == "better"
    assert spearman_difference(poor, good, score).verdict == "worse"
    assert spearman_difference(good, good, score).verdict == "cannot tell"
