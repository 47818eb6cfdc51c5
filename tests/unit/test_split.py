"""The hold-out: who stands on which side, for ever, and that nothing of it reaches training."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from nexus_client.data import DataSource, SiteRows, read_rows
from nexus_client.material import RankingTask, ScoredTask, Task, Texts
from nexus_client.rows import Pair, Row, Scored, Utterance
from nexus_client.split import Material, build_material, hold_out_warnings, side

WORDS = st.sampled_from([f"w{i}" for i in range(12)])
SHARES = st.floats(0, 0.9)
PAIRS = st.builds(Pair, WORDS, WORDS, st.none() | WORDS, WORDS, st.just("f"), st.just(1))
UTTERANCES = st.builds(Utterance, WORDS, st.sampled_from("xyz"), WORDS, st.just("f"), st.just(1))
SCORED = st.builds(Scored, WORDS, WORDS, st.floats(0, 1), WORDS, st.just("f"), st.just(1))


def site(*rows: Row) -> SiteRows:
    def of(kind: type[Any]) -> tuple[Any, ...]:
        return tuple(row for row in rows if isinstance(row, kind))

    return SiteRows(of(Pair), of(Scored), of(Utterance), (), {}, 0, 0)


def pair(query: str, passage: str, negative: str | None = None, group: str | None = None) -> Pair:
    return Pair(query, passage, negative, group or passage, "f", 1)


def group_on(wanted: str, number: int = 0) -> str:
    """A group that stands on this side at the default share."""
    return [name for name in (f"g{i}" for i in range(200)) if side(name, 1 / 3) == wanted][number]


def questions(texts: Texts, tasks: list[Task]) -> set[str]:
    return {texts.items[q] for task in tasks if isinstance(task, RankingTask) for q in task.queries}


def answers(texts: Texts, tasks: list[Task]) -> set[str]:
    return {
        texts.items[task.passages[p]]
        for task in tasks
        if isinstance(task, RankingTask)
        for places in task.positives
        for p in places
    }


def passages(texts: Texts, tasks: list[Task]) -> set[str]:
    return {texts.items[p] for task in tasks if isinstance(task, RankingTask) for p in task.passages}


def test_sides_are_pinned_for_ever() -> None:
    pinned = "train train train choose train choose train train judge judge train judge train choose"
    assert " ".join(side(f"group {i}", 1 / 3) for i in range(14)) == pinned


@given(st.text(st.characters(codec="utf-8")), SHARES, SHARES)
def test_a_larger_share_only_moves_groups_out_of_training(group: str, one: float, other: float) -> None:
    small, large = sorted([one, other])
    if (before := side(group, small)) != "train":
        assert side(group, large) == before


@given(st.text(st.characters(codec="utf-8")))
def test_no_share_holds_nothing_out(group: str) -> None:
    assert side(group, 0) == "train"


def test_a_third_is_held_out_half_of_it_to_judge_by() -> None:
    sides = [side(str(i), 1 / 3) for i in range(6000)]
    assert abs(sides.count("train") - 4000) < 150
    assert abs(sides.count("judge") - 1000) < 100


@given(st.lists(PAIRS), SHARES)
def test_no_held_out_passage_or_question_is_seen_in_training(rows: list[Pair], share: float) -> None:
    made = build_material(site(*rows), share)
    for part in (made.choose, made.judge):
        assert not answers(made.texts, part) & passages(made.texts, made.train)
        assert not questions(made.texts, part) & questions(made.texts, made.train)
    assert not questions(made.texts, made.choose) & questions(made.texts, made.judge)
    everything = {text for row in rows for text in (row.passage, row.negative) if text}
    for task in made.choose + made.judge:
        assert passages(made.texts, [task]) == everything


def test_a_held_out_question_with_a_right_answer_in_training_is_left_out() -> None:
    rows = (
        Pair("w0", "w0", None, "w0", "f", 1),
        Pair("w0", "w1", None, "w4", "f", 1),
        Pair("w2", "w1", None, "w4", "f", 1),
    )
    assert [side(row.group, 0.5) for row in rows] == ["choose", "train", "train"]
    assert build_material(site(*rows), 0.5).choose == []


@given(st.lists(PAIRS | SCORED | UTTERANCES), SHARES)
def test_no_held_out_question_or_answer_is_in_a_training_row_of_whatever_kind(rows: list[Row], share: float) -> None:
    made = build_material(site(*rows), share)
    seen = questions(made.texts, made.train) | passages(made.texts, made.train)
    for task in made.train:
        if isinstance(task, ScoredTask):
            seen |= {made.texts.items[number] for number in (*task.a, *task.b)}
    held = {row.passage for row in rows if isinstance(row, Pair) and side(row.group, share) != "train"}
    assert not held & seen
    for part in (made.choose, made.judge):
        assert not questions(made.texts, part) & seen


@given(st.lists(PAIRS), st.lists(PAIRS), SHARES)
def test_rows_keep_their_side_whatever_else_is_there(rows: list[Pair], more: list[Pair], share: float) -> None:
    few, many = (build_material(site(*some), share) for some in (rows, rows + more))
    asked_elsewhere = {text for row in more for text in (row.query, row.passage, row.negative)}
    assert questions(few.texts, few.judge) - asked_elsewhere <= questions(many.texts, many.judge)
    assert questions(few.texts, few.choose) - asked_elsewhere <= questions(many.texts, many.choose)
    assert many.rows.judge == few.rows.judge + sum(side(row.group, share) == "judge" for row in more)


@given(st.lists(SCORED), SHARES)
def test_no_judged_pair_is_a_training_pair_either_way_round(rows: list[Scored], share: float) -> None:
    made = build_material(site(*rows), share)

    def both(tasks: list[Task]) -> set[frozenset[int]]:
        return {
            frozenset(two) for task in tasks if isinstance(task, ScoredTask) for two in zip(task.a, task.b, strict=True)
        }

    assert not both(made.judge) & both(made.train)
    assert not both(made.choose) & both(made.train)


def test_a_question_keeps_all_its_answers() -> None:
    group = group_on("judge")
    made = build_material(site(pair("q", "p1", group=group), pair("q", "p2", group=group)))
    assert answers(made.texts, made.judge) == {"p1", "p2"}
    assert not made.train
    assert (made.questions.train, made.questions.judge, made.rows.judge) == (0, 1, 2)


def test_a_question_that_training_asks_too_is_left_out_and_counted() -> None:
    made = build_material(site(pair("q", "p1", group=group_on("train")), pair("q", "p2", group=group_on("judge"))))
    assert not made.judge
    assert made.left_out == 1
    assert any("1 held-out questions or pairs stand in another part" in text for text in hold_out_warnings(made))


def test_a_training_row_whose_answer_is_held_out_is_withdrawn_and_counted() -> None:
    made = build_material(site(pair("q1", "p", group=group_on("train")), pair("q2", "p", group=group_on("judge"))))
    assert not made.train
    assert made.withdrawn == 1
    assert any("choose a group column" in text for text in hold_out_warnings(made))


def test_held_out_passages_are_no_wrong_answers_in_training() -> None:
    held = group_on("judge")
    made = build_material(site(pair("q1", group_on("train"), negative=held), pair("q2", held)))
    (task,) = made.train
    assert isinstance(task, RankingTask)
    assert not len(task.negatives[0])
    assert passages(made.texts, made.train) == {group_on("train")}


def test_labelled_questions_search_the_training_utterances() -> None:
    train = [Utterance(group_on("train", i), "card", group_on("train", i), "f", 1) for i in range(3)]
    judged = Utterance(group_on("judge"), "card", group_on("judge"), "f", 1)
    alone = Utterance(group_on("judge", 1), "loan", group_on("judge", 1), "f", 1)
    made = build_material(site(*train, judged, alone))
    assert questions(made.texts, made.judge) == {judged.text}
    assert passages(made.texts, made.judge) == {row.text for row in train}
    assert made.unanswerable == 1
    assert any("1 held-out utterances have a label" in text for text in hold_out_warnings(made))


def test_an_empty_hold_out_says_so_with_numbers_and_remedy() -> None:
    made = build_material(site(*(pair(f"q{i}", group_on("train", i)) for i in range(3))))
    first, second = hold_out_warnings(made)
    assert first == (
        "the hold-out is empty: no model of this site can be judged; 3 groups: 3 to train on, "
        "0 to choose by, 0 to judge by (holdout_share = 0.3333); raise holdout_share or add rows"
    )
    assert second.startswith("nothing to choose by")


def test_an_empty_training_part_says_so() -> None:
    made = build_material(site(pair("q", group_on("judge")), pair("q2", group_on("choose"))))
    assert hold_out_warnings(made)[0].startswith("nothing to train on; 2 groups: 0 to train on")


def test_few_questions_are_said_to_be_few() -> None:
    rows = [pair(f"q{i}", group_on("judge", i)) for i in range(17)]
    assert "17 questions to judge by: too few to tell small differences" in " ".join(
        hold_out_warnings(build_material(site(*rows)))
    )


def test_a_well_stocked_site_has_no_warnings() -> None:
    made = build_material(site(*(pair(f"q{i}", f"p{i}") for i in range(900))))
    assert hold_out_warnings(made) == []
    assert made.groups.train + made.groups.choose + made.groups.judge == 900


def test_headings_are_said_to_be_headings(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.md").write_text(f"# How does number {i} work\nIt works like {i}.")
    made: Material = build_material(read_rows([DataSource(path=".")], tmp_path, tmp_path / "none"))
    assert made.headings == made.questions.judge > 0
    assert any("are headings of documents" in text for text in hold_out_warnings(made))
