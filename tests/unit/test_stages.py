"""What a version may hold: the stages of a recipe, and vectors on their way from one to the next."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from nexus_common.adapter import DendriticAdapter, unpadded
from nexus_common.layout import MAX_DENDRITES, Layout
from nexus_common.stages import Stage, grown, moved, stages_of

SEED = (7).to_bytes(8, "little")
BOTH = ("projection", "salience")


@pytest.mark.parametrize("first", [Layout(), Layout(0, 0), Layout(1, 2)], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_every_stage_is_reached_from_one_before_it_and_has_its_own_hash(first: Layout, steps: int) -> None:
    stages = stages_of(first, steps, BOTH)
    singles, trials = [one for one in stages if not one.is_trial], [one for one in stages if one.is_trial]
    assert stages[0] == Stage((first,))
    assert len({stage.hash for stage in stages}) == len(stages)
    assert len(singles) == (steps + 1) * (steps + 2) // 2
    assert {arm for trial in trials for arm in trial.arms[1:]} == {single.arms[0] for single in singles[1:]}
    assert {trial.alone for trial in trials} <= set(singles)
    assert all(
        control.dim < arm.dim for trial in trials for control, arm in ((trial.arms[0], a) for a in trial.arms[1:])
    )


def test_a_trials_hash_names_all_of_its_arms_in_their_order() -> None:
    one, two, three = Layout(), Layout(1), Layout(0, 0)
    arms = [(one, two), (one, three), (one, two, three), (one, three, two), (two, one)]
    assert len({Stage(some).hash for some in arms}) == len(arms)
    assert Stage((one,)).hash == one.hash


def test_nothing_grows_without_candidates_or_beyond_the_limit() -> None:
    assert stages_of(Layout(), 3, ()) == (Stage((Layout(),)),)
    full = Layout(MAX_DENDRITES, MAX_DENDRITES)
    assert stages_of(full, 3, BOTH) == (Stage((full,)),)
    assert len(stages_of(Layout(MAX_DENDRITES - 1), MAX_DENDRITES, ("projection",))) == 3


@pytest.mark.parametrize("stage", stages_of(Layout(1, 0), 2, BOTH), ids=lambda stage: "+".join(map(str, stage.arms)))
def test_a_stages_vector_is_its_arms_one_behind_the_other(stage: Stage) -> None:
    vector = np.arange(stage.dim, dtype=np.float32)
    parts = stage.split(vector)
    assert [len(part) for part in parts] == [arm.dim for arm in stage.arms]
    np.testing.assert_array_equal(np.concatenate(parts), vector)
    np.testing.assert_array_equal(stage.control(vector), parts[0])


@pytest.mark.parametrize(
    ("old", "new"),
    [(Layout(), Layout(1)), (Layout(1), Layout(2)), (Layout(0, 0), Layout(0, 1)), (Layout(2), Layout(2, 0))],
    ids=str,
)
def test_growing_changes_no_output(old: Layout, new: Layout) -> None:
    rng = np.random.default_rng(3)
    before = old.first_vector(SEED) + rng.normal(0, 0.02, old.dim).astype("f4")
    after = grown(before, old, new, SEED)
    states, mask = torch.from_numpy(rng.normal(size=(5, 6, 384)).astype("f4")), torch.ones(5, 6)
    mask[2:, 4:] = 0
    pooled = torch.nn.functional.normalize((states * mask[..., None]).sum(1), dim=-1)

    def output(layout: Layout, vector: np.ndarray) -> np.ndarray:
        adapter = DendriticAdapter(layout).load_vector(vector)
        return (adapter(pooled) if layout.salience is None else adapter(*unpadded(states, mask))).detach().numpy()

    np.testing.assert_allclose(output(new, after), output(old, before), atol=2e-6)
    shared = old.split(before)
    assert all(np.array_equal(value, shared[name]) for name, value in new.split(after).items() if name in shared)


def test_a_newborn_dendrite_is_the_one_that_the_seed_fixes_wherever_it_is_born() -> None:
    old, new = Layout(1, 0), Layout(2, 0)
    named = new.split(grown(old.first_vector(b"another"), old, new, SEED))
    whole = new.split(new.first_vector(SEED))
    for name in ("projection.dendrites.1.weight", "projection.dendrites.1.bias"):
        np.testing.assert_array_equal(named[name], whole[name])
    assert not named["projection.tops.1"].any()
    assert not named["projection.links.0"].any()


def test_a_trial_begins_with_equal_arms_and_ends_with_one_of_them() -> None:
    stages = stages_of(Layout(0, 0), 1, BOTH)
    alone, trial = stages[0], stages[-1]
    vector = np.random.default_rng(1).normal(size=alone.dim).astype("f4")
    arms = moved(vector, alone, trial, SEED)
    for (layout, arm), single in zip(zip(trial.arms, trial.split(arms), strict=True), range(3), strict=True):
        np.testing.assert_array_equal(arm, grown(vector, Layout(0, 0), layout, SEED))
        np.testing.assert_array_equal(moved(arms, trial, stages[single], SEED), arm)
    assert moved(vector, alone, alone, SEED) is vector


def test_arms_are_called_by_what_they_have_more() -> None:
    assert stages_of(Layout(), 1, BOTH)[-1].names == ["control", "projection dendrite", "salience"]
    assert stages_of(Layout(1, 0), 1, BOTH)[-1].names == ["control", "projection dendrite", "salience dendrite"]
    assert all(one.names == ["control"] for one, _ in pairwise(stages_of(Layout(), 0, BOTH)))
