"""What a program logs of its messages: before they leave, once each, and all the rest in sums."""

from pathlib import Path

import pytest
from nexus_common import audit, journal, wire
from nexus_common.audit import AuditLog
from nexus_common.errors import NexusError
from nexus_common.journal import Journal
from nexus_common.secagg.labels import label

OF_A_ROUND = (label("set-sig"), label("shares"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def lines(path: Path) -> list[dict[str, object]]:
    return list(audit.read(path))


def test_a_message_is_logged_with_its_purpose_size_hash_and_subject(path: Path) -> None:
    Journal(AuditLog(path)).message(wire.Masked(bytes(400)), plan="ab", round=3, recipient="server:1")
    (line,) = lines(path)
    assert [line[key] for key in ("event", "purpose", "bytes", "plan", "round", "recipient")] == [
        "sent", "masked", 400, "ab", 3, "server:1",
    ]  # fmt: skip
    assert len(str(line["sha256"])) == 64


def test_a_refusal_is_logged_with_its_code(path: Path) -> None:
    Journal(AuditLog(path)).message(wire.Refused("paused"))
    assert [(line["event"], line["code"]) for line in lines(path)] == [("refused", "paused")]


def test_an_equal_message_about_the_same_thing_is_counted_and_another_is_logged(path: Path) -> None:
    made = Journal(AuditLog(path))
    for number in (1, 1, 1, 2):
        made.message(wire.Readiness("ready"), round=number)
    made.settle(now=True)
    assert [line["event"] for line in lines(path)] == ["sent", "sent", "traffic"]
    assert lines(path)[-1]["repeated_messages"] == 2
    made.message(wire.Readiness("ready"), round=1)
    assert lines(path)[-1]["event"] == "sent", "after the sum it is logged anew"


def test_all_requests_are_summed_up_until_the_next_sum(path: Path) -> None:
    made = Journal(AuditLog(path))
    for size in (100, 20, 3):
        made.request(size)
    made.settle()
    assert lines(path) == [], "not yet: once an hour"
    made.settle(now=True)
    made.settle(now=True)
    assert [(line["requests"], line["bytes"]) for line in lines(path)] == [(3, 123)]


def test_what_cannot_be_logged_raises_and_is_not_taken_for_logged(path: Path) -> None:
    path.mkdir()
    made = Journal(AuditLog(path))
    made.request(7)
    for _ in range(2):
        with pytest.raises(NexusError):
            made.message(wire.Readiness("ready"))
        with pytest.raises(NexusError):
            made.settle(now=True)
    path.rmdir()
    made.message(wire.Readiness("ready"))
    made.settle(now=True)
    assert [line["event"] for line in lines(path)] == ["sent", "traffic"]
    assert lines(path)[-1]["bytes"] == 7


def test_ever_new_answers_become_slow_and_those_of_a_round_do_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(journal.time, "sleep", slept.append)
    made = Journal(AuditLog(path), paced=True)
    for number in range(journal.BURST_LINES):
        made.message(wire.Refused("paused"), round=number)
    assert not slept
    made.message(wire.Refused("paused"), round=-1)
    assert slept
    assert 0 < slept[0] <= journal.PACE_SECONDS
    for number, message in enumerate((wire.Masked(b""), wire.Trained(bytes(32)), *map(wire.Say, OF_A_ROUND))):
        made.message(message, round=number)
    assert len(slept) == 1
    made.message(wire.Say(label("advert")))
    assert len(slept) == 2, "a server may begin any number of epochs"
