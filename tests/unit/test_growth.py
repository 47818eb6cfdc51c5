"""When dendrites are tried and which stay, from reports alone."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.config import validate
from nexus_common.errors import NexusError
from nexus_common.growth import Point, next_stage, trials
from nexus_common.recipe import Recipe

COHORT = ("a", "b", "c")
MANY = 1000  # rounds left


def recipe(**growth: Any) -> Recipe:
    return Recipe.model_validate({"growth": {"patience": 3, "trial_rounds": 2, "min_gain": 0.01, **growth}})


ONE = recipe()
TRIAL = len(ONE.stages) - 1
PROJECTION, SALIENCE = 1, 2  # stages of a single arm, and arms of the trial


def line(*losses: float, stage: int = 0, by: tuple[str, ...] = COHORT) -> list[Point]:
    return [Point(n, stage, ({"loss": loss, "score": 0.5},), by) for n, loss in enumerate(losses)]


def trial(*scores: Sequence[float | None], start: int = 9, stage: int = TRIAL) -> list[Point]:
    """The points of a trial, one for each list of its arms' scores."""
    return [
        Point(start + n, stage, tuple({"loss": 1.0} | ({} if s is None else {"score": s}) for s in arms), COHORT)
        for n, arms in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("losses", "begins"),
    [
        ([1.0, 0.9, 0.8, 0.7, 0.6], False),  # it falls
        ([1.0, 1.0, 1.0], False),  # not for long enough
        ([1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 1.0, 0.995, 0.993], True),  # less than min_gain
        ([1.0, 1.0, 0.98, 1.0], False),  # one of the last three was clearly better
        ([1.0, 0.5, 0.8, 0.7, 0.6], True),  # and never again as good as it was
    ],
)
def test_a_plateau_begins_a_trial(losses: list[float], begins: bool) -> None:
    assert next_stage(ONE, line(*losses), MANY) == (TRIAL if begins else None)


def test_reports_of_other_cohorts_do_not_compare() -> None:
    """A site that is away changes the mean, and that is no plateau."""
    fewer = line(1.5, 1.5, by=("a", "b"))
    assert next_stage(ONE, [*line(1.0, 1.0), *fewer], MANY) is None
    assert next_stage(ONE, [*line(1.0, 1.0), *fewer, *line(1.0, 1.0)], MANY) == TRIAL


def test_a_trial_begins_only_where_it_can_be_decided() -> None:
    """Its last round is there for what is reported of the arms."""
    assert next_stage(ONE, line(1, 1, 1, 1), 3) == TRIAL
    assert next_stage(ONE, line(1, 1, 1, 1), 2) is None


def test_without_reports_or_candidates_nothing_grows() -> None:
    assert next_stage(ONE, [Point(n, 0, (), COHORT) for n in range(9)], MANY) is None
    assert next_stage(recipe(max_dendrites=0), line(1, 1, 1, 1), MANY) is None
    assert next_stage(recipe(candidates=()), line(1, 1, 1, 1), MANY) is None


@pytest.mark.parametrize(
    ("scores", "goes_on"),
    [
        ([0.5, 0.6, 0.5], PROJECTION),
        ([0.5, 0.5, 0.6], SALIENCE),
        ([0.5, 0.6, 0.7], SALIENCE),
        ([0.5, 0.7, 0.7], SALIENCE),  # of equal ones the smaller
        ([0.5, 0.70001, 0.7], SALIENCE),  # which is within the rounding of the sum
        ([0.5, 0.7, 0.69], SALIENCE),
        ([0.5, 0.7, 0.68], PROJECTION),
        ([0.5, 0.515, 0.509], PROJECTION),  # the smaller one is no better than the control
        ([0.5, 0.5, 0.5], 0),
        ([0.5, 0.505, 0.509], 0),  # not clearly better
        ([0.5, 0.4, 0.3], 0),
        ([None, 0.6, 0.6], 0),  # nothing to compare with
        ([0.5, None, 0.6], SALIENCE),
        ([0.5, None, None], 0),
    ],
)
def test_the_last_reported_scores_decide_a_trial(scores: list[float | None], goes_on: int) -> None:
    before, other = line(1, 1, 1, 1), [0.5, 0.9, 0.1]
    assert next_stage(ONE, [*before, *trial(other, other)], MANY) is None, "two rounds are to be trained first"
    assert next_stage(ONE, [*before, *trial(other, other, scores)], MANY) == goes_on


def test_a_version_laid_beside_another_is_no_round_of_a_trial() -> None:
    points = [*line(1, 1, 1, 1), *trial([0.5] * 3, [0.5] * 3)]
    laid = Point(11, TRIAL, (), (), trained=False)
    assert next_stage(ONE, [*points, laid], MANY) is None
    assert next_stage(ONE, [*points, laid, *trial([0.5, 0.9, 0.5], start=12)], MANY) == PROJECTION


def test_after_a_lost_trial_none_is_tried_again_and_after_a_won_one_the_next_may_be() -> None:
    two = recipe(max_dendrites=2)
    first = next(n for n, stage in enumerate(two.stages) if stage.is_trial)
    decided = [*line(1, 1, 1, 1), *trial([0.5] * 3, [0.5] * 3, [0.5, 0.9, 0.5], stage=first)]
    lost = [*decided, *(Point(n, 0, ({"loss": 1.0},), COHORT) for n in range(20, 30))]
    assert next_stage(two, lost, MANY) is None
    won = [*decided, *(Point(n, PROJECTION, ({"loss": 1.0},), COHORT) for n in range(20, 30))]
    second = next_stage(two, won, MANY)
    assert second is not None
    assert two.stages[second].alone == two.stages[PROJECTION]
    won = [Point(p.number, TRIAL if p.stage == first else p.stage, p.reports, p.by) for p in won]
    assert next_stage(ONE, won, MANY) is None, "no more than max_dendrites"


def test_trials_are_told_with_their_outcome() -> None:
    decided = [*line(1, 1, 1, 1), *trial([0.5] * 3, [0.5] * 3, [0.5, 0.9, 0.4])]
    (open_one,) = trials(ONE, decided)
    assert (open_one.begin, open_one.end, open_one.rounds, open_one.winner) == (9, None, 2, None)
    (won,) = trials(ONE, [*decided, Point(12, PROJECTION, trained=True)])
    assert (won.end, won.winner, won.scores) == (12, PROJECTION, (0.5, 0.9, 0.4))
    cut_short = [*line(1, 1, 1, 1), *trial([0.5] * 3), Point(12, 0, trained=False)]
    assert trials(ONE, cut_short) == [], "by a rollback into it, after which it may be tried again"
    at_its_end = [*line(1, 1, 1, 1), *trial([0.5] * 3, [0.5] * 3, [0.5, 0.9, 0.4]), Point(13, 0, trained=False)]
    assert trials(ONE, at_its_end) == [], "its decision was rolled back, so it has none"
    again = [*at_its_end, *(Point(n, 0, ({"loss": 1.0},), COHORT) for n in range(14, 20))]
    assert next_stage(ONE, again, MANY) == TRIAL


POINTS = st.builds(
    lambda loss, score, by: ({"loss": loss, "score": score}, by),
    st.floats(0, 16),
    st.floats(0, 1),
    st.sampled_from([COHORT, COHORT[:2]]),
)


@given(st.lists(POINTS, min_size=1, max_size=60), st.integers(0, 3))
def test_a_run_never_leaves_its_plans_stages_and_grows_at_most_as_often_as_allowed(
    reports: list[tuple[dict[str, float], tuple[str, ...]]], most: int
) -> None:
    plan, found, stage = recipe(max_dendrites=most), list[Point](), 0
    for number, (report, by) in enumerate(reports):
        arms = len(plan.stages[stage].arms)
        found.append(Point(number, stage, tuple({**report, "score": report["score"] * arm} for arm in range(arms)), by))
        after = next_stage(plan, found, len(reports) - number - 1)
        if after is not None:
            old, new = plan.stages[stage], plan.stages[after]
            assert new.alone == old if new.is_trial else new.arms[0] in old.arms
            stage = after
    decided = trials(plan, found)
    assert sum(bool(one.winner) for one in decided) <= most
    assert sum(one.winner == 0 for one in decided) <= 1
    assert len(plan.stages[stage].arms) == 1 or len(reports) > len(found) - 1


@pytest.mark.parametrize(
    "growth", [{"candidates": ["projection", "projection"]}, {"min_gain": 0}, {"patience": 0}, {"candidates": ["axon"]}]
)
def test_what_cannot_be_meant_is_refused(growth: dict[str, Any]) -> None:
    with pytest.raises(NexusError, match=r"growth"):
        validate(Recipe, {"growth": growth}, "plan.toml")
