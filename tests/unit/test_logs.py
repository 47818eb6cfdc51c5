"""What a peer can make a program log is bounded, and what was left out is said."""

import logging

import pytest
from nexus_common import logs
from nexus_common.logs import Bounded


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "x.py", 1, text, (), None)


def test_a_burst_is_let_through_and_the_rest_comes_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    bound = Bounded()
    assert sum(bound.filter(record("line")) for _ in range(3 * logs.BURST_LINES)) == logs.BURST_LINES
    now[0] = 3600.0
    line = record("line")
    assert bound.filter(line)
    assert line.getMessage() == f"({2 * logs.BURST_LINES} lines were left out before this one: too many at once) line"
    later = sum(bound.filter(record("line")) for _ in range(3 * logs.BURST_LINES))
    assert later == min(logs.BURST_LINES, 3600 * logs.LINES_A_SECOND) - 1


def test_a_long_line_is_cut() -> None:
    line = record("a" * 100_000)
    assert Bounded().filter(line)
    assert len(line.getMessage()) == logs.MAX_CHARACTERS


def test_a_line_that_its_caller_worded_wrongly_is_written_and_ends_nothing() -> None:
    line = logging.LogRecord("x", logging.INFO, "x.py", 1, "%d of %s", ("a",), None)
    assert Bounded().filter(line)
    assert line.getMessage() == "%d of %s ('a',)"
