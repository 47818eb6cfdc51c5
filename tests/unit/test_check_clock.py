"""The clock line of ``check``: how far apart is good, bad and refused, and answers that do not say their time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_client.check_server import _clock

HEAD = "HTTP/1.1 404 Not Found\r\nServer: x\r\nDATE: Thu, 28 May 2026 20:26:40 GMT\r\n\r\n"
THERE = 1_780_000_000.5  # half a second into the stated one


@pytest.mark.parametrize(
    ("offset", "state"), [(0, "ok"), (59, "ok"), (-59, "ok"), (61, "warning"), (-61, "warning"), (1e9, "warning")]
)
def test_a_clock_more_than_a_minute_off_is_a_warning(offset: float, state: str) -> None:
    (line,) = _clock(HEAD, THERE + offset)
    assert line.state == state
    assert (line.remedy is None) == (state == "ok")


@pytest.mark.parametrize(("offset", "words"), [(90, "90 s ahead of the server"), (-400, "400 s behind the server")])
def test_the_direction_of_a_wrong_clock_is_told(offset: float, words: str) -> None:
    (line,) = _clock(HEAD, THERE + offset)
    assert words in line.found


@given(st.text(st.characters(max_codepoint=255)))
def test_an_answer_without_a_date_is_a_warning_whatever_it_is(text: str) -> None:
    (line,) = _clock(f"HTTP/1.1 404\r\nDate: x{text}\r\n", THERE)
    assert (line.state, line.found) == ("warning", "the server did not say its time")
