"""A site's questions judged by the vectors that search answers from, in float32 and with 8-bit weights."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from nexus_client import reports
from nexus_client.index_build import building
from nexus_client.light_adapter import PLAIN
from nexus_client.light_models import light_model
from nexus_client.material import texts_of
from nexus_client.policy import write_policy
from nexus_client.searched import judged_as_searched
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome
from nexus_client.vectors import Vectors
from nexus_client.workspace import Workspace
from nexus_common.errors import NexusError
from nexus_common.layout import Layout

from tests.sites import make_site, put_model, write_text

SIZES, NAMES = (
    ("large", "small", "old", "new", "red", "blue"),
    ("ward", "oven", "boat", "lamp", "desk", "well", "cup", "mill"),
)
THINGS = [f"{size} {name}" for size in SIZES for name in NAMES]
ROWS = [{"query": f"where is the {thing}", "passage": f"the {thing} is in house {n}"} for n, thing in enumerate(THINGS)]


@contextmanager
def at_work(place: SiteHome) -> Iterator[Workspace]:
    made = Workspace(place, place.settings())
    try:
        yield made
    finally:
        made.encoder.cache.close()


@pytest.mark.parametrize("layout", [Layout(), Layout(1, 0)], ids=["linear", "salience and a dendrite"])
@pytest.mark.parametrize(("precision", "apart"), [("fp32", 2e-3), ("int8", 0.2)])
def test_they_are_those_of_the_live_model_up_to_the_precision(
    tmp_path: Path, graphs: Path, layout: Layout, precision: str, apart: float
) -> None:
    place = make_site(tmp_path, graphs, rows=ROWS, precision=precision)
    name = put_model(place, layout)
    with at_work(place) as workspace:
        assert judged_as_searched(workspace, name) is None, "nobody searches here yet"
        with building(place, [name]) as build:
            build.run()
        numbers = texts_of(workspace.material.judge)
        assert len(numbers) > 4
        found = judged_as_searched(workspace, name)
        held = Shelf(place).load(name)
        assert held is not None
        (live,) = workspace.embed([(held.layout, held.vector)], numbers)
    assert found is not None
    assert np.abs(found - live).max() < apart
    assert not np.array_equal(found, live)


def test_passages_are_those_of_the_index_and_questions_are_encoded_now(tmp_path: Path, graphs: Path) -> None:
    place = make_site(tmp_path, graphs, rows=ROWS)
    with building(place) as build:
        build.run()
    with at_work(place) as workspace:
        task, texts = workspace.material.judge[0], workspace.material.texts.items
        question, passage = int(task.queries[0]), int(task.passages[0])
        mark = np.eye(1, 384, dtype=np.float32)
        with closing(Vectors(place.vectors(workspace.base_hash, "int8"))) as vectors:
            vectors.put([texts[passage]], {PLAIN: mark})
        found = judged_as_searched(workspace, "base")
        assert found is not None
        by_number = dict(zip(texts_of(workspace.material.judge), found, strict=True))
        assert np.array_equal(by_number[passage], mark[0])
        assert by_number[question] @ workspace.base_vectors(np.array([question]))[0] > 0.97


def test_an_index_that_lacks_a_passage_is_not_judged(tmp_path: Path, graphs: Path) -> None:
    place = make_site(tmp_path, graphs, rows=ROWS[:3])
    with building(place) as build:
        build.run()
    write_text(place, ROWS)
    with at_work(place) as workspace, pytest.raises(NexusError, match=r"lacks \d+ passages"):
        judged_as_searched(workspace, "base")


def test_evaluate_has_a_row_for_search_and_warns_where_8_bits_lose(
    tmp_path: Path, graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_site(tmp_path, graphs, rows=ROWS)
    with building(place) as build:
        build.run()
    write_policy(place.policy_file, "a")
    monkeypatch.setattr(reports, "choose", lambda *_: {})  # it would train
    with at_work(place) as workspace:
        report, judged = reports.evaluate(workspace), texts_of(workspace.material.judge)
        lines = {line.model: line for line in report.lines if line.metric == "nDCG@10"}
        assert abs(lines["in search"].mean - lines["in use"].mean) < 0.1
        assert not any("search" in warning for warning in report.warnings)
        monkeypatch.setattr(reports, "judged_as_searched", lambda *_: np.ones((len(judged), 384), np.float32))
        (told,) = [warning for warning in reports.evaluate(workspace).warnings if warning.startswith("search loses")]
        assert 'precision = "fp32"' in told
        monkeypatch.setattr(reports, "judged_as_searched", lambda *_: light_model(Shelf(place), "none", "x"))
        assert any("search finds with was not judged" in told for told in reports.evaluate(workspace).warnings)
