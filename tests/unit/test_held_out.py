"""What a site reports of a version: on a fixed small part of its hold-out, at the same cost whatever its size."""

import dataclasses
import random

import numpy as np
import pytest
from nexus_client.held_out import MOST_PASSAGES, MOST_QUESTIONS, HeldOut, some
from nexus_client.material import RankingTask, ScoredTask, Task, Texts, size, texts_of
from nexus_client.train import local_update
from nexus_common.layout import Vector
from nexus_common.recipe import AdapterSettings, LocalSettings, Recipe

from tests.unit.test_train import RandomStates, pairs

SETTINGS = LocalSettings(steps=10, batch_rows=40, learning_rate=2e-2, dropout=0.0)
RECIPE = Recipe(adapter=AdapterSettings(salience=False), local=SETTINGS)
LAYOUT = RECIPE.adapter.layout
FIRST = LAYOUT.first_vector(RECIPE.adapter.seed_bytes)


def found_in(texts: Texts, task: Task) -> set[tuple[str, ...]]:
    """Questions with their answers, or pairs, as texts."""
    if isinstance(task, ScoredTask):
        return {(texts.items[a], texts.items[b]) for a, b in zip(task.a, task.b, strict=True)}
    return {
        (texts.items[q], *sorted(texts.items[n] for n in task.passages[right]))
        for q, right in zip(task.queries, task.positives, strict=True)
    }


def ranking(rows: int, seed: int = 0) -> tuple[Texts, RankingTask]:
    """A question for each passage, in an order of its own."""
    texts, numbers = Texts(), list(range(rows))
    random.Random(seed).shuffle(numbers)  # noqa: S311  an order, no key
    return texts, RankingTask.from_pairs(texts, [(f"q{i}", f"p{i}", None) for i in numbers], ["far", "away"])


def scored(rows: int, seed: int = 0) -> tuple[Texts, ScoredTask]:
    texts, numbers = Texts(), list(range(rows))
    random.Random(seed).shuffle(numbers)  # noqa: S311  an order, no key
    return texts, ScoredTask.from_pairs(texts, [(f"a{i}", f"b{i}", i / rows) for i in numbers])


def held_out(tasks: list[Task], texts: Texts) -> HeldOut:
    return HeldOut(RECIPE, tasks, RandomStates(len(texts.items)))


def trained(tasks: list[Task], texts: Texts) -> Vector:
    """What comes of training on the hold-out itself."""
    return FIRST + local_update(
        LAYOUT, FIRST, tasks, RandomStates(len(texts.items)), SETTINGS, np.random.default_rng(0)
    )


@pytest.mark.parametrize("make", [ranking, scored])
def test_the_part_is_the_same_whatever_the_rows_order(make) -> None:
    (texts, task), (others, other) = make(500, 1), make(500, 2)
    (part,), (same,) = some([task], texts.items), some([other], others.items)
    assert found_in(texts, part) == found_in(others, same)
    assert size(part) == MOST_QUESTIONS


@pytest.mark.parametrize("make", [ranking, scored])
def test_a_few_more_rows_change_the_part_little(make) -> None:
    (texts, task), (others, other) = make(500), make(525)
    (part,), (later,) = some([task], texts.items), some([other], others.items)
    assert len(found_in(texts, part) & found_in(others, later)) >= MOST_QUESTIONS * 0.8


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 300, 3000])
def test_a_large_hold_out_costs_no_more_than_a_small_one(rows: int) -> None:
    texts, task = ranking(rows)
    (part,) = some([task], texts.items)
    assert size(part) == min(rows, MOST_QUESTIONS)
    assert len(part.passages) == min(rows + 2, MOST_PASSAGES)
    (texts, task) = scored(rows)
    assert len(texts_of(some([task], texts.items))) == 2 * min(rows, MOST_QUESTIONS)


def test_labelled_questions_that_are_passages_too_are_bounded_as_well() -> None:
    texts = Texts()
    rows = [(f"utterance {i}", f"label {i % 20}") for i in range(2000)]
    tasks = some([RankingTask.from_labels(texts, rows[:300], rows)], texts.items)
    assert 0 < sum(map(size, tasks)) <= MOST_QUESTIONS
    assert len(texts_of(tasks)) <= MOST_QUESTIONS + MOST_PASSAGES


def test_every_question_of_the_part_has_an_answer_in_it_and_every_answer_is_a_right_one() -> None:
    texts = Texts()
    task = RankingTask.from_pairs(texts, [(f"q{i}", f"p{j}", f"n{i}") for i in range(200) for j in (i, 199 - i)])
    (part,) = some([task], texts.items)
    for question, *answers in found_in(texts, part):
        number = int(question[1:])
        assert answers
        assert set(answers) <= {f"p{number}", f"p{199 - number}"}


def test_a_task_without_rows_has_no_part() -> None:
    texts, task = ranking(0)
    assert some([task, scored(0)[1]], texts.items) == []


def test_without_a_hold_out_nothing_is_reported() -> None:
    assert HeldOut(RECIPE, [], RandomStates(1)).report(LAYOUT, FIRST) == {}


def test_the_base_models_own_output_gets_no_vote() -> None:
    texts, task = pairs(40)
    report = held_out([task], texts).report(LAYOUT, FIRST)
    assert report.keys() == {"loss", "score", "questions", "vote"}
    assert (report["vote"], report["questions"]) == (0, 40)


def test_loss_and_score_are_as_defined() -> None:
    texts, task = pairs()
    states = RandomStates(len(texts.items))
    report = HeldOut(RECIPE, [task], states).report(LAYOUT, FIRST)
    logits = states.pooled(task.queries).numpy() @ states.pooled(task.passages).numpy().T / SETTINGS.temperature
    right = [int(places[0]) for places in task.positives]
    losses = [np.log(np.exp(row - row[at]).sum()) for row, at in zip(logits, right, strict=True)]
    ranks = [int((row >= row[at]).sum()) for row, at in zip(logits, right, strict=True)]
    gains = [1 / np.log2(1 + rank) if rank <= 10 else 0.0 for rank in ranks]
    assert report["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert report["score"] == pytest.approx(np.mean(gains), rel=1e-4)


def test_scored_pairs_report_squared_error_and_rank_correlation() -> None:
    texts, task = scored(3)
    states = RandomStates(len(texts.items))
    a, b = states.pooled(task.a).numpy(), states.pooled(task.b).numpy()
    cosine = (a * b).sum(axis=1)
    task = dataclasses.replace(task, score=np.argsort(np.argsort(cosine)) / 2)
    report = HeldOut(RECIPE, [task], states).report(LAYOUT, FIRST)
    assert report["score"] == pytest.approx(1)
    assert report["loss"] == pytest.approx(np.mean((cosine - np.argsort(np.argsort(cosine)) / 2) ** 2), rel=1e-4)


@pytest.mark.parametrize("kinds", ["ranking", "scored", "both"])
def test_a_model_trained_on_the_hold_out_itself_has_less_loss_and_the_sites_vote(kinds: str) -> None:
    texts, task = pairs(40)
    rows = [(f"a{i}", f"b{i}", i % 2) for i in range(40)]
    tasks = {"ranking": [task], "scored": [], "both": [task]}[kinds]
    tasks = [*tasks, ScoredTask.from_pairs(texts, rows)] if kinds != "ranking" else tasks
    judge = held_out(tasks, texts)
    before, after = judge.report(LAYOUT, FIRST), judge.report(LAYOUT, trained(tasks, texts))
    assert after["loss"] < 0.7 * before["loss"]
    assert after["score"] > before["score"]
    assert after["vote"] == 1


def test_a_model_that_spoils_the_order_gets_a_vote_against_it() -> None:
    texts, task = pairs(40)
    judge = held_out([task], texts)
    good = trained([task], texts)
    spoilt = (2 * FIRST - good).astype(np.float32)  # as far in the wrong way
    assert judge.report(LAYOUT, spoilt)["vote"] == -1


def test_the_same_version_gives_the_same_report() -> None:
    texts, task = pairs(40)
    vector = trained([task], texts)
    assert held_out([task], texts).report(LAYOUT, vector) == held_out([task], texts).report(LAYOUT, vector)


def test_a_report_changes_nothing() -> None:
    texts, task = pairs()
    vector = FIRST.copy()
    held_out([task], texts).report(LAYOUT, vector)
    np.testing.assert_array_equal(vector, FIRST)
