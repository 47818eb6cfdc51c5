"""A report's page: readable in light and dark, on a phone and on paper, and of bounded size."""

import base64
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from nexus_common.growth import Point
from nexus_common.page import STYLE
from nexus_common.recipe import Recipe
from nexus_common.report import (
    MOST_VERSIONS,
    Course,
    QualityLine,
    RefusalLine,
    Report,
    VersionLine,
    arm_lines,
    thinned,
    trial_lines,
)
from nexus_common.report_page import STYLE as OWN_STYLE
from nexus_common.report_page import as_html
from nexus_common.stages import Stage
from nexus_common.training_graph import training_charts
from PIL import Image

from tests.chromium import CHROMIUM, Browser

pytestmark = pytest.mark.filterwarnings("error")  # matplotlib warns of a figure that has no room
RECIPE = Recipe.model_validate({"growth": {"max_dendrites": 2}})
STAGES = RECIPE.stages
ROSTER = ("bank-a", "hospital-a", "hospital-b", "hospital-c")
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, Scheme] = ("light", "dark")


def stage_of(number: int) -> int:
    """A trial of versions 9 to 12 that the projection dendrite wins, and one of 20 to 23 that nothing wins."""
    trials = [n for n, stage in enumerate(STAGES) if stage.is_trial]
    won = STAGES.index(Stage((STAGES[trials[0]].arms[1],)))
    again = next(n for n in trials if STAGES[n].alone == STAGES[won])
    return trials[0] if 9 <= number <= 12 else again if 20 <= number <= 23 else won if number > 12 else 0


def course(rounds: int) -> Course:
    """A training with both kinds of trial and two versions out of use."""
    versions, line = list[VersionLine](), list[Point]()
    for number in range(rounds + 1):
        form = STAGES[stage_of(number)]
        told = [
            {
                "train_loss": 0.3 + 1.8 * 2 ** (-number / 7) - arm / 50,
                "loss": 0.9 + 2.1 * 2 ** (-number / 6) - arm / 40,
                "score": 0.55
                - 0.14 * 2 ** (-number / 6)
                + (0, 6e-3, 3e-3)[arm] * (number - 9 if number < 20 else 20 - number),
                "questions": 42.0,
                "vote": 3.0,
            }
            for arm in range(len(form.arms))
        ]
        cohort = ROSTER[: 3 if number % 7 == 5 else 4] if number else ()
        versions.append(
            VersionLine(
                number=number,
                state="rolled back" if number in (16, 17) else "made",
                cohort=cohort,
                created=1.8e9 + 60 * number,
                seconds=1 + math.sin(number) / 4 if cohort else None,
                bytes_up=465_412 * len(cohort) if cohort else None,
                arms=arm_lines(form, told),
            )
        )
        line.append(Point(number, stage_of(number), tuple(told)))
    shown, every = thinned(versions)
    facts = {"roster": ROSTER, "quorum": 3, "every": every}
    trials = tuple(trial_lines(RECIPE, line))
    return Course(title="Training", told="Means over cohorts.", versions=shown, trials=trials, **facts)


def report(rounds: int = 30) -> Report:
    """Everything that can stand on a page, with words as long as names may be."""
    quality = QualityLine(model="base", metric="nDCG@10", mean=0.402, low=0.32, high=0.49, questions=84)
    refusal = RefusalLine(
        who="hospital-" + "b" * 50, what="refused: paused", meaning="x" * 90, times=3, first=1, last=2
    )
    return Report(
        name="demo",
        title="Run demo",
        purpose="better search in the own patient leaflets, staff notes and handbooks",
        made=1.8e9,
        facts=(("state", "finished, 30 of 30 rounds done"), ("sites", ", ".join(ROSTER)), ("plan", "0f" * 32)),
        courses=(course(rounds),),
        quality=(quality, quality.model_copy(update={"model": "federated", "against_base": "better (+10.7)"})),
        quality_of="On the part of the hold-out that is only there to judge by.",
        refusals=(refusal,),
        notes=("Keep it in the consortium.",),
    )


def colours(style: str, scheme: Scheme) -> dict[str, str]:
    """The variables that hold in a scheme; what ``html`` itself is painted with is ``page``."""
    dark = "".join(re.findall(r"@media screen and \(prefers-color-scheme: dark\) \{(.*?\}\s*)\}", style, re.DOTALL))
    light = re.sub(r"@media screen and \(prefers-color-scheme: dark\) \{.*?\}\s*\}", "", style, flags=re.DOTALL)
    found = {"page": "#ffffff"} | dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", dark))
        found |= {"page": re.findall(r"html \{ background: (#[0-9a-f]{6})", dark)[0]}
    return found


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's ratio of two colours, 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_and_lines_stand_out_in_both_schemes(scheme: Scheme) -> None:
    found = colours(STYLE + OWN_STYLE, scheme)
    for ground in ("page", "tint"):  # figures shade trials with the second
        for text in ("ink", "soft"):
            assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
        for line in ("one", "two", "three"):
            assert contrast(found[line], found[ground]) >= 3, (line, ground)


def test_a_thousand_rounds_take_seconds_and_less_than_two_megabytes() -> None:
    began = time.monotonic()
    page = as_html(report(1000))
    assert len(page.encode()) < 2_000_000
    assert time.monotonic() - began < 30, "about a second where nothing else runs"
    assert page.count("<tr>") > 1000


def test_of_very_many_versions_the_ends_and_all_changes_are_shown() -> None:
    arms = arm_lines(STAGES[0], [])
    many = [
        VersionLine(number=n, arms=arms, state="rolled back" if 7001 <= n < 7004 else "made") for n in range(20_001)
    ]
    shown, every = thinned(many)
    numbers = [one.number for one in shown]
    assert every == 11
    assert {0, 20_000, 7000, 7001, 7003, 7004} <= {*numbers}
    assert MOST_VERSIONS / 2 < len(numbers) <= MOST_VERSIONS
    assert thinned(many[:MOST_VERSIONS]) == (tuple(many[:MOST_VERSIONS]), 1)
    assert thinned([]) == ((), 0)


def test_what_won_a_trial_goes_on_and_what_lost_ends() -> None:
    loss, score, *_ = training_charts(course(30))
    main, projection, *_ = score.lines
    assert [x for x, y in zip(projection.xs, projection.ys, strict=True) if not math.isnan(y)] == [
        *range(9, 13),
        *range(20, 24),
    ]
    at = [n for n, x in enumerate(main.xs) if x == 12]
    control, winner, _ = (100 * arm.figures["score"] for arm in course(30).versions[12].arms)
    assert [main.ys[n] for n in at] == pytest.approx([control, math.nan, winner], nan_ok=True), (
        "it goes on from what won"
    )
    assert [x for x in main.xs if x in (16, 17)] == [], "what was rolled back is no part of it"
    assert len([x for x in main.xs if x == 23]) == 1, "the control goes on after the second trial"
    assert [(span.begin, span.end, span.sign) for span in loss.spans] == [(9, 13, True), (20, 24, False)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(as_html(report()), encoding="utf-8")
    return path


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
BOXES = (
    "[...document.querySelectorAll('{}')].map(e => e.getBoundingClientRect()).map(b => [b.left, b.right, b.width, "
    "b.height])"
)


@needs_chromium
@pytest.mark.parametrize("width", [1000, 400, 320])
def test_nothing_is_wider_than_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    shown = browser.value("document.documentElement.clientWidth")
    assert browser.value("document.documentElement.scrollWidth") <= shown
    boxes = browser.value(BOXES.format("svg"))
    assert len(boxes) == 4
    for left, right, wide, high in boxes:
        assert 0 <= left < right <= shown
        assert (wide > 270, high > 160) == (True, True)
    texts = browser.value(BOXES.format("svg text"))
    assert min(high for _, _, _, high in texts) >= (8 if width < 400 else 9), "letters on a phone, in CSS pixels"
    frames = browser.value(
        "[...document.querySelectorAll('svg')].every(s => { const f = s.getBoundingClientRect();"
        " return [...s.querySelectorAll('text')].every(t => { const b = t.getBoundingClientRect();"
        " return b.left >= f.left - 1 && b.right <= f.right + 1 && b.top >= f.top - 1 && b.bottom <= f.bottom + 1 }) })"
    )
    assert frames, "no letter stands out of its figure"


@needs_chromium
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_figures_are_seen_in_the_colours_of_the_scheme(
    browser: Browser, page: Path, tmp_path: Path, scheme: Scheme
) -> None:
    browser.open(page, 1000, scheme)
    wanted = colours(STYLE + OWN_STYLE, scheme)
    shot = Image.open(browser.picture(tmp_path / "page.png")).convert("RGB")
    (left, right, _, high), *_ = browser.value(BOXES.format("svg"))
    top = browser.value("document.querySelector('svg').getBoundingClientRect().top + scrollY")
    figure = shot.crop((int(left), int(top), int(right), int(top + high)))
    counted = {f"#{r:02x}{g:02x}{b:02x}": count for count, (r, g, b) in figure.getcolors(1 << 24) or ()}

    def near(colour: str) -> int:
        """Pixels that are nearly of a colour: edges are mixed with the ground."""
        return sum(
            count
            for found, count in counted.items()
            if max(abs(int(found[at : at + 2], 16) - int(colour[at : at + 2], 16)) for at in (1, 3, 5)) < 48
        )

    assert max(counted, key=lambda colour: counted[colour]) == wanted["page"]
    assert counted[wanted["tint"]] > 2000, "trials are shaded"
    for line in ("one", "two", "three"):
        assert near(wanted[line]) > 20, f"{line} is drawn"
    assert near(wanted["ink"]) > 100, "a trial that was won, and letters"


@needs_chromium
def test_a_page_that_would_run_a_script_or_load_a_picture_cannot(browser: Browser, page: Path, tmp_path: Path) -> None:
    other = tmp_path / "changed.html"
    script = "<script>document.title = 'taken over'</script><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"
    other.write_text(page.read_text().replace("</main>", script + "</main>"))
    browser.open(other, 400)
    assert browser.value("document.title") == "Run demo"
    assert browser.value("document.images[0].naturalWidth") == 0


@needs_chromium
def test_it_prints_within_the_width_of_a_sheet(browser: Browser, page: Path) -> None:
    browser.open(page, 1000)
    printed = base64.b64decode(browser.ask("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 3
    browser.ask("Emulation.setEmulatedMedia", media="print")
    browser.ask("Emulation.setDeviceMetricsOverride", width=673, height=900, deviceScaleFactor=1, mobile=False)
    assert browser.value("document.documentElement.scrollWidth") <= 673, "178 mm of an A4 sheet"
    browser.ask("Emulation.setEmulatedMedia", media="")
