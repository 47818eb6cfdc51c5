"""A report as a page: one HTML file with figures, and below each figure a table with the same numbers.

Names, purposes and models are foreign text: all of it passes ``html.escape``, and none of it stands in an attribute.
"""

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from nexus_common.charts import draw
from nexus_common.cli import moment
from nexus_common.page import document
from nexus_common.report import ArmLine, Course, QualityLine, RefusalLine, Report, TrialLine, VersionLine
from nexus_common.training_graph import outcome, training_charts

_FEW_ROWS: Final = 30  # a longer table is closed until somebody opens it
_LONG: Final = 24  # characters of a line that may be broken


def as_html(report: Report) -> str:
    """The page."""
    parts = [f"<h1>{html.escape(report.title)}</h1>\n<p>{html.escape(report.purpose)}</p>\n", _facts(report)]
    for number, course in enumerate(report.courses, 1):
        parts += _course(course, f"c{number}")
    if report.quality:
        parts += ["<h2>Quality at this site</h2>\n", _table(*_quality(report.quality)), _text(report.quality_of)]
    parts += ["<h2>Refusals, and rounds that came to nothing</h2>\n"]
    parts += [_table(*_refusals(report.refusals)) if report.refusals else _text("None.")]
    parts += ["<h2>To know</h2>\n<ul>\n", *(f"<li>{html.escape(note)}</li>\n" for note in report.notes), "</ul>\n"]
    return document(report.title, f"<main>\n{''.join(parts)}</main>\n", STYLE)


def _text(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"


def _facts(report: Report) -> str:
    facts = [*report.facts, ("written", moment(report.made))]
    lines = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>\n" for name, value in facts)
    return f"<dl>\n{''.join(lines)}</dl>\n"


def _course(course: Course, name: str) -> Iterator[str]:
    """A training's figures, its trials and its versions."""
    yield f"<h2>{html.escape(course.title)}</h2>\n"
    yield _text(course.told)
    figures = [
        f"<figure>\n<figcaption><b>{html.escape(chart.title)}</b> {html.escape(chart.text)}</figcaption>\n"
        f"{draw(chart, f'{name}-{number}')}\n</figure>\n"
        for number, chart in enumerate(training_charts(course), 1)
    ]
    yield f'<div class="figures">\n{"".join(figures)}</div>\n' if figures else _text("Nothing was reported yet.")
    if course.trials:
        yield "<h3>Trials: whether a dendrite earns its place</h3>\n"
        yield _table(*_trials(course.trials))
    if course.versions:
        yield _folded(f"Versions {course.versions[0].number} to {course.versions[-1].number}", *_versions(course))
        if course.every > 1:
            yield _text(f"Of every {course.every} versions one is shown, and all at which something changed.")


def _trials(trials: Sequence[TrialLine]) -> tuple[list[str], Iterator[list[str]]]:
    def row(count: int, trial: TrialLine) -> list[str]:
        scores = zip(trial.arms, trial.scores, strict=True)
        told = ", ".join(f"{name} {'not told' if score is None else f'{100 * score:.2f}'}" for name, score in scores)
        when = f"{trial.begin} to {trial.end - 1}" if trial.end else f"from {trial.begin}"
        return [f"{count}", when, told, outcome(trial.winner, trial.arms)]

    head = ["trial", "versions", "newest score (x 100) of each arm", "outcome"]
    return head, (row(count, trial) for count, trial in enumerate(trials, 1))


def _quality(lines: Sequence[QualityLine]) -> tuple[list[str], Iterator[list[str]]]:
    head = ["model", "measure (x 100)", "mean", "95 % interval", "questions", "against base"]
    return head, (line.cells for line in lines)


def _refusals(lines: Sequence[RefusalLine]) -> tuple[list[str], Iterator[list[str]]]:
    head = ["who", "what", "which means", "times", "first", "last"]
    rows = (
        [line.who, line.what, line.meaning, str(line.times), moment(line.first), moment(line.last)] for line in lines
    )
    return head, rows


def _versions(course: Course) -> tuple[list[str], Iterator[list[str]]]:
    """Only the columns in which something stands; values of a trial's arms one below the other, the control first."""
    columns: list[tuple[str, Callable[[VersionLine], str]]] = [
        ("version", lambda one: str(one.number)),
        ("adapter", lambda one: "\n".join(arm.name for arm in one.arms) if len(one.arms) > 1 else ""),
        ("dendrites", lambda one: "\n".join(str(arm.dendrites) for arm in one.arms)),
        ("loss in training", lambda one: _told(one.arms, "train_loss", "{:.3f}")),
        ("loss held out", lambda one: _told(one.arms, "loss", "{:.3f}")),
        ("score (x 100)", lambda one: _told(one.arms, "score", "{:.2f}", factor=100)),
        ("questions", lambda one: _told(one.arms[:1], "questions", "{:.4g}")),
        ("votes", lambda one: _told(one.arms, "vote", "{:+.0f}").replace("+0", "0")),
        ("state", lambda one: "" if one.state == "made" else one.state),
        ("cohort", lambda one: _cohort(one.cohort, course.roster)),
        ("seconds", lambda one: "" if one.seconds is None else f"{one.seconds:.2f}"),
        ("MB received", lambda one: "" if one.bytes_up is None else f"{one.bytes_up / 1e6:.2f}"),
        ("made", lambda one: moment(one.created) if one.created else ""),
    ]
    filled = [(name, cells) for name, cell in columns if any(cells := [cell(one) for one in course.versions])]
    return [name for name, _ in filled], (list(row) for row in zip(*(cells for _, cells in filled), strict=True))


def _cohort(cohort: Sequence[str], roster: Sequence[str]) -> str:
    away = [site for site in roster if site not in cohort]
    return f"{len(cohort)}, without {', '.join(away)}" if cohort and away else f"{len(cohort)}, all" if cohort else ""


def _told(arms: Sequence[ArmLine], figure: str, form: str, *, factor: float = 1) -> str:
    """A figure of each arm, a line each; empty where none has it."""
    lines = [form.format(factor * arm.figures[figure]) if figure in arm.figures else "" for arm in arms]
    return "\n".join(lines) if any(lines) else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Within a box that scrolls where a screen is narrow."""
    names = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return f'<div class="table"><table>\n<thead><tr>{names}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>\n'


def _cell(text: str) -> str:
    """One that stays on its lines where they are short."""
    long = max(map(len, text.split("\n"))) > _LONG
    return f"<td{' class=long' if long else ''}>{html.escape(text)}</td>"


def _folded(name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that is closed where it is long."""
    found = list(rows)
    is_open = " open" if len(found) <= _FEW_ROWS else ""
    return f"<details{is_open}><summary>{html.escape(name)}</summary>\n{_table(head, found)}</details>\n"


STYLE: Final = """
:root { --one: #1d5fa6; --two: #b45309; --three: #19734a }
@media screen and (prefers-color-scheme: dark) { :root { --one: #7fb4ee; --two: #f5a65b; --three: #6fcf9b } }
h3 { font-size: 1em; margin: 1.2em 0 .3em; break-after: avoid }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .7em 1.5em; margin: 1em 0 }
dt { color: var(--soft); font-size: .85em }
dd { margin: 0 }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.2em 1.8em;
  margin: 1em 0 }
figure { margin: 0; break-inside: avoid; display: flex; flex-direction: column; justify-content: space-between }
figcaption { font-size: .92em; line-height: 1.35; margin-bottom: .4em; color: var(--soft) }
figcaption b { display: block; color: var(--ink) }
svg { display: block; width: 100%; height: auto; font-family: inherit; stroke-linejoin: round }
.table { overflow-x: auto }
.table table { margin: 0 }
details table { font-size: .8em }
details th, details td { padding-right: .7em }
th { vertical-align: bottom; overflow-wrap: normal }
td { white-space: pre; font-variant-numeric: tabular-nums }
td.long { white-space: pre-line; min-width: 14em }
summary { cursor: pointer; margin: .8em 0 .3em }
@media print {
  .figures { grid-template-columns: 1fr 1fr }
  .table { overflow: visible }
  table { font-size: .85em }
}
"""
