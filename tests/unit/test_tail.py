"""The tail of a masked vector: figures as coordinates, and what a cohort's mean of them says."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.tail import SCALE, Figure, Reported, decode, encode, width

ALL: tuple[Figure, ...] = ("loss", "score", "questions", "vote")
FIGURES = st.sampled_from([order for count in range(5) for order in permutations(ALL, count)])
LIMITS = st.sampled_from([0.1, 1.0, 7.5])
FOUND = st.fixed_dictionaries(
    {},
    optional={
        "loss": st.floats(0, 16),
        "score": st.floats(-1, 1),
        "questions": st.integers(0, 4096).map(float),
        "vote": st.sampled_from([-1.0, 0.0, 1.0]),
    },
)
COHORTS = st.lists(FOUND, min_size=1, max_size=64)


def mean_of(figures: tuple[Figure, ...], cohort: list[dict[str, float]], limit: float) -> np.ndarray:
    return np.mean([encode(figures, found, limit) for found in cohort], axis=0)


@given(FIGURES, COHORTS, LIMITS)
def test_a_cohorts_mean_tells_each_figures_mean_over_the_sites_that_have_it(
    figures: tuple[Figure, ...], cohort: list[dict[str, float]], limit: float
) -> None:
    reported = decode(figures, mean_of(figures, cohort, limit), limit, len(cohort))
    for figure in figures:
        values = [found[figure] for found in cohort if figure in found]
        if figure == "vote":
            assert reported["vote"] == Reported(sum(values), len(cohort))
        elif values:
            assert reported[figure].sites == len(values)
            assert reported[figure].value == pytest.approx(np.mean(values), abs=1e-9 * SCALE[figure] * len(cohort))
        else:
            assert figure not in reported
    assert reported.keys() <= set(figures)


@given(FIGURES, st.dictionaries(st.sampled_from(ALL), st.floats(allow_nan=False)), LIMITS)
def test_every_coordinate_is_within_the_limit_whatever_was_found(
    figures: tuple[Figure, ...], found: dict[str, float], limit: float
) -> None:
    coordinates = encode(figures, found, limit)
    assert coordinates.shape == (width(figures),)
    assert coordinates.dtype == np.float64
    assert (np.abs(coordinates) <= limit).all()


@given(COHORTS, st.integers(0, 2**32))
def test_the_codecs_rounding_changes_no_count_and_a_figure_by_little(cohort: list[dict[str, float]], seed: int) -> None:
    step = 0.1 / (2**17 - 1)
    noise = np.random.default_rng(seed).uniform(-step, step, width(ALL))
    exact = mean_of(ALL, cohort, 0.1)
    before, after = decode(ALL, exact, 0.1, len(cohort)), decode(ALL, exact + noise, 0.1, len(cohort))
    assert before.keys() == after.keys()
    for figure, one in before.items():
        assert after[figure].sites == one.sites
        assert after[figure].value == pytest.approx(one.value, abs=SCALE.get(figure, 0) * 1e-5 * len(cohort))


@pytest.mark.parametrize(
    "figure, value, coordinates",
    [
        ("loss", 8.0, [0.5, 1.0]),
        ("loss", 1e9, [1.0, 1.0]),
        ("loss", float("inf"), [1.0, 1.0]),
        ("loss", -1e9, [-1.0, 1.0]),
        ("score", 0.0, [0.0, 1.0]),
        ("score", 1.5, [1.0, 1.0]),
        ("questions", 5000.0, [1.0, 1.0]),
        ("vote", 0.3, [1.0]),
        ("vote", -40.0, [-1.0]),
        ("vote", 0.0, [0.0]),
    ],
)
def test_a_figure_is_cut_off_at_its_scale_and_a_vote_counts_once(
    figure: Figure, value: float, coordinates: list[float]
) -> None:
    np.testing.assert_array_equal(encode([figure], {figure: value}, 0.5), 0.5 * np.array(coordinates))


def test_an_absent_figure_is_told_from_one_that_is_zero() -> None:
    found = [{"loss": 0.0}, {}, {"loss": 4.0}]
    assert decode(["loss"], mean_of(("loss",), found, 0.1), 0.1, 3)["loss"] == Reported(pytest.approx(2.0), 2)
    assert decode(["loss"], mean_of(("loss",), [{}, {}, {}], 0.1), 0.1, 3) == {}


def test_whoever_does_not_vote_abstains() -> None:
    votes = [{"vote": 1.0}, {"vote": 1.0}, {"vote": -1.0}, {}]
    assert decode(["vote"], mean_of(("vote",), votes, 1.0), 1.0, 4) == {"vote": Reported(1.0, 4)}


@pytest.mark.parametrize("presence", [-3.0, -1.0, 0.0, 0.4, 3.6, 4.0, 100.0])
def test_a_presence_that_no_cohort_of_three_has_is_no_figure(presence: float) -> None:
    mean = np.array([1.5, presence, 2.0]) / 3
    assert decode(["score", "vote"], mean, 1.0, 3) == {"vote": Reported(2.0, 3)}


def test_no_figures_take_no_coordinates() -> None:
    assert (width([]), encode([], {"loss": 1.0}, 0.1).size, decode([], np.empty(0), 0.1, 5)) == (0, 0, {})


def test_a_figure_that_is_not_a_number_is_absent() -> None:
    np.testing.assert_array_equal(encode(["loss"], {"loss": float("nan")}, 1.0), [0.0, 0.0])
