"""Growth in a federation: trials in one masked vector and one cohort, through everything that may happen in one."""

from pathlib import Path

import numpy as np
import pytest
from nexus_common import flower as fl
from nexus_common import wire
from nexus_common.growth import Trial, trials
from nexus_common.layout import Layout
from nexus_common.plan import Plan
from nexus_common.rpc import Nothing
from nexus_common.versions import StoredAdapter
from nexus_server.admin_api import Rollback
from nexus_server.admin_models import ModelAdministration
from nexus_server.exchange import SMALL_TRIP_SECONDS, GridExchange
from nexus_server.lineage import line
from nexus_server.rebuild import adopt
from nexus_server.records import MADE, MIDPOINT, RUNNING, STOPPED, WITHDRAWN

from tests.federation.staged import FIVE, Site, Staged, die
from tests.federation.test_masked import POINTS
from tests.federation.test_rounds import plan_of

pytestmark = pytest.mark.usefixtures("narrow")
GROWTH = {"max_dendrites": 1, "patience": 2, "trial_rounds": 2, "min_gain": 0.01}
PLATEAU = 3  # rounds until one is seen
TRIAL = range(PLATEAU, PLATEAU + 3)  # versions of the trial


class Grower(Site):
    """A site on a plateau that finds with ``gains`` more or less better."""

    gains: tuple[float, float] = (0.1, 0.0)  # of a projection dendrite, of one in salience

    def report(self, layout: Layout, weights: np.ndarray) -> dict[str, float]:
        """Loss and score of an adapter; weights decide nothing."""
        projection, salience = self.gains
        gain = projection * layout.projection + salience * (layout.salience or 0)
        return self.figures | {"score": 0.5 + gain}


def growing(folder: Path, n: int = 3, gains: tuple[float, float] = (0.1, 0.0), **settings: object) -> Staged:
    plan = plan_of(FIVE[:n], **{"rounds": 8, "adapter": {"salience": True}, "growth": GROWTH, **settings})
    made = Staged(folder, plan, **{name.replace("-", "_"): Grower for name in plan.names})
    for site in made.sites.values():
        site.gains = gains  # type: ignore[attr-defined]
    return made


def stages(federation: Staged) -> list[int]:
    return [version.stage for version in federation.registry.versions("sim")]


def trials_of(federation: Staged) -> list[Trial]:
    run = federation.registry.run("sim")
    assert run is not None
    return trials(federation.plan, line(federation.registry, run))


@pytest.mark.parametrize(
    ("gains", "winner"),
    [
        ((0.1, 0.0), 1),
        ((0.0, 0.1), 2),
        ((0.1, 0.2), 2),
        ((0.1, 0.1), 2),
        ((0.0, 0.0), 0),
        ((0.009, 0.005), 0),
        ((-0.1, -0.1), 0),
    ],
)
def test_a_dendrite_stays_only_where_it_beat_its_own_control(
    tmp_path: Path, gains: tuple[float, float], winner: int
) -> None:
    federation = growing(tmp_path, gains=gains)
    federation.finish()
    singles, trial = federation.plan.stages[:-1], federation.plan.stages[-1]
    assert stages(federation) == [0] * PLATEAU + [len(singles)] * 3 + [winner] * 3
    (told,) = trials_of(federation)
    assert (told.begin, told.end, told.winner) == (TRIAL.start, TRIAL.stop, winner)
    assert told.scores == pytest.approx((0.5, 0.5 + gains[0], 0.5 + gains[1]), abs=1e-4)
    run = federation.registry.run("sim")
    assert run is not None
    layout = singles[winner].arms[0]
    assert run.form.arms == (layout,) == (trial.arms[winner],)
    lengths = [len(federation.registry.vector("sim", number)) for number in (0, TRIAL[0], 8)]
    assert lengths == [singles[0].dim, trial.dim, layout.dim]


def test_an_arm_is_trained_on_from_where_it_stood(tmp_path: Path) -> None:
    federation = growing(tmp_path)
    federation.finish()  # which checks every sum, and that each stage's first vector is moved from the last
    before, first = (federation.registry.vector("sim", number) for number in (TRIAL[0] - 1, TRIAL[0]))
    trial = federation.plan.stages[-1]
    control, *grown = trial.split(first)
    begins = before + np.mean([site.update(before) for site in federation.sites.values()], axis=0)
    np.testing.assert_allclose(control, begins, atol=1e-4)
    for layout, arm in zip(trial.arms[1:], grown, strict=True):
        named = layout.split(arm)
        np.testing.assert_array_equal(named["projection.weight"], trial.arms[0].split(control)["projection.weight"])


def test_a_trial_is_one_masked_vector_in_one_cohort_under_keys_of_its_own(tmp_path: Path) -> None:
    federation = growing(tmp_path)
    asked: list[tuple[str, str]] = []
    federation.grid.hook = lambda when, trip: asked.append((trip, when))
    federation.finish()
    trips = [trip for trip, when in asked if when == "before"]
    assert trips.count("train") == trips.count("round") == trips.count("open") == 8 + 1, "one of each a round"
    assert trips.count("setup") == 3, "for the adapter, for the trial, and for what has grown"
    slots = federation.registry.slots_asked
    epochs = {protocol.run: slots(protocol.hash) for protocol in federation.plan.protocol_plans}
    assert epochs == {"sim.0": 3, "sim.1": 3, "sim.2": 0, "sim.3": 3}
    assert all(site.sent == 9 for site in federation.sites.values()), "counted over all stages together"


def test_sites_use_the_control_until_a_trial_is_decided(tmp_path: Path) -> None:
    federation = growing(tmp_path)
    while federation.round < TRIAL.stop - 1:
        federation.turns(1)
    run = federation.registry.run("sim")
    assert run is not None
    federation.grid.kept = []
    federation.conductor.delivery.deliver(run, ["bank-a"])
    sent = wire.decode(fl.parcel_of(federation.grid.kept[0]))
    assert isinstance(sent, wire.Deliver)
    assert (sent.round, sent.stage) == (TRIAL.stop - 1, 0)
    whole = federation.registry.vector("sim", sent.round)
    assert sent.vector == wire.pack(federation.plan.stages[-1].control(whole))


@pytest.mark.parametrize("point", POINTS, ids=" ".join)
def test_a_server_that_dies_in_every_round_goes_on_with_the_trial(tmp_path: Path, point: tuple[str, str]) -> None:
    federation = growing(tmp_path)
    federation.once_a_round(point, die)
    federation.finish(40)
    assert stages(federation) == [0] * PLATEAU + [3] * 3 + [1] * 3
    assert [trial.winner for trial in trials_of(federation)] == [1]


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("trip", ["setup", "adverts", "train", "round", "commit-set", "open"])
def test_a_site_that_restarts_in_every_round_cannot_spoil_a_trial(tmp_path: Path, n: int, trip: str) -> None:
    federation = growing(tmp_path, n)
    federation.once_a_round(("before", trip), lambda: federation.restart("bank-b"))
    federation.finish(80)
    assert [trial.winner for trial in trials_of(federation)] == [1]
    made = [version for version in federation.registry.versions("sim") if version.state == MADE]
    assert [version.stage for version in made] == [0] * PLATEAU + [3] * 3 + [1] * 3


def test_a_drop_out_in_a_trial_leaves_its_arms_comparable(tmp_path: Path) -> None:
    federation = growing(tmp_path, 5)
    federation.grid.away = lambda trip: ["bank-c"] if trip == "round" and federation.round in TRIAL[1:] else []
    federation.finish()
    fewer = tuple(name for name in FIVE if name != "bank-c")
    cohorts = {version.number: version.cohort for version in federation.registry.versions("sim")}
    assert [cohorts[number] for number in range(TRIAL.start + 2, TRIAL.stop + 1)] == [fewer] * 2
    assert [trial.winner for trial in trials_of(federation)] == [1]


def test_where_no_site_reports_a_score_the_control_goes_on(tmp_path: Path) -> None:
    federation = growing(tmp_path)
    for site in federation.sites.values():
        site.report = lambda layout, weights: {"loss": 1.0}  # type: ignore[method-assign]
    federation.finish()
    assert [trial.winner for trial in trials_of(federation)] == [0]


def test_a_rollback_into_a_trial_ends_it_and_it_may_be_tried_again(tmp_path: Path) -> None:
    federation = growing(tmp_path, rounds=16)
    federation.turns(TRIAL.start + 1)
    assert stages(federation)[-1] == 3
    models = ModelAdministration(federation.registry, federation.conductor, federation.audit)
    models.rollback(Rollback(run=None, version=TRIAL.start))
    assert (stages(federation)[-1], federation.states[-1]) == (0, MIDPOINT)
    for _ in range(30):
        federation.turns(federation.state != "finished")
    assert [trial.winner for trial in trials_of(federation)] == [1]
    assert stages(federation)[-1] == 1


def test_a_run_that_began_at_the_control_of_a_trial_goes_with_it(tmp_path: Path) -> None:
    federation = growing(tmp_path, rounds=16)
    federation.turns(TRIAL.start + 1)
    registry, number = federation.registry, federation.round
    run = registry.run("sim")
    assert run is not None
    assert run.form.is_trial
    _, control = registry.adapter(run, number)
    registry.create_run(federation.plan.model_copy(update={"name": "later"}), control, state=STOPPED)
    registry.withdraw("sim", number, number)
    assert [version.state for version in registry.versions("later")] == [WITHDRAWN]
    assert registry.out_of_use(1) == [("later", 0)]


@pytest.mark.parametrize("to", [TRIAL.start - 1, TRIAL.start, TRIAL.stop - 1])
def test_going_back_again_to_the_same_version_goes_on_from_other_weights(tmp_path: Path, to: int) -> None:
    federation = growing(tmp_path, rounds=12)
    federation.turns(TRIAL.stop + 1)
    models = ModelAdministration(federation.registry, federation.conductor, federation.audit)
    laid = []
    for _ in range(3):
        models.rollback(Rollback(run=None, version=to))
        laid.append(federation.registry.vector("sim", federation.round))
        federation.turns(1)
        assert federation.states[-1] == MADE, "the sites have not opened these weights before"
    control = federation.plan.stages[0]
    assert {len(vector) for vector in laid} == {control.dim}
    assert len({vector.tobytes() for vector in laid}) == len(laid)
    near, after = (control.control(federation.registry.vector("sim", number)) for number in (to, to + 1))
    if to < TRIAL.stop - 1:
        np.testing.assert_array_equal(laid[0], np.mean([near, after], axis=0, dtype="f8").astype("f4"))


def test_a_rollback_to_before_a_trial_while_a_sum_is_opened_voids_that_round_alone(tmp_path: Path) -> None:
    """It may seem that a trial begins here, from weights of another form than the sum is of."""
    federation = growing(tmp_path, rounds=16)
    federation.turns(TRIAL.stop + 1)
    assert stages(federation)[-1] == 1
    models = ModelAdministration(federation.registry, federation.conductor, federation.audit)

    def roll_back(when: str, trip: str) -> None:
        if (when, trip) == ("after", "open") and federation.states[-1] == MADE:
            models.rollback(Rollback(run=None, version=TRIAL.start - 1))

    federation.grid.hook = roll_back
    federation.turns(1)
    federation.grid.hook = lambda when, trip: None
    assert (federation.states[-1], stages(federation)[-1]) == (MIDPOINT, 0)
    federation.turns(1)
    assert federation.states[-1] == MADE


@pytest.mark.parametrize("long", [None, 0, 1, 2])
def test_every_arm_may_be_as_long_as_the_clip_norm_and_none_longer(tmp_path: Path, long: int | None) -> None:
    federation = growing(tmp_path, local={"clip_norm": 6.0})
    federation.turns(PLATEAU + 1)
    assert stages(federation)[-1] == 3
    lengths = [layout.dim for layout in federation.plan.stages[-1].arms]

    def update(vector: np.ndarray) -> np.ndarray:
        norm = 6.1 if long is not None and len(vector) == lengths[long] else 5.999
        return np.full(len(vector), norm / len(vector) ** 0.5, np.float32)

    for site in federation.sites.values():
        site.update = update  # type: ignore[method-assign]
    federation.turns(1)
    assert federation.states[-1] == (MADE if long is None else MIDPOINT)


def test_an_arm_of_which_nothing_is_reported_is_shown_all_the_same(tmp_path: Path) -> None:
    federation = growing(tmp_path, aggregation={"slots": 4, "range": 1.0, "figures": ("loss", "score")})
    silent = federation.plan.stages[-1].arms[-1]
    for site in federation.sites.values():
        site.report = lambda layout, weights: {} if layout == silent else {"loss": 1.0, "score": 0.5}  # type: ignore[method-assign]
    federation.finish()
    assert [trial.scores[2] for trial in trials_of(federation)] == [None]
    models = ModelAdministration(federation.registry, federation.conductor, federation.audit)
    assert [len(version.arms) for version in models.models(Nothing()).versions] == [1] * PLATEAU + [3] * 3 + [1] * 3


def test_the_optimiser_begins_anew_with_each_stage(tmp_path: Path) -> None:
    federation = growing(tmp_path, server={"optimiser": "fedadam", "step": 0.001})
    shapes = list[set[tuple[int, ...]]]()
    for _ in range(8):
        federation.turns(1)
        run = federation.registry.run("sim")
        assert run is not None
        shapes.append({value.shape for value in federation.registry.optimiser_state(run).values()})
    first, grown, trial = (federation.plan.stages[stage].dim for stage in (0, 1, -1))
    anew = set[tuple[int, ...]]()
    assert shapes == [{(first,)}] * 2 + [anew] + [{(trial,)}] * 2 + [anew] + [{(grown,)}] * 2


def test_a_lost_server_goes_on_from_what_a_site_has_of_a_trial(tmp_path: Path) -> None:
    lost = growing(tmp_path / "lost", rounds=16)
    lost.turns(TRIAL.start + 1)
    run, plan = lost.registry.run("sim"), lost.plan
    assert run is not None
    had = {site.name: site.had for site in lost.sites.values()}
    for at in (lost.round - 1, lost.round):  # what a site trained on last, and what it has not seen yet
        _, control = lost.registry.adapter(run, at)
        adopt(tmp_path / f"from {at}", StoredAdapter(plan, at, control, plan.stages[0].arms[0]))
        again = Staged(tmp_path / f"from {at}", plan)
        again.sites = lost.sites
        again.grid = type(again.grid)(again.sites)
        for site in again.sites.values():
            site.memory.plans.clear()  # a test is too fast for epochs that are times
            site.had = had[site.name]
            site.restart()
        again.restart_server()
        assert (stages(again), again.registry.set_state("sim", RUNNING, expected=STOPPED)) == ([0], True)
        for _ in range(30):
            again.turns(again.state != "finished")
        assert [trial.winner for trial in trials_of(again)] == [1]
        assert (again.done, stages(again)[-1]) == (16, 1)


def test_a_trial_has_as_much_more_time_as_it_trains_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = growing(tmp_path)
    given, ask = {"train": list[float](), "round": list[float]()}, GridExchange.ask

    def noted(self: GridExchange, messages: dict[str, wire.Message], timeout: float) -> object:
        given.setdefault(wire.purpose(next(iter(messages.values()))), []).append(round(timeout))
        return ask(self, messages, timeout)

    monkeypatch.setattr(GridExchange, "ask", noted)
    federation.finish()
    for trip, one in (("train", federation.plan.round_deadline_seconds), ("round", SMALL_TRIP_SECONDS)):
        assert given[trip] == [one] * PLATEAU + [3 * one] * len(TRIAL) + [one] * 3


def test_a_plan_without_loss_or_score_has_one_stage() -> None:
    full = plan_of(FIVE, growth=GROWTH)
    assert len(full.stages) == 4
    for figures in (("loss",), ("score", "vote"), ()):
        plan: Plan = plan_of(FIVE, growth=GROWTH, aggregation={"slots": 4, "range": 1.0, "figures": figures})
        assert plan.stages == full.stages[:1]


def test_a_version_adopted_in_a_trial_after_a_restore_decides_nothing(tmp_path: Path) -> None:
    federation = growing(tmp_path)
    federation.turns(PLATEAU + 1)
    run = federation.registry.run("sim")
    assert run is not None
    assert run.form.is_trial
    (trial,) = trials_of(federation)
    control = run.form.control(federation.registry.vector("sim", run.round))
    assert federation.registry.adopt(run, run.round + 2, federation.plan.stages.index(run.form.alone), control)
    assert trials_of(federation) == [], "otherwise the control has won, and no dendrite is tried again"
    assert trial.winner is None
