"""The rule by which a site takes a model: never what is shown to be worse, not only what is sure to be better."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nexus_client.acceptance import RARE_LOSS, RISK, THE_BASE, compare, decide
from nexus_client.evaluate import FEWEST_TO_TELL, Floats, resampled_means, spearman, spearman_rows

MAX_LOSS = 0.02
scores = st.integers(FEWEST_TO_TELL, 80).flatmap(lambda n: arrays(np.float64, (2, n), elements=st.floats(0, 1)))


def noisy(gain: float, rows: int, spread: float = 0.3) -> tuple[Floats, Floats]:
    """Scores of two models whose differences have exactly this mean and deviation."""
    drawn = np.random.default_rng(rows).normal(size=rows)
    drawn = (drawn - drawn.mean()) / drawn.std()
    return gain + spread * drawn, np.zeros(rows)


@given(scores)
def test_what_is_shown_to_be_worse_is_never_taken(both: Floats) -> None:
    low, high = np.quantile(resampled_means(np.sort(both[0] - both[1])), [0.025, 0.975])
    found = compare(both[0], both[1], max_loss=1.0)
    assert (found.verdict == "worse") == (high < 0)
    assert not (found.accepted and high < 0)
    assert (found.low, found.high) == pytest.approx((low, high))


@given(scores, st.floats(0, 0.5))
def test_what_is_taken_has_small_odds_of_a_loss_beyond_the_bound(both: Floats, max_loss: float) -> None:
    if compare(both[0], both[1], max_loss).accepted:
        lost = resampled_means(np.sort(both[0] - both[1])) < -max_loss - 1e-9
        assert lost.mean() <= RISK + 1e-3


@given(scores, st.floats(0.001, 0.5), st.floats(0, 0.5), st.randoms(use_true_random=False))
def test_a_better_model_and_a_wider_bound_are_never_a_reason_to_refuse_and_order_is_none(
    both: Floats, more: float, max_loss: float, order
) -> None:
    model, other = both
    found = compare(model, other, max_loss)
    rows = list(range(len(model)))
    order.shuffle(rows)
    assert compare(model[rows], other[rows], max_loss) == found
    if found.accepted:
        assert compare(model + more, other, max_loss).accepted
        assert compare(model, other, max_loss + more).accepted


@given(scores)
def test_the_same_scores_are_no_loss(both: Floats) -> None:
    found = compare(both[0], both[0], max_loss=0.0)
    assert (found.verdict, found.vote, found.gain) == ("not worse", 0.0, 0.0)


@pytest.mark.parametrize(
    ("gain", "rows", "spread", "verdict"),
    [
        (0.08, 40, 0.3, "not worse"),  # 8 points on 40 questions: the interval reaches below 0, and it is taken
        (0.08, 40, 0.45, "not worse"),
        (0.12, 40, 0.3, "better"),
        (0.0, 40, 0.3, "cannot tell"),
        (-0.01, 40, 0.3, "cannot tell"),
        (-0.01, 2000, 0.1, "worse"),  # by less than max_loss, but shown
        (-0.002, 2000, 0.1, "not worse"),
        (-0.12, 40, 0.3, "worse"),
        (-0.5, 9, 0.0, "cannot tell"),
        (0.5, 9, 0.0, "cannot tell"),
    ],
)
def test_verdicts(gain: float, rows: int, spread: float, verdict: str) -> None:
    assert compare(*noisy(gain, rows, spread), MAX_LOSS).verdict == verdict


@pytest.mark.parametrize(
    ("gain", "rows", "picked_of", "verdict"),
    [
        (0.0, 56, 1, "cannot tell"),  # a twentieth of all questions may lose half their score, and none of 56 shows it
        (0.0, 57, 1, "not worse"),
        (0.0, 57, 5, "cannot tell"),
        (0.0, 96, 5, "not worse"),
        (0.08, 20, 1, "better"),
        (0.08, 20, 5, "better"),
        (0.02, 20, 1, "cannot tell"),
        (-0.1, 20, 1, "worse"),
    ],
)
def test_room_is_left_for_losses_that_so_few_rows_would_not_have_shown(
    gain: float, rows: int, picked_of: int, verdict: str
) -> None:
    found = compare(np.full(rows, gain), np.zeros(rows), MAX_LOSS, RARE_LOSS, picked_of)
    assert found.verdict == verdict
    assert found.accepted == (found.enough <= rows and gain >= 0)


def test_the_room_is_left_against_the_base_model_alone() -> None:
    same = np.zeros(30)
    assert decide(same, {"winter-3": same}, MAX_LOSS).accepted
    assert not decide(same, {THE_BASE: same, "winter-3": same}, MAX_LOSS).accepted


def test_votes_are_given_where_something_is_shown() -> None:
    assert [compare(*noisy(gain, 40), MAX_LOSS).vote for gain in (-0.12, 0.0, 0.08, 0.12)] == [-1, 0, 0, 1]


def test_how_many_questions_would_tell() -> None:
    small = compare(*noisy(0.05, 40), MAX_LOSS)
    assert small.enough == pytest.approx((1.96 * 0.3 / 0.05) ** 2, abs=1)
    assert compare(*noisy(0.05, small.enough + 5), MAX_LOSS).verdict == "better"
    assert compare(*noisy(0.0, 40), MAX_LOSS).enough == pytest.approx((1.96 * 0.3 / MAX_LOSS) ** 2, abs=1)


def test_the_one_that_speaks_against_a_model_most_is_the_reason() -> None:
    model, base = noisy(0.12, 40)
    taken = decide(model, {"the base model": base, "winter-3": model}, MAX_LOSS)
    assert (taken.accepted, taken.reason[:24]) == (True, "not worse than winter-3 ")
    refused = decide(model, {"the base model": base, "winter-3": model + 0.2}, MAX_LOSS)
    assert (refused.accepted, refused.reason[:20]) == (False, "worse than winter-3 ")
    nothing = decide(np.empty(0), {"the base model": np.empty(0)}, MAX_LOSS)
    assert (nothing.accepted, nothing.reason) == (False, "cannot tell against the base model: no question to choose by")
    few = decide(model[:4], {"the base model": base[:4]}, MAX_LOSS)
    assert "4 questions: it takes 10 or more" in few.reason
    unsure = decide(*({"the base model": found} if i else found for i, found in enumerate(noisy(0.0, 40))), MAX_LOSS)
    assert "cannot tell against the base model, 40 questions: about 865 would tell" in unsure.reason


@given(st.integers(2, 60).flatmap(lambda n: arrays(np.float64, (2, n), elements=st.integers(0, 9))))
def test_the_rows_of_a_rank_correlation_have_it_as_their_mean(both: Floats) -> None:
    assert spearman_rows(*both).mean() == pytest.approx(spearman(*both).mean, abs=1e-9)


def test_their_spread_is_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=400)
    second = first + 0.7 * rng.normal(size=400)
    found = spearman(first, second)
    rows = resampled_means(spearman_rows(first, second))
    assert np.quantile(rows, [0.025, 0.975]) == pytest.approx((found.low, found.high), abs=0.015)
