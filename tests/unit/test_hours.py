"""Spans of hours, over midnight too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.hours import DAY, Hours

MINUTES = st.integers(0, DAY - 1)
SPANS = st.builds(lambda start, length: Hours(start, start + length), MINUTES, st.integers(1, DAY))


@given(SPANS)
def test_a_span_is_read_back_from_its_text(span: Hours) -> None:
    read = Hours.parse(str(span))
    assert read.end - read.start == span.end - span.start
    assert read.start == span.start or span.end - span.start == DAY


@pytest.mark.parametrize(
    "text", ["", "20-06", "20:00", "24:01-25:00", "20:00-06:60", "a:b-c:d", "20:00-06:00-07:00", "20:0-6:00"]
)
def test_what_is_no_span_is_said_with_the_right_form(text: str) -> None:
    with pytest.raises(ValueError, match="such as 20:00-06:00"):
        Hours.parse(text)


@given(SPANS, SPANS)
def test_a_span_covers_another_exactly_if_it_holds_each_of_its_minutes(one: Hours, other: Hours) -> None:
    assert one.covers(other) == all(one.holds(minute % DAY) for minute in range(other.start, other.end))


@given(SPANS, st.integers(-DAY, DAY), MINUTES)
def test_another_clock_shows_the_same_instants(span: Hours, ahead: int, minute: int) -> None:
    assert span.shifted(ahead).holds((minute + ahead) % DAY) == span.holds(minute)


def test_equal_ends_are_the_whole_day() -> None:
    assert all(Hours.parse("08:00-08:00").holds(minute) for minute in range(DAY))
