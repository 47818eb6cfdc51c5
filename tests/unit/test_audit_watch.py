"""An audit log under watch: what breaks its chain is seen, what a crash leaves is not held against it for long."""

import errno
import os
import socket
import time
from pathlib import Path

import pytest
from nexus_common.audit import AuditLog, verify
from nexus_common.audit_watch import AuditWatch


def log_of(folder: Path) -> tuple[AuditLog, AuditWatch]:
    log = AuditLog(folder / "audit.jsonl")
    for number in range(3):
        log.append("event", number=number)
    return log, AuditWatch(log.path, "nexus-x")


def told(watch: AuditWatch) -> dict[str, float]:
    return {sample.name: sample.value for family in watch.families("x") for sample in family.samples}


def test_nothing_is_told_before_the_first_look(tmp_path: Path) -> None:
    _, watch = log_of(tmp_path)
    assert told(watch) == {}
    watch.look()
    assert told(watch)["x_audit_chain_valid"] == 1
    assert told(watch)["x_audit_chain_verified_timestamp_seconds"] > 1e9


def test_when_the_last_backup_was_made_is_told_or_when_the_log_began(tmp_path: Path) -> None:
    log, _ = log_of(tmp_path)
    watch = AuditWatch(log.path, "nexus-x", outdated_by="authority replaced")

    def found() -> tuple[float, float]:
        watch.look()
        return told(watch)["x_backed_up_timestamp_seconds"], told(watch)["x_backup_outdated"]

    began, outdated = found()
    assert not outdated
    log.append("authority replaced")
    assert found() == (began, 0), "there is none yet that it could outdate"
    time.sleep(0.01)
    log.append("backed up")
    first, _ = found()
    assert first > began
    log.append("event")
    assert found() == (first, 0)
    log.append("authority replaced")
    assert found() == (first, 1)
    time.sleep(0.01)
    log.append("backed up")
    assert found()[0] > first
    assert found()[1] == 0
    log.append("restored", made=int(began) - 5)
    assert found() == (int(began) - 5, 0), "a backup has no line of itself"


def test_a_program_without_such_an_event_has_no_word_of_it(tmp_path: Path) -> None:
    _, watch = log_of(tmp_path)
    watch.look()
    assert "x_backup_outdated" not in told(watch)


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


def test_an_unfinished_line_pages_nobody_and_what_is_before_it_is_verified_all_the_same(tmp_path: Path) -> None:
    log, watch = log_of(tmp_path)
    watch.look()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"n":4')  # a power cut, and nothing is written for hours
    assert watch.look() is True
    log.path.write_bytes(whole.replace(b'"number":1', b'"number":7') + b'{"n":4')
    assert watch.look() is False
    log.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]) + b'{"n":3')
    assert watch.look() is False, "a log that was cut before its last head"
    log.path.write_bytes(whole + b'{"n":4')
    log.append("event")
    assert watch.look() is True


def unreadable(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("what", ["open", "stat"])
def test_a_log_that_cannot_be_read_is_not_said_to_be_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    log, watch = log_of(tmp_path)
    watch.look()
    with monkeypatch.context() as patched:
        patched.setattr(type(log.path), what, unreadable)
        assert [watch.look(), watch.look()] == [None, None]
    assert told(watch) == {}, "no series: that it was not verified is another alert"
    assert [
        record.message.count("Too many open files") for record in caplog.records if record.levelname == "ERROR"
    ] == [1]
    assert watch.look() is True


def test_a_broken_log_that_could_not_be_read_for_a_while_can_still_be_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, watch = log_of(tmp_path)
    watch.look()
    log.path.write_bytes(log.path.read_bytes().replace(b'"number":1', b'"number":7'))
    assert watch.look() is False
    with monkeypatch.context() as patched:
        patched.setattr(type(log.path), "open", unreadable)
        assert watch.look() is None
    assert watch.look() is False
    log.path.rename(tmp_path / "aside")
    log.append("event")
    assert watch.look() is True


def test_each_head_that_was_verified_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log, watch = log_of(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "syslog"))
        monkeypatch.setattr("nexus_common.syslog.SYSLOG", str(tmp_path / "syslog"))
        watch.look()
        head = verify(log.path).hash
        assert daemon.recv(1000).decode().endswith(f"nexus-x: audit log of nexus-x: 3 lines, head {head}")
    with caplog.at_level("INFO"):
        watch.look()
    assert f"3 lines, head {head}" in caplog.text, "no system log: then in the program's own"


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
