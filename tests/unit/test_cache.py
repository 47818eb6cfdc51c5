"""The embedding cache on a real disk: what is put comes back, a batch is whole or absent, and nothing else is kept."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nexus_client.cache import POOLED, TOKENS, Cache
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH


def pooled(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


def states(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, WIDTH)).astype(np.float16)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path / "cache")
    yield made
    made.close()


def test_pooled_vectors_come_back_bit_for_bit_in_the_order_asked(cache: Cache) -> None:
    cache.put(POOLED, [("a", pooled(1)), ("b", pooled(2))])
    np.testing.assert_array_equal(cache.pooled(["b", "a", "b"]), [pooled(2), pooled(1), pooled(2)])


def test_token_states_come_back_end_to_end_with_their_lengths(cache: Cache) -> None:
    cache.put(TOKENS, [("short", states(1, 2)), ("long", states(2, 5))])
    found, lengths = cache.tokens(["short", "long"])
    np.testing.assert_array_equal(found, np.concatenate([states(1, 2), states(2, 5)]))
    np.testing.assert_array_equal(lengths, [2, 5])


def test_no_text_is_an_empty_answer(cache: Cache) -> None:
    assert cache.pooled([]).shape == (0, WIDTH)
    assert [part.shape for part in cache.tokens([])] == [(0, WIDTH), (0,)]


def test_the_two_kinds_are_missing_each_by_itself(cache: Cache) -> None:
    cache.put(POOLED, [("a", pooled(1))])
    assert cache.missing(POOLED, ["a", "b"]) == ["b"]
    assert cache.missing(TOKENS, ["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("read", [Cache.pooled, Cache.tokens])
def test_a_text_that_is_not_there_is_told_without_its_text(cache: Cache, read) -> None:
    with pytest.raises(NexusError, match="has left the embedding cache") as problem:
        read(cache, ["Zacharias Quillfeather"])
    assert "Quillfeather" not in str(problem.value)


def test_a_batch_is_stored_whole_or_not_at_all(cache: Cache) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        cache.put(POOLED, [("a", pooled(1)), ("b", np.array(["no number"]))])
    assert cache.missing(POOLED, ["a", "b"]) == ["a", "b"]


def test_only_what_is_wanted_is_kept(cache: Cache) -> None:
    for name in "abc":
        cache.put(POOLED, [(name, pooled(0))])
        cache.put(TOKENS, [(name, states(0, 1))])
    assert cache.keep_only(pooled=["a", "b"], tokens=["b"]) == 3
    assert cache.missing(POOLED, "abc") == ["c"]
    assert cache.missing(TOKENS, "abc") == ["a", "c"]


def test_entries_outlive_the_process_and_are_read_by_another_at_once(cache: Cache, tmp_path: Path) -> None:
    cache.put(POOLED, [("a", pooled(1))])
    script = (
        "import pathlib, sys\n"
        "from nexus_client.cache import Cache\n"
        "print(float(Cache(pathlib.Path(sys.argv[1])).pooled(['a'])[0, 0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "cache"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == float(pooled(1)[0])


def test_the_cache_is_its_owners_alone(cache: Cache, tmp_path: Path) -> None:
    cache.put(POOLED, [("a", pooled(1))])
    every = [tmp_path / "cache", *(tmp_path / "cache").iterdir()]
    assert {path.name: path.stat().st_mode & 0o077 for path in every} == {"cache": 0, "data.mdb": 0, "lock.mdb": 0}


def test_no_text_stands_on_the_disk(cache: Cache, tmp_path: Path) -> None:
    cache.put(POOLED, [("Zacharias Quillfeather", pooled(1))])
    assert all(b"Quillfeather" not in path.read_bytes() for path in (tmp_path / "cache").iterdir())


def test_a_small_cache_takes_little_disk_whatever_its_address_space(cache: Cache, tmp_path: Path) -> None:
    cache.put(POOLED, [("a", pooled(1))])
    assert (tmp_path / "cache" / "data.mdb").stat().st_blocks * 512 < 1 << 20


def test_a_damaged_cache_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(NexusError, match="can be deleted at any time"):
        Cache(tmp_path)
