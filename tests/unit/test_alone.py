"""A site that trains alone: the same recipe and rules of growth as in a federation, and its best round is kept."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from nexus_client.alone import train_alone
from nexus_client.held_out import HeldOut
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.workspace import Workspace
from nexus_common.layout import Layout
from nexus_common.recipe import Recipe
from nexus_common.versions import StoredAdapter

RECIPE = {
    "rounds": 7,
    "local": {"steps": 2, "batch_rows": 8},
    "growth": {"max_dendrites": 1, "patience": 1, "trial_rounds": 2, "candidates": ("projection", "salience")},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """The one loading of the encoder."""
    folder = tmp_path_factory.mktemp("site")
    rows = [{"query": f"where is the cup {i}", "passage": f"cup {i} is in room {i * 7}"} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"site": "a", "server": "127.0.0.1:1", "data": [{"path": str(folder / "rows.jsonl")}]}
    made = Workspace(SiteHome("a", folder, folder / "state"), SiteSettings.model_validate(fields, strict=False))
    made.place.state.mkdir()
    yield made
    made.encoder.cache.close()


def hopeful(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """A plateau at once, and dendrites that are worth ``gain``."""

    def report(_: HeldOut, layout: Layout, weights: np.ndarray) -> dict[str, float]:
        return {"loss": 1.0, "score": 0.5 + gain * layout.projection}

    monkeypatch.setattr(HeldOut, "report", report)


@pytest.mark.parametrize(("gain", "stages"), [(0.1, [0, 0, 3, 3, 3, 1, 1]), (0.0, [0, 0, 3, 3, 3, 0, 0])])
@pytest.mark.parametrize("salience", [True, False])
def test_it_grows_by_the_rules_of_a_federation(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, gain: float, stages: list[int], salience: bool
) -> None:
    hopeful(monkeypatch, gain)
    recipe = Recipe.model_validate(RECIPE | {"adapter": {"salience": salience, "seed": int(100 * gain)}})
    heard: list[int] = []
    kept = train_alone(workspace, recipe, lambda done, _: heard.append(done))
    assert heard == list(range(1, 8))
    line = json.loads(workspace.place.alone_line_file.read_text())
    assert [point["stage"] for point in line] == stages
    assert all(len(point["reports"]) == len(recipe.stages[point["stage"]].arms) for point in line)
    assert all(report["train_loss"] > 0 for point in line for report in point["reports"])
    grown = kept.number > 5 and gain > 0
    assert kept.layout == recipe.stages[1 if grown else 0].arms[0]
    stored = StoredAdapter.read(workspace.place.state / "alone.safetensors")
    assert stored is not None
    assert (stored.layout, stored.number) == (kept.layout, kept.number)


def test_what_was_trained_is_not_trained_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate(RECIPE | {"rounds": 1})
    kept = train_alone(workspace, recipe)
    monkeypatch.setattr("nexus_client.alone.local_update", None)
    again = train_alone(workspace, recipe)
    assert (again.number, again.layout) == (kept.number, kept.layout)
    np.testing.assert_array_equal(again.vector, kept.vector)


class Busy(Exception):
    """Something else comes first."""


def test_what_was_put_off_goes_on_where_it_stopped_and_ends_as_if_it_had_not_been(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeful(monkeypatch, 0.1)
    recipe = Recipe.model_validate(RECIPE | {"adapter": {"seed": 5}})
    whole = train_alone(workspace, recipe)
    line = workspace.place.alone_line_file.read_text()
    workspace.place.alone_file.unlink()
    heard: list[int] = []

    def busy(done: int, _: int) -> None:
        heard.append(done)
        raise Busy

    for _ in range(7):
        with pytest.raises(Busy):
            train_alone(workspace, recipe, busy)
    kept = train_alone(workspace, recipe, busy)
    assert heard == list(range(1, 8))
    assert (kept.number, kept.layout, workspace.place.alone_line_file.read_text()) == (whole.number, whole.layout, line)
    np.testing.assert_array_equal(kept.vector, whole.vector)


def test_what_was_put_off_is_begun_anew_for_another_recipe(workspace: Workspace) -> None:
    def busy(*_: int) -> None:
        raise Busy

    with pytest.raises(Busy):
        train_alone(workspace, Recipe.model_validate(RECIPE | {"adapter": {"seed": 6}}), busy)
    heard: list[int] = []
    train_alone(
        workspace,
        Recipe.model_validate(RECIPE | {"rounds": 2, "adapter": {"seed": 7}}),
        lambda done, _: heard.append(done),
    )
    assert heard == [1, 2]
