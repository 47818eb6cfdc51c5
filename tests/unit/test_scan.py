"""The scan of one bit a number finds what plain products find."""

import numpy as np
import pytest
from nexus_client.scan import Rows, sketch_of
from nexus_common.layout import WIDTH

ROWS = 8_000


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Clusters, as texts come in topics."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(300, WIDTH))
    found = centres[rng.integers(0, 300, ROWS)] + rng.normal(size=(ROWS, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def test_it_finds_nearly_all_of_the_ten_best_with_their_exact_scores(vectors: np.ndarray) -> None:
    exact, sketched = Rows(vectors, None), Rows(vectors, sketch_of(vectors))
    norms = np.linspace(0.9, 1.1, ROWS).astype(np.float32)
    rng, found = np.random.default_rng(1), 0
    for row in rng.integers(0, ROWS, 30):
        query = vectors[row].astype(np.float32) + rng.normal(0, 0.03, WIDTH).astype(np.float32)
        right, scores = exact.best(query, 10, 0.25, norms)
        rows, theirs = sketched.best(query, 10, 0.25, norms)
        found += len(set(right) & set(rows))
        np.testing.assert_allclose(scores, ((vectors.astype(np.float32) @ query + 0.25) / norms)[right], rtol=1e-5)
        assert (np.diff(theirs) <= 0).all()
        assert rows[0] == right[0]
    assert found / 300 > 0.98


@pytest.mark.parametrize("count", [0, 1, 7])
def test_there_may_be_fewer_rows_than_are_wanted(vectors: np.ndarray, count: int) -> None:
    rows, scores = Rows(vectors[:count], None).best(vectors[0].astype(np.float32), 10)
    assert len(rows) == len(scores) == count
    assert sorted(rows) == list(range(count))


def test_a_sketch_holds_the_sign_of_each_number(vectors: np.ndarray) -> None:
    words = sketch_of(vectors[:100])
    assert words.shape == (6, 100)
    signs = np.unpackbits(np.ascontiguousarray(words.T).view(np.uint8), axis=1)
    np.testing.assert_array_equal(signs.astype(bool), vectors[:100] > 0)
