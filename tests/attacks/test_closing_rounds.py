"""A server that tells some sites of a closing round and others of training, or has one model opened in both kinds."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nexus_common import wire
from nexus_common.versions import trained_from
from nexus_server.exchange import GridExchange
from nexus_server.masked import ModelSpent

from tests.federation.staged import FIVE, Staged
from tests.federation.test_rounds import plan_of

pytestmark = pytest.mark.usefixtures("narrow")
VICTIM = "bank-b"
HONEST_HASH, HONEST_ASK = wire.model_hash, GridExchange.ask


def federation_of(folder: Path) -> Staged:
    return Staged(folder, plan_of(FIVE, rounds=2, adapter={"salience": False}))


def lie(monkeypatch: pytest.MonkeyPatch, closes: Callable[[str], bool]) -> None:
    """A server that says ``close`` to sites as it likes."""

    def ask(self: GridExchange, messages: dict[str, wire.Message], timeout: float) -> object:
        told = {
            site: dataclasses.replace(message, close=int(closes(site)))
            if isinstance(message, wire.TrainRound)
            else message
            for site, message in messages.items()
        }
        return HONEST_ASK(self, told, timeout)

    monkeypatch.setattr(GridExchange, "ask", ask)


@pytest.mark.parametrize("named", [True, False], ids=["shipped", "control"])
def test_zeros_of_all_others_do_not_lay_one_update_bare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    federation = federation_of(tmp_path)
    lie(monkeypatch, lambda site: site != VICTIM)
    if not named:  # the model's name does not say that the round is a closing one
        monkeypatch.setattr(wire, "model_hash", lambda layout, vector, close=False: HONEST_HASH(layout, vector))
    federation.turns(1)
    assert bool(federation.cohorts) != named
    if named:
        assert not any(site.opened for site in federation.sites.values())
        return
    before, after = (federation.registry.vector("sim", number) for number in (0, 1))
    begins = trained_from(federation.plan, 0, before)
    read = (after - begins).astype(np.float64) * len(FIVE)
    np.testing.assert_allclose(read, federation.sites[VICTIM].update(begins), atol=1e-4)


@pytest.mark.parametrize("kept", [True, False], ids=["shipped", "control"])
def test_a_model_opened_in_a_round_is_not_opened_in_a_closing_round_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    federation = federation_of(tmp_path)
    federation.turns(1)
    assert federation.cohorts == [FIVE]
    if not kept:
        for site in federation.sites.values():
            monkeypatch.setattr(site.memory, "opened", set())
            site.memory.under(federation.plan, *federation.plan.protocol_plans)
    run, layout = federation.registry.run("sim"), federation.plan.adapter.layout
    first = federation.registry.vector("sim", 0)
    closing = wire.TrainRound(federation.plan.hash, 0, 0, 0, 1, wire.pack(first))
    federation.conductor.exchange.ask(dict.fromkeys(FIVE, closing), 5.0)
    model = wire.model_hash(layout, wire.pack(trained_from(federation.plan, 0, first)), close=True)
    masked = federation.conductor.rounds.masked
    if kept:
        with pytest.raises(ModelSpent):
            masked.collect(run, model, FIVE)
        assert set(masked.failures.values()) == {"refused: model-replay"}
        return
    masked.collect(run, model, FIVE)
    assert masked.open(run) is not None
