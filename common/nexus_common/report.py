"""What a report is made of: the course of a training, quality, refusals.  Data alone, the same at server and site.

Whoever fills it decides what may stand in it: the server means over cohorts, a site its own figures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from nexus_common.growth import Point, trials
from nexus_common.recipe import Recipe
from nexus_common.rpc import Body
from nexus_common.stages import Stage

MOST_VERSIONS: Final = 2000  # of one course: what a page and an answer of the socket can hold
KEPT: Final = ("made", "midpoint")  # states of versions that the training goes on from


class ArmLine(Body):
    """What a version holds: one adapter, of a trial several; ``figures`` were reported of it by who received it."""

    name: str
    dendrites: int
    parameters: int
    figures: dict[str, float]


class VersionLine(Body):
    """One version; ``cohort`` are the sites in it, where that is known, and ``seconds`` its round took."""

    number: int
    state: str = KEPT[0]
    cohort: tuple[str, ...] = ()
    created: float | None = None
    seconds: float | None = None
    bytes_up: int | None = None
    arms: tuple[ArmLine, ...]


class TrialLine(Body):
    """A trial of versions ``begin`` to before ``end``: its arms' names, their newest scores, and which of them won.

    ``end`` and ``winner`` are None while it goes on.
    """

    begin: int
    end: int | None = None
    rounds: int
    of: int
    arms: tuple[str, ...]
    scores: tuple[float | None, ...]
    winner: str | None


class Course(Body):
    """A training; ``told`` says whose figures these are, and of ``every`` versions one is there."""

    title: str
    told: str
    versions: tuple[VersionLine, ...]
    trials: tuple[TrialLine, ...]
    roster: tuple[str, ...] = ()
    quorum: int = 0
    every: int = 1


class QualityLine(Body):
    """One model's figure on the judging part, with its 95 % interval."""

    model: str
    metric: str
    mean: float
    low: float
    high: float
    questions: int
    against_base: str | None = None

    @property
    def cells(self) -> list[str]:
        """How tables show it."""
        interval = f"{100 * self.low:.1f} to {100 * self.high:.1f}"
        mean, against = f"{100 * self.mean:.1f}", self.against_base or ""
        return [self.model, self.metric, mean, interval, str(self.questions), against]


class RefusalLine(Body):
    """What was refused or came to nothing, by whom, how often, and the times of the first and the last (Unix)."""

    who: str
    what: str
    meaning: str
    times: int
    first: float
    last: float


class Report(Body):
    """All of a page.  ``name`` is of the run or site, ``facts`` are names with values, ``notes`` what to know."""

    name: str
    title: str
    purpose: str = ""
    made: float
    facts: tuple[tuple[str, str], ...]
    courses: tuple[Course, ...]
    quality: tuple[QualityLine, ...] = ()
    quality_of: str = ""
    refusals: tuple[RefusalLine, ...] = ()
    notes: tuple[str, ...] = ()


def arm_lines(form: Stage, told: Sequence[Mapping[str, float]]) -> tuple[ArmLine, ...]:
    """Each arm of a version with what was reported of it, which may be nothing."""
    figures = [*map(dict, told), *({} for _ in form.arms[len(told) :])]
    return tuple(
        ArmLine(name=name, dendrites=layout.dendrites, parameters=layout.dim, figures=found)
        for name, layout, found in zip(form.names, form.arms, figures, strict=True)
    )


def trial_lines(recipe: Recipe, line: Sequence[Point]) -> Iterator[TrialLine]:
    """The trials of a training, oldest first."""
    for trial in trials(recipe, line):
        names = trial.stage.names
        yield TrialLine(
            begin=trial.begin,
            end=trial.end,
            rounds=trial.rounds,
            of=recipe.growth.trial_rounds + 1,
            arms=tuple(names),
            scores=trial.scores,
            winner=None if trial.winner is None else names[trial.winner],
        )


def thinned(versions: Sequence[VersionLine]) -> tuple[tuple[VersionLine, ...], int]:
    """Few enough of a course's versions, both ends and all changes of form or state, and of how many one is there."""
    every, kinds = -(-len(versions) // MOST_VERSIONS), [(len(one.arms), one.state) for one in versions]
    edges = {at for at, (one, other) in enumerate(pairwise(kinds)) if one != other}
    shown = {*range(0, len(versions), every or 1), *edges, *(at + 1 for at in edges), len(versions) - 1}
    return tuple(version for at, version in enumerate(versions) if at in shown), every


class Refusals:
    """Counts of equal refusals."""

    def __init__(self, meaning: Callable[[str], str]) -> None:
        self._meaning, self._found = meaning, dict[tuple[str, str], RefusalLine]()

    def add(self, who: str, what: str, at: float) -> None:
        """One more."""
        known = self._found.get((who, what))
        if known is None:
            known = RefusalLine(who=who, what=what, meaning=self._meaning(what), times=0, first=at, last=at)
        self._found[who, what] = known.model_copy(update={"times": known.times + 1, "last": at})

    @property
    def lines(self) -> tuple[RefusalLine, ...]:
        """All, the newest first."""
        return tuple(sorted(self._found.values(), key=lambda line: -line.last))
