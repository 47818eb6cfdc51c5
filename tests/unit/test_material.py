"""Rows as tasks over one table of texts: who answers whom, what a restriction leaves, and memory linear in rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from nexus_client.material import RankingTask, ScoredTask, Texts
from nexus_client.workspace import first_texts

WORDS = st.sampled_from([f"w{i}" for i in range(8)])
PAIRS = st.lists(st.tuples(WORDS, WORDS, st.none() | WORDS))
LABELLED = st.lists(st.tuples(WORDS, st.sampled_from("xyz")), unique_by=lambda row: row[0])


def read(texts: Texts, task: RankingTask) -> dict[str, tuple[set[str], set[str]]]:
    """Each question's right and wrong answers, as texts."""
    return {
        texts.items[q]: ({texts.items[n] for n in task.passages[p]}, {texts.items[n] for n in task.passages[w]})
        for q, p, w in zip(task.queries, task.positives, task.negatives, strict=True)
    }


def from_pairs(*rows: tuple[str, str, str | None], more: tuple[str, ...] = ()) -> tuple[Texts, RankingTask]:
    texts = Texts()
    return texts, RankingTask.from_pairs(texts, rows, more)


def from_labels(asked: list[tuple[str, str]], known: list[tuple[str, str]]) -> tuple[Texts, RankingTask]:
    texts = Texts()
    return texts, RankingTask.from_labels(texts, asked, known)


def test_texts_are_numbered_once_in_the_order_they_were_named() -> None:
    texts = Texts()
    np.testing.assert_array_equal(texts.add_all(["b", "a", "b"]), [0, 1, 0])
    assert texts.items == ["b", "a"]


def test_equal_questions_share_their_answers() -> None:
    assert read(*from_pairs(("q", "p1", None), ("q", "p2", "n"), ("r", "p1", None))) == {
        "q": ({"p1", "p2"}, {"n"}),
        "r": ({"p1"}, set()),
    }


def test_a_negative_that_is_a_right_answer_elsewhere_is_right() -> None:
    assert read(*from_pairs(("q", "p1", "p2"), ("q", "p2", None)))["q"] == ({"p1", "p2"}, set())


def test_a_text_does_not_answer_itself() -> None:
    assert read(*from_pairs(("q", "q", None))) == {}


def test_further_passages_are_searched_and_answer_nothing() -> None:
    texts, task = from_pairs(("q", "p", None), more=("p", "far"))
    assert [texts.items[n] for n in task.passages] == ["p", "far"]


@given(PAIRS, st.lists(WORDS))
def test_every_pair_is_in_the_task_and_nothing_else(rows: list, more: list[str]) -> None:
    texts, task = from_pairs(*rows, more=tuple(more))
    rows = [row for row in rows if row[0] != row[1]]
    found = read(texts, task)
    assert {(q, p) for q, (right, _) in found.items() for p in right} == {(q, p) for q, p, _ in rows}
    assert all(not right & wrong for right, wrong in found.values())
    assert len(set(task.passages.tolist())) == len(task.passages)


def test_an_utterance_finds_those_of_its_label() -> None:
    known = [("a", "x"), ("b", "x"), ("c", "y")]
    found = read(*from_labels([("new", "x"), ("a", "x"), ("c", "y"), ("odd", "z")], known))
    assert found == {"new": ({"a", "b"}, set()), "a": ({"a", "b"}, set())}, "c would find only itself, odd nothing"


@given(LABELLED, LABELLED)
def test_every_question_of_labels_has_another_answer_than_itself(asked: list, known: list) -> None:
    for question, (right, _) in read(*from_labels(asked, known)).items():
        label = dict(asked)[question]
        assert right == {text for text, other in known if other == label}
        assert right - {question}


def test_memory_for_labels_is_linear_in_rows() -> None:
    rows = [(f"u{i}", f"label {i % 3}") for i in range(3000)]
    _, task = from_labels(rows, rows)
    assert sum({id(places): places.nbytes for places in task.positives}.values()) == 3000 * 8


def test_memory_for_labels_is_linear_in_rows_after_a_restriction_too() -> None:
    rows = [(f"u{i}", f"label {i % 3}") for i in range(300)]
    _, task = from_labels(rows, rows)
    kept = task.only(set(range(300)))
    assert sum({id(places): places.nbytes for places in kept.positives}.values()) == 300 * 8


@given(PAIRS, st.sets(st.integers(0, 7)))
def test_a_restriction_leaves_exactly_what_it_names(rows: list, kept: set[int]) -> None:
    texts, task = from_pairs(*rows)
    words = {texts.items[n] for n in kept if n < len(texts.items)}
    restricted = {q: (right & words, wrong & words) for q, (right, wrong) in read(texts, task).items() if q in words}
    assert read(texts, task.only(kept)) == {q: both for q, both in restricted.items() if both[0]}
    assert {texts.items[n] for n in task.only(kept).passages} == {texts.items[n] for n in task.passages} & words


def test_a_restriction_leaves_no_question_that_only_finds_itself() -> None:
    rows = [("a", "x"), ("b", "x")]
    texts, task = from_labels(rows, rows)
    assert read(texts, task.only({0})) == {}


def test_scored_pairs_keep_their_scores() -> None:
    texts = Texts()
    task = ScoredTask.from_pairs(texts, [("a", "b", 0.25), ("b", "c", 1.0), ("a", "c", 0.0)])
    kept = task.only({texts.number["a"], texts.number["c"]})
    assert ([texts.items[n] for n in kept.a], [texts.items[n] for n in kept.b]) == (["a"], ["c"])
    assert (kept.score.tolist(), kept.score.dtype) == ([0.0], np.float32)


def chosen(rows: list[tuple[str, str]], limit: int) -> list[str]:
    """The first texts of these pairs, as texts."""
    texts = Texts()
    task = RankingTask.from_pairs(texts, [(q, p, None) for q, p in rows])
    return [texts.items[number] for number in first_texts([task], texts.items, limit)]


ROWS = [(f"question {i}", f"answer {i}") for i in range(30)]


@given(st.permutations(ROWS), st.integers(0, 80))
def test_the_first_texts_do_not_depend_on_the_order_of_the_rows(rows: list, limit: int) -> None:
    assert chosen(rows, limit) == chosen(ROWS, limit)
    assert len(set(chosen(rows, limit))) == len(chosen(rows, limit)) == min(limit, 60)


@given(st.sets(st.sampled_from(ROWS)))
def test_adding_rows_does_not_change_the_order_of_the_others(rows: set) -> None:
    own = {text for row in rows for text in row}
    assert chosen(list(rows), 60) == [text for text in chosen(ROWS, 60) if text in own]


def test_the_first_texts_hold_whole_pairs() -> None:
    half = set(chosen(ROWS, 30))
    assert sum(q in half and p in half for q, p in ROWS) >= 7


def test_first_texts_of_scored_pairs_are_both_sides() -> None:
    texts = Texts()
    task = ScoredTask.from_pairs(texts, [("a", "b", 0.5)])
    assert sorted(first_texts([task], texts.items, 9)) == [0, 1]
