"""A server restored from a backup that is rounds behind its sites: what a quorum of them holds is gone on with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from nexus_common import audit, wire
from nexus_common.errors import NexusError, Refusal
from nexus_common.holdings import Holding, pack_holdings, unpack_holdings
from nexus_common.versions import vector_hash
from nexus_server import conductor, next_version
from nexus_server.admin_api import Rollback, Withdrawal
from nexus_server.admin_models import ModelAdministration
from nexus_server.approvals import unheard_origin
from nexus_server.exchange import Failure
from nexus_server.planning import check_proposal
from nexus_server.recalls import Recalls
from nexus_server.records import FINISHED, MADE, MIDPOINT, RUNNING, STOPPED
from nexus_server.registry import Registry

from tests.federation.sim import SimSite
from tests.federation.staged import Once
from tests.federation.test_rounds import Federation, plan_of
from tests.plans import enrol

NAMES = ("bank-a", "bank-b", "hospital-a", "hospital-b")  # a quorum is three of them
BACKUP, LATER = 2, 5


class Lying(SimSite):
    """A site that says it had versions that never were, and gives other numbers than asked for."""

    def recall(self, message: wire.Recall) -> wire.Message:
        if message.wanted:
            return wire.Given(bytes(len(self.kept[message.wanted.hex()])))
        return wire.Holds(
            pack_holdings([*self.had[:-1], Holding(self.had[-1].round, 0, "ee" * 32), Holding(9, 0, "ff" * 32)])
        )


def restored(tmp_path: Path, *, liar: str | None = None, rounds: int = 8) -> Federation:
    """A federation whose server is back at version 2, and whose sites were at version 4 or 5."""
    plan = plan_of(NAMES, rounds=rounds)
    lost = Federation(tmp_path / "server", plan)
    if liar:
        lost.sites[liar] = lost.grid.handle[lost.grid.nodes[liar]] = Lying(liar, plan)
    for site in lost.sites.values():
        site.records.opened = Once()  # type: ignore[union-attr]  fails where a model is opened twice
    lost.turns(BACKUP)
    lost.registry.close()
    shutil.copytree(tmp_path / "server", tmp_path / "backup")
    again = reopened(lost)
    again.turns(LATER - BACKUP)
    assert again.round == LATER
    again.registry.close()
    shutil.rmtree(tmp_path / "server")
    shutil.copytree(tmp_path / "backup", tmp_path / "server")
    state = Registry(tmp_path / "server")
    state.note_restored()
    with state.transaction() as db:
        db.execute("UPDATE epochs SET last = last + 60")  # as if a minute had passed: epochs are numbered by seconds
    state.close()
    return reopened(lost)


def reopened(old: Federation) -> Federation:
    """A new server process on the same folder, with the same sites."""
    made = Federation(old.folder, old.plan)
    made.sites, made.grid = old.sites, old.grid
    made.conductor = made.new_conductor()
    return made


def lines(federation: Federation, event: str) -> list[dict[str, object]]:
    return [line for line in audit.read(federation.audit.path) if line["event"] == event]


def versions(federation: Federation) -> dict[int, str]:
    return {one.number: one.state for one in federation.registry.versions("sim")}


def test_a_run_goes_on_from_the_newest_version_that_its_sites_hold(tmp_path: Path) -> None:
    federation = restored(tmp_path)
    newest = federation.sites["bank-a"].had[-1]
    assert newest.round == LATER - 1, "version 5 was made, and had not left the lost server"
    federation.turns(1)
    assert federation.round == newest.round
    assert vector_hash(wire.pack(federation.registry.vector("sim", newest.round))) == newest.digest
    (line,) = lines(federation, "version adopted")
    assert (line["version"], line["restored"], line["sha256"]) == (newest.round, BACKUP, newest.digest)
    assert line["sites"] == list(NAMES)
    federation.turns(12)
    assert federation.state == FINISHED
    made = [number for number, state in versions(federation).items() if state == MADE]
    assert versions(federation)[LATER] == MIDPOINT, "the sum of version 4 was opened before: it is gone around"
    assert made == [0, 1, 2, 4, 6, 7, 8, 9], "eight rounds: two, two that are known by their last version, four more"
    assert all(site.received[-1] == 9 for site in federation.sites.values())


def test_one_site_that_lies_chooses_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    federation = restored(tmp_path, liar="bank-a")  # asked first for the bytes, too
    federation.turns(1)
    (line,) = lines(federation, "version adopted")
    assert (line["version"], line["sites"]) == (LATER - 1, list(NAMES[1:]))
    federation.turns(12)
    assert federation.state == FINISHED


def test_a_site_that_lies_about_the_bytes_is_passed_over(tmp_path: Path) -> None:
    federation = restored(tmp_path, liar="bank-a")
    liar = federation.sites["bank-a"]
    liar.recall = lambda message: (  # type: ignore[method-assign]
        wire.Given(bytes(64)) if message.wanted else SimSite.recall(liar, message)
    )
    federation.turns(1)
    assert federation.round == LATER - 1
    np.testing.assert_array_equal(
        wire.pack(federation.registry.vector("sim", federation.round)),
        federation.sites["bank-b"].kept[federation.sites["bank-b"].had[-1].digest],
    )


def test_with_sites_at_different_versions_the_newest_that_a_quorum_had_counts(tmp_path: Path) -> None:
    federation = restored(tmp_path)
    for name in ("bank-a", "bank-b"):
        federation.sites[name].had.pop()
    federation.turns(1)
    assert federation.round == LATER - 2


def test_with_too_few_holders_it_goes_on_from_the_backups_version_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation = restored(tmp_path)
    for name in ("bank-a", "bank-b"):
        federation.sites[name].had = federation.sites[name].had[: BACKUP + 1]
    federation.turns(1)
    assert federation.round == BACKUP
    assert "goes on from version 2, as restored: no newer one is held by 3 sites" in caplog.text
    (line,) = lines(federation, "recalled")
    assert line["newest"] == ["bank-a: 2", "bank-b: 2", "hospital-a: 4", "hospital-b: 4"]
    federation.turns(14)
    assert federation.state == FINISHED, "no model was opened twice on the way"


@pytest.mark.parametrize("away", [False, True], ids=["nobody has it", "who has it is gone"])
def test_a_version_that_nobody_can_give_is_passed_over_for_the_one_before(tmp_path: Path, away: bool) -> None:
    federation = restored(tmp_path)
    newest = federation.sites["bank-a"].had[-1]
    for site in federation.sites.values():
        if not (away and site.name == "bank-a"):
            del site.kept[newest.digest]
    federation.conductor.recall._ask(federation.plan)
    federation.grid.silent = {"bank-a"} if away else set()
    federation.turns(1)
    assert federation.round == newest.round - 1


@pytest.mark.parametrize("comes", [True, False], ids=["it comes", "it is revoked"])
def test_a_site_that_is_away_is_waited_for_where_it_could_make_a_quorum_for_a_newer_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    federation = restored(tmp_path)
    federation.sites["bank-a"].had.pop()  # it was behind, and bank-b is away: two of four name the newest
    federation.grid.silent = {"bank-b"}
    federation.turns(2)
    assert (federation.round, federation.conductor.phase.missing) == (BACKUP, ("bank-b",))
    if comes:
        federation.grid.silent = set()
    else:
        enrolled = {name: site.identity for name, site in federation.sites.items() if name != "bank-b"}
        monkeypatch.setattr(federation.conductor.recall, "identities", lambda: enrolled)
    federation.turns(1)
    assert federation.round == (LATER - 1 if comes else LATER - 2)


def test_sites_that_were_away_for_long_still_agree_on_a_version() -> None:
    held = [Holding(number, 0, f"{number:064x}") for number in range(100)]
    assert set(unpack_holdings(pack_holdings(held[:80]))) <= set(unpack_holdings(pack_holdings(held)))


def test_a_holder_that_falls_silent_when_it_is_asked_holds_up_nothing(tmp_path: Path) -> None:
    federation = restored(tmp_path)
    newest = federation.sites["bank-a"].had[-1].digest
    for name in ("bank-b", "hospital-a", "hospital-b"):
        del federation.sites[name].kept[newest]
    ask = federation.conductor.recall.exchange.ask

    def silent(messages: dict[str, wire.Message], seconds: float) -> dict[str, wire.Message | Failure]:
        wanted = [one.wanted for one in messages.values() if isinstance(one, wire.Recall)]
        stuck = "bank-a" in messages and any(wanted)
        return {"bank-a": Failure("the deadline passed")} if stuck else ask(messages, seconds)

    federation.conductor.recall.exchange.ask = silent  # type: ignore[method-assign]
    federation.turns(1)
    assert federation.round == LATER - 2


def test_what_there_is_no_room_for_is_neither_fetched_nor_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = restored(tmp_path)
    monkeypatch.setattr(next_version, "LEAST_FREE_BYTES", 1 << 60)
    with pytest.raises(NexusError, match="are needed; free some space"):
        federation.turns(1)
    assert not lines(federation, "version adopted")
    monkeypatch.undo()
    federation.turns(1)
    assert federation.round == LATER - 1


def test_a_restored_server_sends_nothing_before_a_quorum_was_heard(tmp_path: Path) -> None:
    federation = restored(tmp_path)
    federation.grid.silent = {"bank-a", "bank-b"}
    before = [len(site.had) for site in federation.sites.values()]
    federation.turns(3)
    assert (federation.round, federation.conductor.phase.name) == (BACKUP, "recalling")
    assert federation.conductor.phase.missing == ("bank-a", "bank-b")
    assert before == [len(site.had) for site in federation.sites.values()]
    federation.grid.silent = set()
    federation.turns(1)
    assert federation.round == LATER - 1


def test_a_run_that_rests_is_recalled_before_its_version_is_delivered(tmp_path: Path) -> None:
    federation = restored(tmp_path)
    federation.registry.set_state("sim", STOPPED, expected=RUNNING)
    federation.turns(1)
    assert (federation.state, federation.round) == (STOPPED, LATER - 1)
    assert all(site.received == [] for site in federation.sites.values())
    federation.turns(1)
    assert all(site.received == [LATER - 1] for site in federation.sites.values())


def test_between_runs_the_server_says_that_it_waits_for_the_sites_of_the_last_one(tmp_path: Path) -> None:
    federation = restored(tmp_path)
    federation.registry.set_state("sim", STOPPED, expected=RUNNING)
    federation.grid.silent = {"bank-a", "bank-b"}
    federation.turns(2)
    assert (federation.conductor.phase.name, federation.conductor.phase.missing) == ("recalling", ("bank-a", "bank-b"))


@pytest.mark.parametrize("state", [RUNNING, STOPPED])
@pytest.mark.parametrize("change", [Rollback(run=None, version=1), Withdrawal(run=None, first=1, last=BACKUP)], ids=str)
def test_a_persons_word_ends_the_asking_and_reaches_the_sites_where_no_quorum_is_there(
    tmp_path: Path, change: Rollback | Withdrawal, state: str
) -> None:
    federation = restored(tmp_path)
    federation.registry.set_state("sim", state, expected=RUNNING)
    federation.grid.silent = {"bank-a", "bank-b"}
    federation.turns(2)
    gone = federation.sites["hospital-a"].had[-1].digest
    models = ModelAdministration(federation.registry, federation.conductor, federation.audit)
    models.rollback(change) if isinstance(change, Rollback) else models.withdraw(change)
    federation.turns(3)
    assert [one.round for one in federation.sites["hospital-a"].had] == (
        [0, 1] if isinstance(change, Rollback) else [0]
    )
    assert gone not in {one.digest for one in federation.sites["hospital-a"].had}
    federation.grid.silent = set()
    federation.turns(3)
    assert not lines(federation, "version adopted")


@pytest.mark.parametrize("change", [Rollback(run=None, version=1), Withdrawal(run=None, first=1, last=BACKUP)], ids=str)
def test_nothing_is_adopted_over_a_rollback_or_withdrawal_that_comes_while_it_is_fetched(
    tmp_path: Path, change: Rollback | Withdrawal
) -> None:
    federation = restored(tmp_path)
    federation.registry.set_state("sim", STOPPED, expected=RUNNING)
    models = ModelAdministration(federation.registry, federation.conductor, federation.audit)
    site = federation.sites["bank-a"]

    def interrupted(message: wire.Recall) -> wire.Message:
        if message.wanted:
            models.rollback(change) if isinstance(change, Rollback) else models.withdraw(change)
        return SimSite.recall(site, message)

    site.recall = interrupted  # type: ignore[method-assign]
    federation.turns(3)
    assert federation.registry.in_use("sim") == (1 if isinstance(change, Rollback) else 0)
    assert len(lines(federation, "version void")) == 1


def test_a_plan_that_follows_begins_at_what_the_sites_hold_and_is_itself_asked_for_nothing(tmp_path: Path) -> None:
    federation = restored(tmp_path)
    newest = federation.sites["bank-a"].had[-1]
    federation.registry.set_state("sim", STOPPED, expected=RUNNING)
    other = plan_of(NAMES, name="other", start="quorum")
    federation.registry.create_run(other, federation.registry.vector("sim", 0), state=STOPPED)
    assert not federation.registry.recall_due("other")
    plan = plan_of(NAMES, name="next", start="quorum", origin={"plan": federation.plan.hash.hex()})
    enrol(federation.registry, NAMES)
    check_proposal(federation.registry, plan, "next.toml")
    federation.registry.propose(plan, wanted=True)
    for name in NAMES:
        federation.registry.note_standing(plan, name, wire.Standing(wire.APPROVED, "", b""))
    approvals = federation.conductor.approvals
    federation.grid.silent = {"bank-a", "bank-b"}
    assert not approvals.begin_wanted()
    assert "follows run sim, whose sites are first asked" in str(approvals.problem)
    federation.conductor._between_runs()
    assert federation.conductor.phase.missing == ("bank-a", "bank-b")
    federation.grid.silent = set()
    federation.conductor._between_runs()
    assert approvals.begin_wanted()
    assert vector_hash(wire.pack(federation.registry.vector("next", 0))) == newest.digest
    assert not federation.registry.recall_due("next")


def test_a_plan_that_fixes_a_version_of_the_backup_waits_for_nobody(tmp_path: Path) -> None:
    federation = restored(tmp_path)
    for version, waits in ((BACKUP, False), (LATER - 1, True)):
        plan = plan_of(NAMES, name="next", origin={"plan": federation.plan.hash.hex(), "version": version})
        assert bool(unheard_origin(federation.registry, plan)) == waits


def test_outside_of_the_plans_hours_the_sites_are_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = restored(tmp_path)
    monkeypatch.setattr(conductor, "_in_hours", lambda plan: False)
    federation.turns(1)
    assert federation.round == LATER - 1


def test_a_site_of_an_older_program_knows_none(tmp_path: Path) -> None:
    federation = restored(tmp_path)

    def older(message: wire.Recall) -> wire.Message:
        raise Refusal("unknown-message")

    federation.sites["bank-a"].recall = older  # type: ignore[method-assign]
    federation.turns(1)
    assert federation.round == LATER - 1


def test_what_a_quorum_agrees_on_must_be_a_version_of_the_plan(tmp_path: Path) -> None:
    federation = restored(tmp_path)
    short = bytes(8)
    for site in federation.sites.values():
        site.had += [Holding(6, 0, vector_hash(short)), Holding(7, 99, "aa" * 32), Holding(2**31, 0, "bb" * 32)]
        site.kept[vector_hash(short)] = short
    federation.turns(1)
    assert federation.round == LATER - 1, "neither the wrong length, nor a form or number that the plan has not"


def test_a_server_that_was_never_restored_asks_nobody(tmp_path: Path) -> None:
    federation = Federation(tmp_path, plan_of(NAMES))
    assert not Recalls.recall_due(federation.registry, "sim")
    federation.turns(7)
    assert federation.state == FINISHED
    assert not lines(federation, "recalled")
