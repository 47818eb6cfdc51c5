"""A server that has the same weights opened alone and in a trial, to subtract; or a trial of arms of its own choice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nexus_client import masking
from nexus_client.taken import check_newborn, check_stage
from nexus_common import wire
from nexus_common.errors import Refusal
from nexus_common.secagg.labels import label
from nexus_common.secagg.server import Server
from nexus_common.stages import moved
from nexus_common.versions import trained_from
from nexus_server.masked import ModelSpent

from tests.federation.staged import FIVE, Staged
from tests.federation.test_rounds import plan_of

pytestmark = pytest.mark.usefixtures("narrow")


def federation_of(folder: Path) -> Staged:
    return Staged(folder, plan_of(FIVE, rounds=20, adapter={"salience": False}, growth={"max_dendrites": 1}))


@pytest.mark.parametrize("kept", [True, False], ids=["shipped", "control"])
@pytest.mark.parametrize("first", ["alone", "in a trial"])
def test_weights_are_opened_once_alone_or_in_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool, first: str
) -> None:
    """Two sums of one model over cohorts that differ by a site are that site's update."""
    federation = federation_of(tmp_path)
    if not kept:
        monkeypatch.setattr(masking._ByWeights, "_names", lambda self, model: [model])
    plan, run, masked = federation.plan, federation.registry.run("sim"), federation.conductor.rounds.masked
    assert run is not None
    for site in federation.sites.values():
        site(wire.Prepare(plan.canonical))
    weights = federation.registry.vector("sim", 0)
    single, trial = plan.stages[0], len(plan.stages) - 1
    both = {0: weights, trial: moved(weights, single, plan.stages[trial], plan.adapter.seed_bytes)}

    def opened(stage: int, sites: tuple[str, ...]) -> np.ndarray:
        """The sum of the control's updates, as the server reads it."""
        now, form = replace(run, stage=stage, round=1), plan.stages[stage]
        holding = masked.set_up(now, sites)
        federation.conductor.exchange.ask(
            dict.fromkeys(sites, wire.TrainRound(plan.hash, 1, stage, 0, 0, wire.pack(both[stage]))), 5.0
        )
        masked.collect(now, wire.model_hash(form, wire.pack(both[stage])), holding)
        found = masked.open(now)
        assert found is not None
        return form.control(found.mean * len(sites))

    order = (0, trial) if first == "alone" else (trial, 0)
    whole = opened(order[0], FIVE)
    if kept:
        with pytest.raises(ModelSpent):
            opened(order[1], FIVE[:-1])
        assert set(masked.failures.values()) == {"refused: model-replay"}
        return
    read = whole - opened(order[1], FIVE[:-1])
    np.testing.assert_allclose(read, federation.sites[FIVE[-1]].update(weights), atol=1e-3)


def test_weights_count_as_opened_also_where_a_site_has_trained_on_others_before_their_sum_is_opened(
    tmp_path: Path,
) -> None:
    """A server that sends the next model between a round and its opening, so that sites would forget which it was."""
    federation = federation_of(tmp_path)
    plan, run, masked = federation.plan, federation.registry.run("sim"), federation.conductor.rounds.masked
    assert run is not None
    weights, trial = federation.registry.vector("sim", 0), len(plan.stages) - 1
    first = wire.TrainRound(plan.hash, 1, 0, 0, 0, wire.pack(weights))
    other = wire.TrainRound(plan.hash, 2, 0, 0, 0, wire.pack(weights + 1))
    both = wire.pack(moved(weights, plan.stages[0], plan.stages[trial], plan.adapter.seed_bytes))
    for site in federation.sites.values():
        site(wire.Prepare(plan.canonical))
    holding = masked.set_up(run, FIVE)

    def send(message: wire.TrainRound) -> None:
        federation.conductor.exchange.ask(dict.fromkeys(FIVE, message), 5.0)

    send(first)
    federation.grid.hook = lambda when, trip: send(other) if (when, trip) == ("after", "round") else None
    masked.collect(run, wire.model_hash(plan.stages[0], first.vector), holding)
    assert masked.open(run) is not None
    federation.grid.hook = lambda when, trip: None
    now = replace(run, stage=trial)
    holding = masked.set_up(now, FIVE)
    send(wire.TrainRound(plan.hash, 1, trial, 0, 0, both))
    with pytest.raises(ModelSpent):
        masked.collect(now, wire.model_hash(plan.stages[trial], both), holding)


def test_a_trial_begins_with_the_dendrite_that_the_plan_fixes() -> None:
    plan = plan_of(FIVE, growth={"max_dendrites": 1})
    single, trial = plan.stages[0], plan.stages[-1]
    honest = moved(single.arms[0].first_vector(b"any"), single, trial, plan.adapter.seed_bytes)
    check_newborn(plan, trial, honest)
    for name in ("projection.dendrites.0.weight", "projection.weight"):
        chosen = honest.copy()
        arm = trial.split(chosen)[1]
        trial.arms[1].split(arm)[name].ravel()[7] += 1
        with pytest.raises(Refusal, match="bad-version"):
            check_newborn(plan, trial, chosen)
    trained = honest.copy()
    trial.arms[1].split(trial.split(trained)[1])["projection.tops.0"][3] = 0.1
    trial.arms[1].split(trial.split(trained)[1])["projection.dendrites.0.weight"][3] += 0.1
    check_newborn(plan, trial, trained)


def test_a_stage_that_the_plan_does_not_have_or_a_trial_for_use_is_refused() -> None:
    plan = plan_of(FIVE, growth={"max_dendrites": 1})
    assert check_stage(plan, len(plan.stages) - 1).is_trial
    for number, alone in ((len(plan.stages), False), (len(plan.stages) - 1, True)):
        with pytest.raises(Refusal, match="wrong-context"):
            check_stage(plan, number, alone=alone)


def test_keys_for_another_stage_are_dealt_only_by_a_set_up_that_is_accepted(tmp_path: Path) -> None:
    """A refusal changes nothing: the epoch in progress goes on."""
    federation = federation_of(tmp_path)
    federation.turns(2)
    site, plan = federation.sites["bank-a"], federation.plan
    before = site.masking._part
    other = Server(plan.protocol_plan(len(plan.stages) - 1), 7)
    for setup in (other.start()[:-1], label("setup") + bytes(36)):
        with pytest.raises(Refusal, match=r"malformed|plan-not-approved"):
            site.say(wire.Ask(plan.hash, 2, b"", setup))
        assert site.masking._part is before
    site.say(wire.Ask(plan.hash, 2, b"", other.start()))
    assert site.masking._part is not before
    begins = trained_from(plan, 2, federation.registry.vector("sim", 2))
    assert begins.shape == (plan.stages[0].dim,)
    federation.turns(2)
    assert federation.done == 4, "the server deals anew"
