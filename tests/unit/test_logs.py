"""What a peer can make a program log is bounded, and what was left out is said."""

import logging
import os
import re
import subprocess
import sys

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


SAYS = (
    "import logging, os, sys; from nexus_common import logs\n"
    "os.environ['JOURNAL_STREAM'] = sys.argv[1] or '{0.st_dev}:{0.st_ino}'.format(os.fstat(2))\n"
    "logs.begin('hospital-a')\n"
    "logging.warning('low')\n"
    "try: 1 / 0\n"
    "except ZeroDivisionError: logging.exception('no')\n"
)


def said(stream: str) -> list[str]:
    """What a program writes to stderr where JOURNAL_STREAM is this; without one, stderr's own device and inode."""
    done = subprocess.run([sys.executable, "-c", SAYS, stream], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_in_the_journal_each_line_has_its_priority_and_no_time() -> None:
    lines = said("")
    assert lines[:3] == ["<4>hospital-a WARNING low", "<3>hospital-a ERROR no", "<3>Traceback (most recent call last):"]
    assert all(line.startswith("<3>") for line in lines[2:])


def test_where_another_stream_is_the_journal_lines_have_their_time() -> None:
    first, *_ = said("1:1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} hospital-a WARNING low", first)


def test_a_closed_stream_is_no_journal() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    os.close(reader)
    assert not logs.is_journal(writer)
