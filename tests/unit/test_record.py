"""What a site must never forget: on disk before it counts, over all plans where it must be, and one process's alone."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from nexus_client.record import PlanRecord, ProtocolRecord
from nexus_common.errors import NexusError
from nexus_common.plan import Plan

from tests.plans import make_plan

NAMES = ("bank-a", "bank-b", "hospital-a")
MODEL, WEIGHTS, OTHER = b"m" * 32, b"w" * 32, b"o" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "protocol.sqlite"


@pytest.fixture
def record(path: Path) -> Iterator[ProtocolRecord]:
    made = ProtocolRecord(path)
    yield made
    made.close()


def plan_of(name: str = "sim") -> Plan:
    return make_plan(NAMES, name=name)


def under(record: ProtocolRecord, plan: Plan, layout: int = 0) -> PlanRecord:
    """The part for the plan of one of a consortium plan's layouts."""
    (protocol,) = plan.protocol_plans
    return record.under(plan, replace(protocol, run=f"{plan.name}.{layout}"))


def test_a_new_record_knows_nothing(record: ProtocolRecord) -> None:
    one = under(record, plan_of())
    assert (one.last_epoch(), one.inputs_sent(), one.was_opened(MODEL)) == (0, 0, False)


def test_everything_is_there_after_a_reopen(path: Path) -> None:
    record = ProtocolRecord(path)
    one = under(record, plan_of())
    one.begin_epoch(7)
    one.begin_epoch(1_795_000_000)
    one.count_input()
    one.count_input()
    one.note_opened(MODEL)
    record.close()
    again = under(ProtocolRecord(path), plan_of())
    assert (again.last_epoch(), again.inputs_sent()) == (1_795_000_000, 2)
    assert (again.was_opened(MODEL), again.was_opened(OTHER)) == (True, False)


def test_each_change_is_on_disk_when_it_returns(path: Path) -> None:
    """A process that is killed right after it, as by kill -9, has lost nothing."""
    script = f"""
import os
from pathlib import Path
from nexus_client.record import ProtocolRecord
from tests.unit.test_record import MODEL, plan_of, under
one = under(ProtocolRecord(Path({str(path)!r})), plan_of())
one.begin_epoch(3), one.count_input(), one.note_opened(MODEL)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    again = under(ProtocolRecord(path), plan_of())
    assert (again.last_epoch(), again.inputs_sent(), again.was_opened(MODEL)) == (3, 1, True)


def test_every_change_is_synced(record: ProtocolRecord) -> None:
    (synchronous,) = record._db.execute("PRAGMA synchronous").fetchone()
    (mode,) = record._db.execute("PRAGMA journal_mode").fetchone()
    assert (synchronous, mode) == (2, "delete"), "FULL, and no journal that lacks a sync"


def test_inputs_are_counted_over_all_layouts_of_a_plan_and_epochs_each_by_itself(record: ProtocolRecord) -> None:
    first, second = (under(record, plan_of(), layout) for layout in (0, 1))
    first.count_input()
    second.count_input()
    first.begin_epoch(5)
    assert (first.inputs_sent(), second.inputs_sent()) == (2, 2)
    assert (first.last_epoch(), second.last_epoch()) == (5, 0)


def test_another_plans_inputs_and_epochs_are_its_own(record: ProtocolRecord) -> None:
    one, other = under(record, plan_of()), under(record, plan_of("another"))
    one.count_input()
    one.begin_epoch(5)
    assert (other.inputs_sent(), other.last_epoch()) == (0, 0)


def test_a_model_opened_under_one_plan_is_opened_under_all(record: ProtocolRecord) -> None:
    under(record, plan_of()).note_opened(MODEL, WEIGHTS)
    others = under(record, plan_of(), 1), under(record, plan_of("another"))
    for one in others:
        assert [one.was_opened(name) for name in (MODEL, WEIGHTS, OTHER)] == [True, True, False]


def test_a_model_that_is_noted_again_keeps_its_first_time(record: ProtocolRecord) -> None:
    one = under(record, plan_of())
    one.note_opened(MODEL)
    before = record._db.execute("SELECT * FROM opened").fetchall()
    one.note_opened(MODEL)
    assert record._db.execute("SELECT * FROM opened").fetchall() == before


def test_a_second_process_is_refused_with_words(record: ProtocolRecord, path: Path) -> None:
    with pytest.raises(NexusError, match=r"cannot be opened \(database is locked\), and .* is another process"):
        ProtocolRecord(path)
    under(record, plan_of()).count_input()  # the first one goes on
    record.close()
    assert under(ProtocolRecord(path), plan_of()).inputs_sent() == 1


def test_nobody_else_on_the_machine_may_read_it(record: ProtocolRecord, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_is_said_and_nothing_is_counted(record: ProtocolRecord) -> None:
    one = under(record, plan_of())
    one.count_input()
    (pages,) = record._db.execute("PRAGMA page_count").fetchone()
    record._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(
        NexusError, match=r"cannot be written \(database or disk is full; .* MB are free there\); is the"
    ):
        for number in range(1000):
            one.note_opened(number.to_bytes(32, "big"))
    assert one.inputs_sent() == 1


@pytest.mark.parametrize("change", ["begin_epoch", "count_input", "note_opened"])
def test_what_cannot_be_written_is_an_error_and_not_a_silence(record: ProtocolRecord, change: str) -> None:
    one = under(record, plan_of())
    record._db.execute("PRAGMA query_only = ON")
    argument = {"begin_epoch": (1,), "note_opened": (MODEL,)}.get(change, ())
    with pytest.raises(NexusError, match="cannot be written"):
        getattr(one, change)(*argument)


def test_what_cannot_be_read_is_an_error_and_not_a_zero(record: ProtocolRecord) -> None:
    one = under(record, plan_of())
    record._db.execute("DROP TABLE opened")
    with pytest.raises(NexusError, match=r"cannot be read .* without it no update leaves this site"):
        one.was_opened(MODEL)


@pytest.mark.parametrize("what", ["missing folder", "a folder", "no database"])
def test_a_record_that_cannot_be_opened_is_an_error_with_its_path(tmp_path: Path, what: str) -> None:
    path = tmp_path / "record"
    if what == "a folder":
        path.mkdir()
    elif what == "no database":
        path.write_bytes(os.urandom(5000))
    with pytest.raises(NexusError, match="record cannot be opened"):
        ProtocolRecord(tmp_path / "none" / "record" if what == "missing folder" else path)


def test_a_damaged_record_is_said_to_be_damaged_and_not_to_be_deleted(path: Path) -> None:
    path.write_bytes(b"no database" * 100)
    with pytest.raises(NexusError, match="it is damaged; do not delete it"):
        ProtocolRecord(path)


def test_a_change_outlives_a_crash_of_sqlites_journal(path: Path) -> None:
    """A reader of the bare file, after the lock is gone, sees what was written."""
    record = ProtocolRecord(path)
    under(record, plan_of()).note_opened(MODEL)
    record.close()
    with sqlite3.connect(path) as bare:
        assert bare.execute("SELECT model FROM opened").fetchall() == [(MODEL,)]


def test_draws_are_the_same_for_a_model_for_ever_and_no_other_sites(record: ProtocolRecord, tmp_path: Path) -> None:
    first = record.draws(MODEL)
    assert first.bit_length() > 200
    assert record.draws(OTHER) != first
    record.close()
    again, other = ProtocolRecord(record.path), ProtocolRecord(tmp_path / "other")
    assert again.draws(MODEL) == first
    assert other.draws(MODEL) != first
    again.close()
    other.close()


def test_models_are_counted_once_each_and_by_plan(record: ProtocolRecord) -> None:
    assert record.models_trained(b"p", MODEL) == 1
    assert record.models_trained(b"p", OTHER) == 1, "what was only asked for is not noted"
    for model, count in ((MODEL, 1), (MODEL, 1), (OTHER, 2), (MODEL, 2)):
        record.note_trained(b"p", model, [b"w"])
        assert record.models_trained(b"p", model) == count
    assert record.models_trained(b"q", MODEL) == 1


def test_a_model_that_another_plan_has_trained_is_known(record: ProtocolRecord) -> None:
    record.note_trained(b"p", MODEL, [b"w", b"x"])
    names = (MODEL, b"w", b"x", OTHER)
    for plan, known in ((b"p", [False] * 4), (b"q", [True, True, True, False])):
        assert [record.trained_elsewhere(plan, [b"v", name]) for name in names] == known
