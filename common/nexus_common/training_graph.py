"""The figures of a training: loss and score of each version and of each arm of its trials, cohorts, seconds.

What goes on is one line; while a trial lasts the control goes on in it, and each candidate has a line of its own that
begins where they are still the same.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from statistics import median
from typing import Final, Literal

from nexus_common.charts import Chart, Colour, Line, Span
from nexus_common.report import KEPT, Course, VersionLine

_GAP: Final = math.nan
_COLOURS: Final[dict[bool, tuple[Colour, Literal["s", "^"]]]] = {False: ("two", "s"), True: ("three", "^")}
"""How candidates look, by whether they are salience."""


def training_charts(course: Course) -> Iterator[Chart]:
    """The figures that there is something to show in."""
    if not course.versions:
        return
    spans, (first, last) = tuple(_spans(course)), _ends(course)
    loss = [*_lines(course, "loss", "held out"), *_lines(course, "train_loss", "in training", dashes=":")]
    if loss:
        yield Chart("Loss", _change(course, "loss", 1), first, last, tuple(loss), spans)
    if score := list(_lines(course, "score", "score", factor=100)):
        begin = _value(course.versions[0], 0, "score", 100)
        levels = () if first or math.isnan(begin) else (("version 0", begin),)
        yield Chart("Score", _change(course, "score", 100), first, last, tuple(score), spans, levels)
    if made := [version for version in course.versions if version.cohort]:
        yield _cohorts(course, made)
    if timed := [(version.number, version.seconds) for version in made if version.seconds is not None]:
        numbers, seconds = zip(*timed, strict=True)
        text = f"Rounds took {min(seconds):.1f} to {max(seconds):.1f} s, half of them up to {median(seconds):.1f} s."
        line = Line("seconds", numbers, seconds, "one")
        yield Chart("Seconds of a round", text, first, last, (line,), spans, from_zero=True)


def outcome(winner: str | None, arms: tuple[str, ...]) -> str:
    """How a trial ended, in a word or two."""
    return "goes on" if winner is None else "none stays" if winner == arms[0] else f"{winner} stays"


def _cohorts(course: Course, made: list[VersionLine]) -> Chart:
    sizes = [len(version.cohort) for version in made]
    several = f"Between {min(sizes)} and {max(sizes)} sites" if min(sizes) < max(sizes) else f"{sizes[0]} sites"
    needed, roster = course.quorum, len(course.roster)
    levels = (("needed", needed), ("in the plan", roster)) if needed < roster else (("needed: all", roster),)
    line = Line("sites in the sum", [version.number for version in made], sizes, "one", dot="", steps=len(sizes) > 1)
    text = f"{several} were in the sum that made a version; {needed} of the plan's {roster} are needed."
    return Chart("Cohorts", text, *_ends(course), (line,), (), levels, from_zero=True, whole=True)


def _ends(course: Course) -> tuple[int, int]:
    return course.versions[0].number, course.versions[-1].number


def _spans(course: Course) -> Iterator[Span]:
    """Trials, the undecided one up to the newest version."""
    for count, trial in enumerate(course.trials, 1):
        stays = trial.winner not in (None, trial.arms[0])
        label = f"trial {count}: " + ("goes on" if trial.winner is None else "stays" if stays else "none")
        yield Span(label, trial.begin, trial.end or course.versions[-1].number, sign=stays)


def _change(course: Course, figure: str, factor: int) -> str:
    """From which value to which it went, on the line that goes on."""
    found = [(one.number, value) for one in _kept(course) if not math.isnan(value := _value(one, 0, figure, factor))]
    if not found:
        return f"No {figure} was reported."
    (first, begin), (last, end) = found[0], found[-1]
    digits = 3 if factor == 1 else 1
    return (
        f"{figure.capitalize()} on what is held out: {begin:.{digits}f} at version {first}, "
        f"{end:.{digits}f} at version {last}."
    )


def _kept(course: Course) -> list[VersionLine]:
    return [version for version in course.versions if version.state in KEPT]


def _value(version: VersionLine, arm: int, figure: str, factor: float) -> float:
    return factor * version.arms[arm].figures.get(figure, _GAP)


def _lines(
    course: Course, figure: str, name: str, *, factor: float = 1, dashes: Literal["-", ":"] = "-"
) -> Iterator[Line]:
    """What goes on, then candidates, then what is out of use; only those that have a value."""
    main, candidates = list[tuple[int, float]](), defaultdict[str, list[tuple[int, float]]](list)
    kept = _kept(course)
    for version, after in zip_longest(kept, kept[1:]):
        main.append((version.number, _value(version, 0, figure, factor)))
        for arm in range(1, len(version.arms)):
            points = candidates[version.arms[arm].name]
            points.append((version.number, value := _value(version, arm, figure, factor)))
            if after and len(after.arms) == 1:  # the trial ends here
                points.append((version.number, _GAP))
                if after.arms[0].parameters == version.arms[arm].parameters:  # and this is what goes on
                    main += [(version.number, _GAP), (version.number, value)]
    yield from _line(name, main, "one", "o", dashes)
    for arm_name, points in candidates.items():
        yield from _line("" if dashes == ":" else arm_name, points, *_COLOURS["salience" in arm_name], dashes)
    if dashes == "-":
        gone = [(one.number, _value(one, 0, figure, factor)) for one in course.versions if one.state not in KEPT]
        yield from _line("out of use", gone, "soft", "x", "")


def _line(
    name: str,
    points: list[tuple[int, float]],
    colour: Colour,
    dot: Literal["o", "s", "^", "x"],
    dashes: Literal["-", ":", ""],
) -> Iterator[Line]:
    if not all(math.isnan(y) for _, y in points):
        xs, ys = zip(*points, strict=True)
        yield Line(name, xs, ys, colour, dashes, "" if dashes == ":" else dot)
