"""An audit log under watch: what breaks its chain is seen, what a crash leaves is not held against it for long."""

from pathlib import Path

import pytest
from nexus_common.audit import AuditLog
from nexus_common.audit_watch import AuditWatch


def log_of(folder: Path) -> tuple[AuditLog, AuditWatch]:
    log = AuditLog(folder / "audit.jsonl")
    for number in range(3):
        log.append("event", number=number)
    return log, AuditWatch(log.path)


def told(watch: AuditWatch) -> dict[str, float]:
    return {sample.name: sample.value for family in watch.families("x") for sample in family.samples}


def test_nothing_is_told_before_the_first_look(tmp_path: Path) -> None:
    _, watch = log_of(tmp_path)
    assert told(watch) == {}
    watch.look()
    assert told(watch)["x_audit_chain_valid"] == 1
    assert told(watch)["x_audit_chain_verified_timestamp_seconds"] > 1e9


def test_a_changed_line_is_found_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log, watch = log_of(tmp_path)
    log.path.write_bytes(log.path.read_bytes().replace(b'"number":1', b'"number":7'))
    watch.look()
    watch.look()
    assert told(watch)["x_audit_chain_valid"] == 0
    assert [record.message.count("was changed") for record in caplog.records] == [1]


def test_a_log_that_was_cut_between_two_looks_is_found(tmp_path: Path) -> None:
    log, watch = log_of(tmp_path)
    watch.look()
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:2]))
    watch.look()
    assert watch.valid is False


def test_an_unfinished_line_is_forgiven_once_the_next_one_has_mended_it(tmp_path: Path) -> None:
    log, watch = log_of(tmp_path)
    with log.path.open("ab") as file:
        file.write(b'{"n":4')
    watch.look()
    assert watch.valid is False
    log.append("event")
    watch.look()
    assert watch.valid is True


@pytest.mark.parametrize("begun", [True, False], ids=["with a new log", "without one yet"])
def test_once_a_broken_log_is_moved_aside_the_next_one_counts(tmp_path: Path, begun: bool) -> None:
    log, watch = log_of(tmp_path)
    watch.look()
    log.path.write_bytes(log.path.read_bytes().replace(b'"number":1', b'"number":7'))
    watch.look()
    log.path.rename(tmp_path / "aside")
    if begun:
        log.append("event")
    assert watch.look() is True
    log.append("event")
    assert watch.look() is True


def test_a_log_that_was_put_in_the_place_of_a_whole_one_stays_broken(tmp_path: Path) -> None:
    log, watch = log_of(tmp_path)
    watch.look()
    log.path.rename(tmp_path / "aside")
    log.append("event")
    assert [watch.look(), watch.look()] == [False, False]
