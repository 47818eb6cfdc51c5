"""A site's own report: its figures as it noted them, training alone, refusals; what cannot be read is said."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from nexus_client import own_rounds
from nexus_client.agent_api import EvaluateReport, Example
from nexus_client.cli import main
from nexus_client.consent import Consent
from nexus_client.policy import write_policy
from nexus_client.site import SiteHome
from nexus_client.site_report import report_of
from nexus_common import certs
from nexus_common.growth import Point
from nexus_common.plan import Plan
from nexus_common.recipe import Recipe
from nexus_common.report import QualityLine, Report
from nexus_common.report_page import as_html
from nexus_common.versions import StoredAdapter
from nexus_common.wire import TrainRound

from tests.plans import identity_of, make_plan
from tests.unit.test_plan_page import Read
from tests.unit.test_run_report import HOSTILE, version_rows

GROWTH = {"max_dendrites": 1, "patience": 1, "trial_rounds": 2, "candidates": ["projection"]}
PLAN = make_plan("abc", name="first", adapter={"salience": False}, growth=GROWTH)
SECOND = make_plan("abc", name="second", adapter={"salience": False})
BARE, GROWN, TRIAL = range(3)
FIGURES = {"loss": 1.25, "score": 0.5, "questions": 7.0, "vote": 1.0, "train_loss": 0.75}


@pytest.fixture
def place(tmp_path: Path) -> SiteHome:
    found = SiteHome.of(tmp_path, "a")
    found.keys.mkdir(parents=True)
    certs.save_key(found.keys / "identity.key", identity_of("a"))
    write_policy(found.policy_file, "a")
    found.write_settings("127.0.0.1:1", [])
    return found


def note(place: SiteHome, number: int, stage: int = BARE, plan: Plan = PLAN, **changed: float) -> None:
    """A round as the agent notes it; its plan is kept here."""
    Consent(place).offer(plan.canonical)
    arms = [FIGURES | {"score": 0.5 + number / 100 + arm / 10} | changed for arm in range(2 if stage == TRIAL else 1)]
    own_rounds.note(place.own_rounds_file, TrainRound(plan.hash, number, stage, 0, 0, b""), 1.5, arms)


def test_its_own_figures_are_on_its_page(place: SiteHome) -> None:
    for number in range(3):
        note(place, number)
    row = version_rows(Read(as_html(report_of(place))))["2"]
    assert [row[name] for name in ("loss in training", "loss held out", "score (x 100)", "questions", "votes")] == [
        "0.750",
        "1.250",
        "52.00",
        "7",
        "+1",
    ]
    assert row["seconds"] == "1.50"
    assert place.own_rounds_file.stat().st_mode & 0o777 == 0o600


def test_of_a_version_that_came_again_the_last_line_counts(place: SiteHome) -> None:
    note(place, 0)
    note(place, 1)
    note(place, 1, loss=9.0)
    (course,) = report_of(place).courses
    assert [(one.number, one.arms[0].figures["loss"]) for one in course.versions] == [(0, 1.25), (1, 9.0)]


def test_runs_stand_below_each_other_the_newest_first(place: SiteHome) -> None:
    note(place, 0)
    note(place, 0, plan=SECOND)
    note(place, 1)
    assert [course.title for course in report_of(place).courses] == ["Run second", "Run first"]


@pytest.mark.parametrize(("after", "winner"), [(GROWN, "projection dendrite"), (BARE, "control"), (None, None)])
def test_what_became_of_a_trial_is_read_from_what_came_after_it(
    place: SiteHome, after: int | None, winner: str | None
) -> None:
    for number, stage in enumerate([BARE, TRIAL, TRIAL, TRIAL, *([after] if after is not None else [])]):
        note(place, number, stage)
    ((trial,),) = (course.trials for course in report_of(place).courses)
    assert (trial.begin, trial.winner, trial.arms) == (1, winner, ("control", "projection dendrite"))
    assert trial.scores == pytest.approx((0.53, 0.63))


def test_a_trial_of_which_the_site_missed_rounds_is_told_all_the_same(place: SiteHome) -> None:
    for number, stage in ((0, BARE), (1, TRIAL), (4, GROWN)):
        note(place, number, stage)
    (course,) = report_of(place).courses
    assert [one.number for one in course.versions] == [0, 1, 4], "only what it had part in"
    assert [trial.winner for trial in course.trials] == ["projection dendrite"]


def test_rounds_of_a_plan_that_is_kept_no_longer_are_counted(place: SiteHome) -> None:
    note(place, 0)
    next(place.state.glob("plans/*.json")).unlink()
    report = report_of(place)
    assert not report.courses
    assert any(f"1 rounds are left out: their plan, {PLAN.hash.hex()[:16]}" in one for one in report.notes)


def test_a_line_that_a_crash_has_cut_takes_no_other_with_it(place: SiteHome) -> None:
    note(place, 0)
    with place.own_rounds_file.open("ab") as file:
        file.write(b'{"plan": "00\n[1]\n{"plan": 1}\n')
    note(place, 1)
    assert [one.number for one in own_rounds.read(place.own_rounds_file)[PLAN.hash.hex()]] == [0, 1]


def test_the_file_stays_bounded_and_keeps_the_newest(place: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_rounds, "MOST_BYTES", 4000)
    for number in range(60):
        note(place, number)
        assert place.own_rounds_file.stat().st_size <= 4000
    kept = [one.number for one in own_rounds.read(place.own_rounds_file)[PLAN.hash.hex()]]
    assert kept == list(range(kept[0], 60))
    assert len(kept) >= 5
    assert place.own_rounds_file.stat().st_mode & 0o777 == 0o600


def test_a_round_that_cannot_be_noted_is_logged_and_goes_on(place: SiteHome, caplog: pytest.LogCaptureFixture) -> None:
    Consent(place).offer(PLAN.canonical)
    place.own_rounds_file.mkdir()
    asked = TrainRound(PLAN.hash, 3, 0, 0, 0, b"")
    own_rounds.note(place.own_rounds_file, asked, 1.0, [FIGURES])
    assert "version 3 is not noted for this site's report" in caplog.text


def alone(place: SiteHome, *stages: int) -> Recipe:
    """What ``train --local`` leaves."""
    recipe = Recipe.model_validate({"adapter": {"salience": False}, "growth": GROWTH}, strict=False)
    layout = recipe.stages[stages[-1]].arms[0]
    points = [
        Point(number, stage, tuple(FIGURES for _ in recipe.stages[stage].arms)) for number, stage in enumerate(stages)
    ]
    place.alone_line_file.write_text(json.dumps([asdict(point) for point in points]))
    StoredAdapter(recipe, 2, np.zeros(layout.dim, np.float32), layout).write(place.alone_file)
    return recipe


def test_training_alone_is_drawn_as_a_federations_is(place: SiteHome) -> None:
    alone(place, BARE, TRIAL, TRIAL, TRIAL, GROWN)
    (course,) = report_of(place).courses
    assert course.title.startswith("Alone: round 2 of 10 was kept")
    assert [trial.winner for trial in course.trials] == ["projection dendrite"]
    assert version_rows(Read(as_html(report_of(place))))["0"]["loss held out"] == "1.250"


def evaluated(place: SiteHome, **changed: object) -> None:
    quality = QualityLine(model="base", metric="nDCG@10", mean=0.402, low=0.321, high=0.487, questions=84)
    example = Example(question="private", passage="private", rank_before=2, rank_after=1)
    fields = {"site": "a", "rows": 9, "run": "first", "version": 3, "lines": [quality], "warnings": ["few questions"]}
    report = EvaluateReport.model_validate(fields | {"examples": [example]} | changed)
    place.evaluation_file.write_text(report.model_dump_json())


def test_the_last_evaluation_is_on_the_page_and_none_of_its_text(place: SiteHome) -> None:
    evaluated(place)
    page = Read(as_html(report_of(place)))
    assert [text for text in page.texts("td")] == ["base", "nDCG@10", "40.2", "32.1 to 48.7", "84", ""]
    said = " ".join(page.texts("p"))
    assert "federated is version 3 of run first. In use is base. few questions" in said
    assert "private" not in page.texts("main")[0]


def test_what_it_refused_is_counted_with_its_meaning(place: SiteHome) -> None:
    log = Consent(place).audit
    for _ in range(2):
        log.append("refused", purpose="train", code="paused", bytes=6, plan=PLAN.hash.hex())
    log.append("refused", purpose=HOSTILE, code=HOSTILE)
    log.append("sent", purpose="train", bytes=6)
    found = {line.what: (line.meaning, line.times) for line in report_of(place).refusals}
    assert found == {"train: paused": ("the site has paused itself", 2), f"{HOSTILE}: {HOSTILE}": ("", 1)}
    assert f"{HOSTILE}: {HOSTILE}" in Read(as_html(report_of(place))).texts("td")


@pytest.mark.parametrize("file", ["alone_line_file", "evaluation_file", "audit_file"])
@pytest.mark.parametrize("text", ["", "{", '[{"number": 1}]', '[{"number": 0, "stage": 99}]', "\x00"])
def test_a_damaged_file_is_named_and_takes_nothing_from_the_others(place: SiteHome, file: str, text: str) -> None:
    note(place, 0)
    alone(place, BARE)
    evaluated(place)
    path: Path = getattr(place, file)
    path.write_text(text)
    report = report_of(place)
    if text or file != "audit_file":  # an empty log is one
        assert any(str(path) in line for line in report.notes)
    assert "Run first" in [course.title for course in report.courses]


def test_where_there_is_nothing_yet_the_command_says_what_makes_something(
    place: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(place.settings_folder.parent)
    assert main(["--home", home, "report"]) == 1
    assert "a has nothing to report" in (said := capsys.readouterr().err)
    assert "train --local" in said
    assert not list(Path().glob("a.html"))


def test_the_command_writes_the_page_here_and_with_json_prints_the_numbers(
    place: SiteHome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = ["--home", str(place.settings_folder.parent)]
    note(place, 0)
    monkeypatch.chdir(tmp_path)
    assert main([*home, "--json", "report"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("file") is None
    assert Report.model_validate(told).courses == report_of(place).courses
    assert not Path("a.html").exists()
    assert main([*home, "report"]) == 0
    assert "written: a.html" in capsys.readouterr().out
    assert "Site a" in Path("a.html").read_text()
    assert main([*home, "report", "-o", os.devnull + "/x.html"]) == 1
    assert "name another file: -o FILE" in capsys.readouterr().err


def test_a_site_outside_of_any_run_has_the_base_model_in_use(place: SiteHome) -> None:
    alone(place, BARE)
    assert dict(report_of(place).facts)["in use"] == "base, chosen: nothing else was judged here yet"
