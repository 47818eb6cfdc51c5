"""What becomes of a version at a site: taken where its hold-out says so, also after a crash; then the choice."""

import json
import math
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nexus_client import choice, judging
from nexus_client.choice import NOTHING, best_of, choose, made_for
from nexus_client.consent import Consent
from nexus_client.judging import Judging, judge_newest
from nexus_client.material import RankingTask, Task
from nexus_client.model_list import BASE
from nexus_client.personal import MIXTURES, candidates, mixtures
from nexus_client.policy import change_policy, write_policy
from nexus_client.reports import evaluate
from nexus_client.shelf import Shelf
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.split import side
from nexus_client.status import status
from nexus_client.workspace import Workspace
from nexus_common import audit, wire
from nexus_common.errors import NexusError
from nexus_common.layout import WIDTH, Layout, Vector
from nexus_common.stages import grown
from nexus_common.versions import StoredAdapter, vector_hash

from tests.plans import make_plan

PLAIN = {"adapter": {"salience": False}, "local": {"steps": 3, "batch_rows": 4}, "rounds": 3}
PLAN = make_plan("abc", name="winter", **PLAIN)
LAYOUT = PLAN.adapter.layout
BIRTH = LAYOUT.first_vector(PLAN.adapter.seed_bytes)
ASKED = "copper silver marble velvet amber linen walnut cotton granite ivory pewter satin cedar bronze leather crystal"
TOLD = "river tiger violin pepper anchor candle meadow falcon hammer saddle lantern barrel whistle turnip glacier"


def groups(part: str, count: int) -> list[str]:
    return [name for name in (f"g{i}" for i in range(500)) if side(name, 1 / 2) == part][:count]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A site whose questions have nothing in common with their answers: 24 to choose by, 14 to judge by."""
    folder = tmp_path_factory.mktemp("site")
    of_rows = [*groups("choose", 24), *groups("judge", 14), *groups("train", 10)]
    asked, told = ASKED.split(), TOLD.split()
    rows = [
        {
            "query": f"{asked[i % 16]} {asked[(i * 5 + i // 16) % 16]} box",
            "passage": f"the {told[i % 15]} {told[(i * 3 + i // 15) % 15]}",
            "topic": group,
        }
        for i, group in enumerate(of_rows)
    ]
    (folder / "site.toml").write_text('site = "a"\nserver = "127.0.0.1:1"\n')
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"site": "a", "server": "127.0.0.1:1", "holdout_share": 0.5, "cpu_threads": 1}
    fields |= {"data": [{"path": str(folder / "rows.jsonl"), "group": "topic"}]}
    workspace = Workspace(SiteHome("a", folder, folder / "state"), SiteSettings.model_validate(fields, strict=False))
    workspace.encoder.fill(workspace.material.texts.items, tokens=())
    yield workspace
    workspace.encoder.cache.close()


@pytest.fixture
def workspace(made: Workspace) -> Workspace:
    """With no model yet, and the shipped policy."""
    place = made.place
    for path in (place.policy_file, place.audit_file, place.federated_file, place.alone_file, place.evaluation_file):
        path.unlink(missing_ok=True)
    shutil.rmtree(place.state / "models", ignore_errors=True)
    write_policy(place.policy_file, "a")
    return made


def taught(workspace: Workspace, *parts: str) -> Vector:
    """An adapter that turns the questions of these parts of the hold-out to their answers."""
    tasks = [task for part in parts for task in getattr(workspace.material, part)]
    questions, answers = np.concatenate([task.queries for task in tasks]), np.concatenate([_answers(t) for t in tasks])
    passages = np.unique(np.concatenate([task.passages for task in tasks]))
    given = workspace.base_vectors(np.concatenate([questions, passages]))
    wanted = np.concatenate([2 * workspace.base_vectors(answers), np.zeros((len(passages), WIDTH), np.float32)])
    turn = wanted.T @ np.linalg.pinv(given.T)  # 2 p for each question q, nothing for a passage
    return BIRTH + np.pad(turn.ravel(), (0, WIDTH)).astype(np.float32)


def _answers(task: Task) -> np.ndarray:
    assert isinstance(task, RankingTask)
    return np.array([task.passages[places[0]] for places in task.positives])


def blind() -> Vector:
    """It sees one direction of 384 only."""
    made = np.zeros(LAYOUT.dim, np.float32)
    made[:WIDTH] = np.random.default_rng(0).normal(size=WIDTH)
    made[-WIDTH:] = 1e-3
    return made


def comes(workspace: Workspace, number: int, vector: Vector, *, judged: bool = True) -> Shelf:
    """The server has sent a version."""
    StoredAdapter(PLAN, number, vector, LAYOUT).write(workspace.place.federated_file)
    if judged:
        judge_newest(workspace, Consent(workspace.place))
    return Shelf(workspace.place)


def events(workspace: Workspace) -> list[tuple[str, int]]:
    return [(e["event"], e["version"]) for e in audit.read(workspace.place.audit_file) if "version" in e]


def test_a_version_that_the_hold_out_likes_is_used_and_one_that_it_does_not_is_not(workspace: Workspace) -> None:
    shelf = comes(workspace, 1, taught(workspace, "choose"))
    assert shelf.models.in_use == "winter-1"
    assert shelf.models.why.startswith("better than the base model (+")
    assert status(workspace.place).in_use == "winter-1"
    comes(workspace, 2, blind())
    assert shelf.models.in_use == "winter-1", "it goes on with what it had"
    told = status(workspace.place)
    assert told.refused is not None
    assert told.refused.startswith("winter-2: worse than ")
    assert events(workspace) == [("version accepted", 1), ("version refused", 2)]
    held = shelf.models.named("winter-2")
    assert held is not None
    assert not held.accepted


def test_the_log_says_what_came_into_use_why_and_what_was_taken_back(workspace: Workspace) -> None:
    comes(workspace, 1, taught(workspace, "choose"))
    shelf = comes(workspace, 2, taught(workspace, "choose", "judge"))
    reason, path = shelf.models.why, workspace.place.audit_file
    shelf.pin("winter-2")
    comes(workspace, 1, taught(workspace, "choose"))
    told = [line for line in audit.read(path) if line["event"] in ("model chosen", "models taken back")]
    facts = [{name: line[name] for name in line if name not in ("n", "at", "previous")} for line in told]
    assert [(one.get("before"), one.get("model"), one["in_use"]) for one in facts] == [
        (BASE, "winter-1", "winter-1"), ("winter-1", "winter-2", "winter-2"), (None, None, "winter-1"),
        ("winter-2", "winter-1", "winter-1"),
    ]  # fmt: skip
    assert (facts[1]["reason"], facts[2]["models"]) == (reason, ["winter-2"])
    assert facts[3]["reason"] == "the server has taken back what was chosen before"


def test_nothing_is_chosen_that_cannot_be_logged_but_what_is_taken_back_goes_all_the_same(
    workspace: Workspace,
) -> None:
    shelf = comes(workspace, 1, taught(workspace, "choose"))
    workspace.place.audit_file.unlink()
    workspace.place.audit_file.mkdir()
    try:
        with pytest.raises(NexusError, match="audit log"):
            shelf.choose(BASE)
        assert shelf.models.in_use == "winter-1"
        with pytest.raises(NexusError, match="audit log"):
            shelf.call_back(PLAN, 0)
        assert shelf.models.held == ()
    finally:
        workspace.place.audit_file.rmdir()


def test_what_is_worse_than_what_is_in_use_is_refused_though_it_beats_the_base_model(workspace: Workspace) -> None:
    best = taught(workspace, "choose")
    shelf = comes(workspace, 1, best)
    for number, share in ((2, 0.9), (3, 0.1)):
        comes(workspace, number, (BIRTH + share * (best - BIRTH)).astype(np.float32))
    accepted = {held.name: (held.accepted, held.reason) for held in shelf.models.held}
    assert accepted["winter-2"][0], "it finds as much"
    assert accepted["winter-3"][0] is False
    assert accepted["winter-3"][1].startswith("worse than winter-2 (-")
    assert shelf.models.in_use == "winter-2"


def test_another_version_under_a_name_that_is_taken_changes_nothing_that_is_in_use(workspace: Workspace) -> None:
    good = taught(workspace, "choose")
    shelf = comes(workspace, 1, good)
    shelf.pin("winter-1")
    comes(workspace, 1, blind())  # a server restored from a backup, or one that lies
    assert (shelf.models.in_use, shelf.models.pinned) == ("winter-1", "winter-1")
    kept = shelf.load("winter-1")
    assert kept is not None
    np.testing.assert_array_equal(kept.vector, good)
    other = shelf.models.held[-1]
    assert (other.name, other.accepted) == (f"winter-1-{other.digest[:8]}", False)


def test_versions_that_are_refused_drive_no_good_one_away(workspace: Workspace) -> None:
    shelf = comes(workspace, 1, taught(workspace, "choose"))
    rng = np.random.default_rng(0)
    for number in range(2, 7):
        shelf.choose(BASE)  # that it is in use shall not be what keeps it
        comes(workspace, number, (blind() + rng.normal(scale=1e-4, size=LAYOUT.dim)).astype(np.float32))
        choose(workspace, 0.02)
        chosen = shelf.models.named(shelf.models.in_use)
        assert chosen is not None
        assert chosen.name == "winter-1" or chosen.kind == "personal"
        assert shelf.models.named("winter-1")
    personal = choose(workspace, 0.02)["personal"]
    assert personal.number == 1, "made of the version that was taken"


def test_what_is_called_back_while_models_are_compared_stays_away(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = comes(workspace, 1, taught(workspace, "choose"))
    comes(workspace, 2, (taught(workspace, "choose") * np.float32(0.999)).astype(np.float32))
    assert shelf.models.in_use == "winter-2"
    compared = choice.row_scores

    def meanwhile(*given: object) -> list[np.ndarray]:
        monkeypatch.undo()
        first = shelf.load("winter-1")
        assert first is not None
        first.write(workspace.place.federated_file)
        choice.call_back(shelf, first)
        return compared(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(choice, "row_scores", meanwhile)
    personal = choose(workspace, 0.02)["personal"]
    assert not [held.name for held in shelf.models.held if held.number == 2]
    assert personal.number == 1, "it is all done again without it"
    first = shelf.load("winter-1")
    assert shelf.models.chosen_for == made_for(workspace, first, 0.02), "and so is the choice"


def test_what_the_server_withdraws_while_models_are_compared_leaves_nothing_made_of_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = taught(workspace, "choose"), (taught(workspace, "choose") * np.float32(0.999)).astype(np.float32)
    comes(workspace, 1, first)
    shelf = comes(workspace, 2, second)
    compared = choice.row_scores

    def meanwhile(*given: object) -> list[np.ndarray]:
        monkeypatch.undo()
        shelf.withdraw([vector_hash(wire.pack(second))])
        return compared(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(choice, "row_scores", meanwhile)
    assert choose(workspace, 0.02)["personal"].number == 1
    assert not [held.name for held in shelf.models.held if held.number == 2]


@pytest.mark.parametrize("meanwhile", [True, False], ids=["while it is judged", "before"])
def test_a_version_that_is_out_of_use_is_not_taken_though_it_came_last(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, *, meanwhile: bool
) -> None:
    version, compared = taught(workspace, "choose"), judging.row_scores

    def withdraw() -> None:
        Shelf(workspace.place).withdraw([vector_hash(wire.pack(version))])

    def judged(*given: object) -> list[np.ndarray]:
        withdraw()
        return compared(*given)  # type: ignore[arg-type]

    if meanwhile:
        monkeypatch.setattr(judging, "row_scores", judged)
    else:
        withdraw()
    for _ in range(2):
        assert comes(workspace, 1, version).models.held == ()
    assert [event for event, _ in events(workspace)] == (["version accepted"] if meanwhile else [])


def test_a_version_is_judged_once_and_after_a_crash_at_the_next_start(workspace: Workspace) -> None:
    shelf = comes(workspace, 1, taught(workspace, "choose"), judged=False)
    assert (shelf.models.held, shelf.models.in_use) == ((), BASE)
    for _ in range(2):
        judge_newest(workspace, Consent(workspace.place))
    assert events(workspace) == [("version accepted", 1)]
    assert shelf.models.in_use == "winter-1"


def test_an_earlier_version_of_the_run_calls_later_ones_back(workspace: Workspace) -> None:
    comes(workspace, 1, taught(workspace, "choose"))
    shelf = comes(workspace, 2, taught(workspace, "choose", "judge"))
    assert shelf.models.in_use == "winter-2"
    comes(workspace, 1, taught(workspace, "choose"))
    assert [held.name for held in shelf.models.held] == ["winter-1"]
    assert (shelf.models.in_use, list(shelf.models.gone)) == ("winter-1", ["winter-2"])


def test_without_a_hold_out_the_base_model_stays_until_a_person_says_otherwise(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(workspace.__dict__, "quick_part", [])
    shelf = comes(workspace, 1, taught(workspace, "choose"))
    assert (shelf.models.in_use, shelf.models.held[0].reason) == (BASE, NOTHING)
    shelf.pin(shelf.resolve("federated"))
    assert shelf.models.in_use == "winter-1"


def test_numbers_that_are_none_are_refused(workspace: Workspace) -> None:
    shelf = comes(workspace, 1, np.full(LAYOUT.dim, 3e38, np.float32))
    assert "not finite" in shelf.models.held[0].reason
    assert shelf.models.in_use == BASE


def test_a_site_sets_how_much_it_would_lose(workspace: Workspace) -> None:
    nearly = BIRTH + np.float32(1e-4)
    change_policy(workspace.place.policy_file, max_loss=1.0)
    assert comes(workspace, 1, nearly).models.named("winter-1").accepted  # type: ignore[union-attr]


def test_the_choice_rests_on_the_choosing_part_alone(workspace: Workspace) -> None:
    comes(workspace, 1, taught(workspace, "judge"))
    models = choose(workspace, 0.02)
    assert models.keys() == {"federated", "alone", "personal"}
    judged = evaluate(workspace)
    by_model = {line.model: line.mean for line in judged.lines if line.metric == "nDCG@10"}
    assert by_model["federated"] > by_model["base"] + 0.3, "it knows the judging part by heart"
    assert judged.in_use != "winter-1"


def test_personal_models_are_made_again_only_where_version_or_rows_change(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = comes(workspace, 1, taught(workspace, "choose"))
    first = choose(workspace, 0.02)["personal"]
    assert first.number == 1
    names = [held.name for held in shelf.models.held]
    monkeypatch.setattr(choice, "candidates", None)
    again = choose(workspace, 0.02)["personal"]
    np.testing.assert_array_equal(first.vector, again.vector)
    assert {held.name for held in shelf.models.held} == {*names}
    monkeypatch.undo()
    comes(workspace, 2, taught(workspace, "choose", "judge"))
    assert choose(workspace, 0.02)["personal"].number == 2


def test_the_same_version_and_rows_make_the_same_candidates(workspace: Workspace) -> None:
    comes(workspace, 1, taught(workspace, "choose"))
    version = StoredAdapter.read(workspace.place.federated_file)
    alone = StoredAdapter(PLAN, 3, blind(), LAYOUT)
    assert version is not None
    made, again = ([*candidates("a", workspace.ready(PLAN), version, alone)] for _ in range(2))
    assert len(made) == 2 + len(MIXTURES)
    for (layout, one), (same, other) in zip(made, again, strict=True):
        assert layout == same
        np.testing.assert_array_equal(one, other)
    far, near = (float(np.linalg.norm(made[i][1] - version.vector)) for i in (1, 0))
    assert 0 < near < far, "the stronger pull stays nearer"


def test_mixtures_meet_in_the_layout_that_holds_both() -> None:
    small, large = Layout(0, 0), Layout(1)
    one = StoredAdapter(PLAN, 1, small.first_vector(b""), small)
    other = StoredAdapter(PLAN, 1, large.first_vector(PLAN.adapter.seed_bytes), large)
    for layout, vector in mixtures(one, other):
        assert layout == Layout(1, 0)
        np.testing.assert_allclose(vector, grown(one.vector, small, layout, PLAN.adapter.seed_bytes))
    strange = StoredAdapter(PLAN, 1, large.first_vector(b""), Layout(1, None, "sigmoid"))
    assert [*mixtures(one, strange)] == []


def test_the_best_mean_wins_but_the_base_model_over_all_that_may_lose() -> None:
    base, noise = np.full(40, 0.5), 0.3 * np.random.default_rng(0).choice([-1.0, 1.0], 40)
    noise -= noise.mean()
    assert best_of({BASE: base, "a": base + 0.1, "b": base + 0.2}, 0.02).name == "b"
    assert best_of({BASE: base, "a": base + 0.1, "b": base - 0.2}, 0.02).name == "a"
    unsure = best_of({BASE: base, "a": base + 0.01 + noise}, 0.02)
    assert (unsure.name, "cannot tell" in unsure.reason) == (BASE, True)
    assert best_of({BASE: base, "a": base}, 0.02).name == BASE, "nothing gained"
    assert best_of({BASE: np.empty(0), "a": np.empty(0)}, 0.02).name == BASE


def test_evaluate_shows_all_models_and_what_is_in_use(workspace: Workspace) -> None:
    comes(workspace, 1, taught(workspace, "choose", "judge"))
    found = evaluate(workspace)
    order = ["keyword", "base", "alone", "federated", "personal", "in use"]
    assert list(dict.fromkeys(line.model for line in found.lines)) == order
    assert found.in_use == Shelf(workspace.place).models.chosen != BASE
    assert found.verdict.startswith("better than the base model (+")
    assert not found.pinned
    shelf = Shelf(workspace.place)
    shelf.pin(BASE)
    pinned = evaluate(workspace)
    means = {line.model: line.mean for line in pinned.lines if line.metric == "nDCG@10"}
    assert (pinned.in_use, pinned.pinned, means["in use"]) == (BASE, True, means["base"])
    assert f"the hold-out would choose {found.in_use}" in pinned.why


def test_an_idle_site_chooses_and_a_round_puts_it_off(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    worked = [time.time()]
    made = Judging(workspace, Consent(workspace.place), lambda: worked[0], threading.Lock())
    shelf = comes(workspace, 1, taught(workspace, "choose"))
    with pytest.raises(judging._Busy):
        made.choose()
    assert not any(held.kind == "personal" for held in shelf.models.held)
    worked[0] = 0.0
    made.choose()
    assert any(held.kind == "personal" for held in shelf.models.held)
    assert shelf.models.chosen_for

    again: list[float] = []
    monkeypatch.setattr(judging, "choose", lambda _, max_loss, on_step: again.append(max_loss))
    made.choose()
    assert again == [], "the choice was made already"
    change_policy(workspace.place.policy_file, max_loss=0.5)
    made.choose()
    assert again == [0.5], "a changed policy makes it anew"


def test_judging_waits_while_a_round_trains_and_gives_way_but_not_for_ever(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked, shelf = [math.inf], comes(workspace, 1, taught(workspace, "choose"), judged=False)
    made = Judging(workspace, Consent(workspace.place), lambda: worked[0], threading.Lock())
    with pytest.raises(judging._Busy):
        made._judge()
    worked[0] = time.time()
    compared = judging.row_scores

    def a_round_begins(*given: Any) -> list[np.ndarray]:
        worked[0] = math.inf
        return compared(*given)

    monkeypatch.setattr(judging, "row_scores", a_round_begins)
    workspace.encoder.cache.keep_only(pooled=[], tokens=[])  # or there is nothing to encode
    with pytest.raises(judging._Busy):
        made._judge()
    assert (shelf.models.held, made._unjudged) == ((), True)
    monkeypatch.setattr(judging, "PATIENCE_SECONDS", 0.0)
    made._judge()
    assert [held.name for held in shelf.models.held] == ["winter-1"]
    monkeypatch.setattr(judging, "PATIENCE_SECONDS", 600.0)
    comes(workspace, 2, taught(workspace, "choose", "judge"), judged=False)
    with pytest.raises(judging._Busy):
        made._judge()


def test_a_fault_of_judging_ends_neither_the_thread_nor_the_agent(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Judging(workspace, Consent(workspace.place), time.time, threading.Lock())
    calls: list[int] = []

    def fails(*_: Any) -> None:
        calls.append(1)
        raise ValueError("a fault")

    monkeypatch.setattr(judging, "judge_newest", fails)
    monkeypatch.setattr(judging, "AGAIN_SECONDS", 0.02)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    for _ in range(1000):
        if len(calls) >= 3:
            break
        time.sleep(0.01)
    assert len(calls) >= 3, "it is tried again"
    monkeypatch.setattr(judging, "judge_newest", lambda *_: None)
    assert thread.is_alive()


def test_a_version_that_the_server_has_named_as_taken_back_is_not_used_and_the_log_says_so(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    vector = taught(workspace, "choose")
    Shelf(workspace.place).withdraw([vector_hash(wire.pack(vector))])
    shelf = comes(workspace, 1, vector)
    assert shelf.models.held == ()
    assert "version 1 of run winter is not used: the server has named it as taken back" in caplog.text
