"""Judging with the real encoder over a small file: who stands in the table, and that better is told from worse."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nexus_client.agent_api import Example
from nexus_client.judge import BASE, KEYWORD, Judged, chosen_scores, judge, row_scores
from nexus_client.material import RankingTask, ScoredTask, Task, texts_of
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.split import side
from nexus_client.workspace import Workspace
from nexus_common.errors import Refusal
from nexus_common.layout import WIDTH, Layout, Vector
from nexus_common.recipe import Recipe
from nexus_common.report import QualityLine

PLAIN, POOLING = Layout(), Layout(0, 0)
THINGS = [
    "bread",
    "shoes",
    "river",
    "window",
    "horse",
    "candle",
    "bridge",
    "letter",
    "garden",
    "winter",
    "mirror",
    "kettle",
    "ladder",
    "pencil",
    "engine",
    "carpet",
]


HARD = ("in which room is the bread", "nobody knows before Tuesday")


def groups(part: str, count: int) -> list[str]:
    return [name for name in (f"g{i}" for i in range(500)) if side(name, 1 / 3) == part][:count]


def write_rows(folder: Path) -> tuple[Path, Path]:
    wanted = groups("judge", 12) + groups("choose", 2) + groups("train", 2)
    pairs = [
        {"query": f"where do I find the {thing}", "passage": f"the {thing} is kept in room {i}", "topic": group}
        for i, (thing, group) in enumerate(zip(THINGS, wanted, strict=True))
    ]
    pairs[0] |= dict(zip(("query", "passage"), HARD, strict=True))
    scored = [
        {"a": f"a {one}", "b": f"some {other}", "score": float(one == other), "topic": group}
        for group in groups("judge", 5) + groups("choose", 1)
        for one, other in ((f"{THINGS[0]} {group}", f"{THINGS[0]} {group}"), (f"{THINGS[1]} {group}", THINGS[2]))
    ]
    for name, rows in (("pairs", pairs), ("scored", scored)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl", folder / "scored.jsonl"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """The one loading of the encoder: afterwards all states are in the cache."""
    folder = tmp_path_factory.mktemp("site")
    data = tuple({"path": str(path), "group": "topic"} for path in write_rows(folder))
    settings = SiteSettings.model_validate(
        {"site": "a", "server": "127.0.0.1:1", "data": data, "holdout_share": 1 / 3}, strict=False
    )
    made = Workspace(SiteHome("a", folder, folder / "state"), settings)
    made.encoder.fill(made.material.texts.items, tokens=made.material.texts.items)
    yield made
    made.encoder.cache.close()


def born(layout: Layout = PLAIN) -> Vector:
    return layout.first_vector(b"")


def blind() -> Vector:
    """An adapter that sees one direction of 384 only."""
    made = np.zeros(PLAIN.dim, np.float32)
    made[:WIDTH] = np.random.default_rng(0).normal(size=WIDTH)
    made[-WIDTH:] = 1e-3
    return made


def taught(workspace: Workspace) -> Vector:
    """The base model, but for one question, which it turns to its passage: W = I + 2 p q^T."""
    numbers = np.array([workspace.material.texts.number[text] for text in HARD])
    question, passage = workspace.base_vectors(numbers)
    return born() + np.pad(2 * np.outer(passage, question).ravel(), (0, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def report(workspace: Workspace) -> tuple[dict[tuple[str, str], QualityLine], list[Example]]:
    """The table by model and metric, and the examples of the last model."""
    adapters = {"blind": (PLAIN, blind()), "pooling": (POOLING, born(POOLING)), "plain": (PLAIN, born())}
    found = judge(workspace, adapters | {"taught": (PLAIN, taught(workspace))}, also={"in use": "blind"})
    return {(line.model, line.metric): line for line in found.lines}, found.examples


def test_every_model_has_a_line_for_every_metric_it_can_have(report) -> None:
    models = {BASE, "blind", "pooling", "plain", "taught", "in use"}
    ranked = {(model, metric) for model in models | {KEYWORD} for metric in ("nDCG@10", "MRR@10")}
    assert report[0].keys() == ranked | {(model, "spearman") for model in models}


def test_figures_are_over_the_questions_and_pairs_of_the_judging_part(report) -> None:
    assert {(metric, line.questions) for (_, metric), line in report[0].items()} == {
        ("nDCG@10", 12),
        ("MRR@10", 12),
        ("spearman", 10),
    }


@pytest.mark.parametrize("model", ["plain", "pooling"])
def test_an_adapter_at_birth_is_judged_as_the_base_model(report, model: str) -> None:
    assert report[0][model, "nDCG@10"].mean == report[0][BASE, "nDCG@10"].mean
    assert report[0][model, "nDCG@10"].against_base == "cannot tell (+0.0)"


@pytest.mark.parametrize("metric", ["nDCG@10", "MRR@10", "spearman"])
def test_an_adapter_that_sees_nothing_is_judged_worse(report, metric: str) -> None:
    assert report[0]["blind", metric].against_base.startswith("worse (-")


def test_one_question_more_is_better_but_too_little_to_tell(report) -> None:
    assert report[0]["taught", "nDCG@10"].mean == 1.0 > report[0][BASE, "nDCG@10"].mean
    assert report[0]["taught", "nDCG@10"].against_base.startswith("cannot tell (+")


def test_the_base_model_is_not_compared_with_itself(report) -> None:
    assert report[0][BASE, "nDCG@10"].against_base is None


def test_the_example_is_the_question_whose_answer_rose(report) -> None:
    (example,) = report[1]
    assert (example.question, example.passage) == HARD
    assert example.rank_before > example.rank_after == 1


def test_without_adapters_there_are_no_examples(workspace: Workspace) -> None:
    assert judge(workspace, {}).examples == []


def test_the_choosing_part_prefers_the_better_adapter(workspace: Workspace) -> None:
    scores = chosen_scores(workspace, [(PLAIN, born()), (PLAIN, blind())])
    assert scores is not None
    assert scores[0] > scores[1]
    assert scores[0] == pytest.approx(1.0)


def test_embeddings_are_of_length_1_in_the_order_asked(workspace: Workspace) -> None:
    numbers = np.array([3, 0, 2])
    (plain,), (pooled,) = (workspace.embed([(layout, born(layout))], numbers) for layout in (PLAIN, POOLING))
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(plain, workspace.base_vectors(numbers), atol=1e-6)
    np.testing.assert_allclose(pooled, plain, atol=2e-3)  # token states are kept in float16


def test_a_recipe_of_another_base_is_refused(workspace: Workspace) -> None:
    workspace.check_base(Recipe(base_model=workspace.base_hash))
    with pytest.raises(Refusal, match="unknown-base-model"):
        workspace.check_base(Recipe(base_model="0" * 64))


def test_a_second_name_has_the_same_figures(report) -> None:
    for metric in ("nDCG@10", "MRR@10", "spearman"):
        assert report[0]["in use", metric].model_copy(update={"model": "blind"}) == report[0]["blind", metric]


def test_rows_are_those_of_questions_and_pairs_and_their_mean_is_the_score(workspace: Workspace) -> None:
    base, blind_rows = row_scores(workspace, workspace.material.judge, [None, (PLAIN, blind())])
    assert len(base) == len(blind_rows) == 22
    found = judge(workspace, {"blind": (PLAIN, blind())})
    np.testing.assert_array_equal(found.rows["blind"], blind_rows)
    by_metric = {line.metric: line.mean for line in found.lines if line.model == "blind"}
    assert blind_rows.mean() == pytest.approx((12 * by_metric["nDCG@10"] + 10 * by_metric["spearman"]) / 22)


def test_nothing_to_choose_by_is_no_score(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "q", "passage": "p"}\n')
    data = {"data": (workspace.settings.data[0].model_copy(update={"path": "rows.jsonl", "group": None}),)}
    settings = workspace.settings.model_copy(update={**data, "holdout_share": 0.0})
    bare = Workspace(SiteHome("a", tmp_path, tmp_path / "state"), settings)
    assert chosen_scores(bare, [(PLAIN, born())]) is None
    assert judge(bare, {"alone": (PLAIN, born())}) == Judged([], [], {})


def test_the_texts_of_tasks_are_named_once() -> None:
    tasks: list[Task] = [
        RankingTask(np.array([5, 1]), np.array([2, 5]), [np.array([0])] * 2, [np.array([])] * 2),
        ScoredTask(np.array([1]), np.array([9]), np.array([0.5], np.float32)),
    ]
    assert texts_of(tasks).tolist() == [1, 2, 5, 9]
    assert texts_of([]).tolist() == []
