"""A run's report: the numbers on its page are the registry's, of cohorts alone; all foreign text stays text."""

import re
from pathlib import Path

import numpy as np
import pytest
from nexus_common.layout import Layout
from nexus_common.plan import Plan
from nexus_common.report import Report
from nexus_common.report_page import as_html
from nexus_common.stages import Stage
from nexus_common.tail import Reported
from nexus_server.records import MADE, MIDPOINT, ROLLED_BACK, Run
from nexus_server.registry import Registry
from nexus_server.run_report import report_of

from tests.plans import make_plan
from tests.unit.test_admin import Coordinator
from tests.unit.test_plan_page import Read

NAMES = ("bank-a", "hospital-a", "hospital-b", "hospital-c")
PLAN = make_plan(
    NAMES,
    name="demo",
    purpose="leaflets",
    adapter={"salience": False},
    growth={"max_dendrites": 1, "patience": 1, "trial_rounds": 2},
)
BARE, GROWN = PLAN.stages[0].arms[0], Layout(1, None)
TRIAL = next(number for number, stage in enumerate(PLAN.stages) if stage.is_trial)
WON = PLAN.stages.index(Stage((GROWN,)))
pytestmark = pytest.mark.filterwarnings("error")  # matplotlib warns of a figure that has no room
HOSTILE = "<script>alert(1)</script> {x} $y$ &amp; </td><td> ](http://x.example)"


def figures(number: int, arm: int = 0, sites: int = 4) -> dict[str, Reported]:
    """Different for every version and arm."""
    values = {"train_loss": 2 - number / 8, "loss": 3 - number / 10, "score": 0.4 + number / 100 + arm / 1000}
    found = {name: Reported(value, sites) for name, value in (values | {"questions": 31.5}).items()}
    return found | {"vote": Reported(number % 3 - 1, 4)}


class History:
    """A run of which rounds are told one by one."""

    def __init__(self, folder: Path, plan: Plan = PLAN) -> None:
        self.plan, self.registry = plan, Registry(folder)
        self.registry.create_run(plan, np.zeros(4, np.float32))

    @property
    def run(self) -> Run:
        found = self.registry.run(self.plan.name)
        assert found is not None
        return found

    def round(self, stage: int, cohort: tuple[str, ...] = NAMES, sites: int = 4, *, told: bool = True) -> None:
        """A round that makes a version in this form, and reports what it began from."""
        run = self.run
        vector, arms = np.full(4, run.round + 1, np.float32), range(len(run.form.arms))
        reported = [figures(run.round, arm, sites) if told else {} for arm in arms]
        assert self.registry.commit_round(run, vector, {}, list(cohort), 1.25, 1_000_000, reported, stage)

    def rounds(self, *stages: int) -> None:
        for stage in stages:
            self.round(stage)

    @property
    def report(self) -> Report:
        return report_of(self.registry, self.run)

    @property
    def page(self) -> Read:
        return Read(as_html(self.report))


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path)


def rows(page: Read) -> list[list[str]]:
    """The cells of each row."""
    found = list[list[str]]()
    for tag, _, inside in page.found:
        if tag == "tr":
            found.append([])
        elif tag in ("td", "th"):
            found[-1].append("".join(inside))
    return found


def version_rows(page: Read) -> dict[str, dict[str, str]]:
    """The table of versions by number, each row by its column's head."""
    found = rows(page)
    (head,) = (row for row in found if row[0] == "version")
    after = found[found.index(head) + 1 :]
    return {line[0]: dict(zip(head, line, strict=True)) for line in after if len(line) == len(head)}


def test_every_number_of_a_version_is_the_registrys(history: History) -> None:
    history.rounds(0, 0)
    history.round(0, NAMES[:3])
    table, told = version_rows(history.page), history.registry.figures("demo")
    assert list(table) == ["0", "1", "2", "3"]
    for number in range(3):
        row, one = table[str(number)], told[number][0]
        assert row["loss in training"] == f"{one['train_loss'].value:.3f}"
        assert row["loss held out"] == f"{one['loss'].value:.3f}"
        assert row["score (x 100)"] == f"{100 * one['score'].value:.2f}"
        assert (row["questions"], row["votes"]) == ("31.5", ["-1", "0", "+1"][number])
    assert (table["3"]["cohort"], table["2"]["cohort"], table["0"]["cohort"]) == ("3, without hospital-c", "4, all", "")
    assert (table["1"]["seconds"], table["1"]["MB received"], table["3"]["loss held out"]) == ("1.25", "1.00", "")


def test_the_points_of_a_figure_lie_where_the_numbers_say(history: History) -> None:
    history.rounds(0, 0, 0)
    (score,) = re.findall(r'<svg[^>]*aria-labelledby="c1-2-title.*?</svg>', as_html(history.report), re.DOTALL)
    found = re.findall(r'<use href="#[^"]*" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--one\)', score)
    xs, ys = (np.array(one, float) for one in zip(*found[:3], strict=True))
    np.testing.assert_allclose(np.diff(xs), xs[1] - xs[0], atol=0.02)
    np.testing.assert_allclose(np.diff(ys), ys[1] - ys[0], atol=0.02)
    assert xs[1] > xs[0]
    assert ys[1] < ys[0], "scores of 40, 41, 42 rise"


@pytest.mark.parametrize(
    ("stages", "outcome", "label"),
    [
        ((0, TRIAL, TRIAL, TRIAL, WON, WON), "projection dendrite stays", "trial 1: stays"),
        ((0, TRIAL, TRIAL, TRIAL, 0, 0), "none stays", "trial 1: none"),
        ((0, TRIAL, TRIAL), "goes on", "trial 1: goes on"),
    ],
)
def test_a_trial_is_told_with_its_arms_and_its_outcome(
    history: History, stages: tuple[int, ...], outcome: str, label: str
) -> None:
    history.rounds(*stages)
    page = history.page
    head, trial = (row for row in rows(page) if len(row) == 4)
    assert head[0] == "trial"
    ended = len(stages) > 3
    newest = history.registry.figures("demo")[4 if ended else 2]
    assert trial[:2] == ["1", "2 to 4" if ended else "from 2"]
    names = ("control", "projection dendrite", "salience dendrite")[: len(newest)]
    scores = [f"{name} {100 * arm['score'].value:.2f}" for name, arm in zip(names, newest, strict=True)]
    assert trial[2].split(", ")[:2] == scores[:2]
    assert trial[3] == outcome
    assert page.texts("text").count(label) == 3, "loss, score and seconds"
    two = version_rows(page)["2"]
    assert two["adapter"].split("\n")[:2] == ["control", "projection dendrite"]
    told = history.registry.figures("demo")[2]
    assert two["score (x 100)"].split("\n") == [f"{100 * arm['score'].value:.2f}" for arm in told]


def test_what_a_rollback_took_out_of_use_is_marked_and_no_part_of_the_line(history: History) -> None:
    history.rounds(0, 0, 0, 0)
    assert history.registry.roll_back(history.run, 2, np.full(4, 2.5, np.float32), 0)
    history.rounds(0)
    page, table = history.page, version_rows(history.page)
    states = [table[str(number)]["state"] for number in range(7)]
    assert states == ["", "", "", ROLLED_BACK, ROLLED_BACK, MIDPOINT, ""]
    assert "out of use" in page.texts("text")
    assert {version.state for version in history.report.courses[0].versions} == {MADE, ROLLED_BACK, MIDPOINT}


def test_a_trial_that_a_rollback_cut_short_has_no_outcome(history: History) -> None:
    history.rounds(0, TRIAL, TRIAL)
    assert history.registry.roll_back(history.run, 1, np.full(4, 1.5, np.float32), 0)
    history.rounds(0)
    assert history.report.courses[0].trials == ()
    assert version_rows(history.page)["2"]["adapter"].startswith("control\n")


def test_what_fewer_sites_than_the_smallest_cohort_had_is_left_out_everywhere(history: History) -> None:
    history.round(0)
    history.round(TRIAL, sites=2)
    history.round(TRIAL, sites=1)
    report = history.report
    assert [sorted(version.arms[0].figures) for version in report.courses[0].versions[:3]] == [
        sorted(figures(0)),
        ["vote"],
        ["vote"],
    ]
    assert set(report.courses[0].trials[0].scores) == {None}
    assert any("that fewer than 3 sites had are left out" in note for note in report.notes)
    hidden = [f"{figures(number)['loss'].value:.3f}" for number in (1, 2)]
    assert not [text for text in hidden if text in as_html(report)]
    assert "not told" in "".join(history.page.texts("td"))


def test_a_run_of_which_nothing_was_reported_yet_has_a_page(history: History) -> None:
    assert "Nothing was reported yet." in history.page.texts("p")
    history.round(0, told=False)
    page = history.page
    assert [title for title in page.texts("title") if title in ("Loss", "Score")] == []
    assert version_rows(page)["1"]["cohort"] == "4, all"


def test_why_rounds_came_to_nothing_is_counted_by_site_with_its_meaning(history: History) -> None:
    for _ in range(3):
        history.registry.note_failed_round("demo", 1, {"hospital-b": "refused: paused"})
    history.registry.note_failed_round("demo", 1, {"": "below-threshold: 2 sites have trained, it takes 3"})
    found = {row[0]: row[1:4] for row in rows(history.page) if len(row) == 6}
    assert found["hospital-b"] == ["refused: paused", "the site has paused itself", "3"]
    assert found["the round"] == ["below-threshold: 2 sites have trained, it takes 3", "", "1"]


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    def page(purpose: str, reason: str) -> Read:
        plan = make_plan(NAMES, name="demo", purpose=purpose)
        history = History(tmp_path / purpose[:1], plan)
        history.registry.note_failed_round("demo", 1, {"bank-a": reason})
        return history.page

    for name in ("<", "x"):
        (tmp_path / name).mkdir()
    hostile, plain = page(HOSTILE, HOSTILE), page("x" * len(HOSTILE), "x" * len(HOSTILE))
    assert hostile.elements == plain.elements
    assert HOSTILE in hostile.texts("p")
    assert HOSTILE in hostile.texts("td")


def test_the_page_is_closed_in_itself(history: History) -> None:
    history.rounds(0, TRIAL, TRIAL, TRIAL, WON)
    page, text = history.page, as_html(history.report)
    assert not {*page.elements} & {"script", "iframe", "object", "embed", "link", "img", "image", "form", "a", "base"}
    attributes = {name for _, found, _ in page.found for name in found}
    assert not {name for name in attributes if name.startswith("on")} | attributes & {"src", "xlink:href"}
    policy = next(found["content"] for _, found, _ in page.found if "http-equiv" in found)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    ids = [found["id"] for _, found, _ in page.found if "id" in found]
    assert len(ids) == len({*ids}), "figures share no name"
    assert {*re.findall(r'(?:url\(#|href="#)([^")]*)', text)} <= {*ids}


def test_every_figure_says_in_words_what_it_shows(history: History) -> None:
    history.rounds(0, 0, 0)
    page = history.page
    for tag, found, _ in page.found:
        if tag == "svg":
            assert found["role"] == "img"
            title, text = str(found["aria-labelledby"]).split()
            told = {str(one["id"]): "".join(inside) for _, one, inside in page.found if "id" in one}
            assert told[title] in ("Loss", "Score", "Cohorts", "Seconds of a round")
            assert told[text] in "".join(page.texts("figcaption"))
    assert "Score on what is held out: 40.0 at version 0, 42.0 at version 2." in page.texts("desc")
    assert "4 sites were in the sum that made a version; 3 of the plan's 4 are needed." in page.texts("desc")


def test_a_run_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    server = Coordinator(tmp_path)
    assert "there is no run yet: nexus-server plan new" in server.refused("report", run=None)
    for name in ("first", "second"):
        server.registry.create_run(make_plan(NAMES, name=name), np.zeros(4, np.float32), state="finished")
    assert server.refused("report", run="frist") == (
        "there is no run 'frist'; runs: second, first; did you mean 'first'?"
    )
    assert server.ask("report", run=None).name == "second"
    assert server.ask("report", run="first").name == "first"
