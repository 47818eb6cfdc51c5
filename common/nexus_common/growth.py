"""When dendrites are tried and which stay: the decisions, from what is reported of a run's versions.

A plateau of the hold-out loss begins a trial: from the same weights the control and each candidate train the same
rounds on the same batches.  What was reported of the last of them decides; a candidate that is not clearly better than
its own control goes (design: "Growth in a federation").  The same rules hold in a federation, from securely summed
reports, and at a site that trains alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nexus_common.recipe import Recipe
from nexus_common.stages import Stage


@dataclass(frozen=True)
class Point:
    """A version in a run's line: what was reported of each of its arms (names as in ``tail.py``), and by whom.

    ``trained`` is False for one that was laid beside another, or taken from sites after a restore.  Nothing is reported
    of the newest one yet.
    """

    number: int
    stage: int
    reports: tuple[Mapping[str, float], ...] = ()
    by: tuple[str, ...] = ()
    trained: bool = True


@dataclass(frozen=True)
class Trial:
    """A trial from version ``begin`` to before ``end``; ``winner`` is an arm, 0 the control, None while undecided.

    ``rounds`` are done of it, and ``scores`` are the newest that were reported of its arms.
    """

    stage: Stage
    begin: int
    end: int | None
    rounds: int
    scores: tuple[float | None, ...]
    winner: int | None


def next_stage(recipe: Recipe, line: Sequence[Point], left: int) -> int | None:
    """The stage of the version that is about to be made after the last of ``line``; None where nothing changes.

    ``left`` rounds of the run remain after it.
    """
    stages, growth, newest = recipe.stages, recipe.growth, line[-1]
    here, stage = _same(line), stages[newest.stage]
    if stage.is_trial:
        if sum(point.trained for point in here) <= growth.trial_rounds:
            return None
        return stages.index(Stage((stage.arms[_winner(stage, _scores(newest, stage), growth.min_gain)],)))
    if left <= growth.trial_rounds or not _plateau(here, growth.patience, growth.min_gain):
        return None
    if any(trial.winner == 0 for trial in trials(recipe, line)):
        return None
    return next((n for n, one in enumerate(stages) if one.is_trial and one.alone == stage), None)


def trials(recipe: Recipe, line: Sequence[Point]) -> list[Trial]:
    """The trials of a run, oldest first; one that a rollback ended is left out."""
    found, stages = list[Trial](), recipe.stages
    for at, point in enumerate(line):
        stage = stages[point.stage]
        if not stage.is_trial or (at and line[at - 1].stage == point.stage):
            continue
        arms = _same(line[at:], forwards=True)
        after = line[at + len(arms)] if at + len(arms) < len(line) else None
        if after is not None and (not after.trained or stages[after.stage].arms[0] not in stage.arms):
            continue  # no decision led there; or a site that was away does not know of it
        rounds = sum(one.trained for one in arms) - 1
        winner = None if after is None else stage.arms.index(stages[after.stage].arms[0])
        end = None if after is None else after.number
        told = [one for one in arms if one.reports]
        scores = _scores(told[-1], stage) if told else (None,) * len(stage.arms)
        found.append(Trial(stage, point.number, end, rounds, scores, winner))
    return found


def _same(line: Sequence[Point], *, forwards: bool = False) -> list[Point]:
    """The points at the line's end, or beginning, that are of one stage."""
    found = list[Point]()
    for point in line if forwards else reversed(line):
        if found and point.stage != found[0].stage:
            break
        found.append(point)
    return found if forwards else found[::-1]


def _plateau(here: Sequence[Point], patience: int, min_gain: float) -> bool:
    """Whether the last ``patience`` losses are no better than before; only reports of the same sites compare."""
    losses = [point.reports[0]["loss"] for point in here if _told(point, "loss") and point.by == here[-1].by]
    return len(losses) > patience and min(losses[-patience:]) > min(losses[:-patience]) - min_gain


def _told(point: Point, figure: str) -> bool:
    return bool(point.reports) and figure in point.reports[0]


def _scores(point: Point, stage: Stage) -> tuple[float | None, ...]:
    """One of each arm; of the last ones nothing may be reported."""
    told = [report.get("score") for report in point.reports]
    return (*told, *[None] * (len(stage.arms) - len(told)))


def _winner(stage: Stage, scores: Sequence[float | None], min_gain: float) -> int:
    """The control, unless a larger arm is clearly better; of several the best, unless a smaller one is about as good.

    Scores that are equal at the sites differ in the sum, by rounding.
    """
    best = 0
    for arm in sorted(range(1, len(scores)), key=lambda arm: stage.arms[arm].dim):
        score, bar = scores[arm], scores[best]
        if score is not None and bar is not None and score > bar + min_gain:
            best = arm
    return best
