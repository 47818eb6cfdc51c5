"""Hours of the day, such as ``20:00-06:00``: when a plan runs, and when a site allows it to."""

import datetime as dt
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import AfterValidator

DAY: Final = 24 * 60


@dataclass(frozen=True)
class Hours:
    """A span of the day in minutes since midnight; ``end`` may lie on the next day."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "Hours":
        """From ``HH:MM-HH:MM``; ValueError with the right form otherwise.  Equal ends are the whole day."""
        try:
            start, end = (_minutes(part) for part in text.split("-"))
        except ValueError:
            raise ValueError(f"{text!r} is not a span of hours, such as 20:00-06:00 or 00:00-24:00") from None
        return cls(start % DAY, start % DAY + ((end - start) % DAY or DAY))

    def holds(self, minute: int) -> bool:
        """Whether a minute of the day lies inside."""
        return (minute - self.start) % DAY < self.end - self.start

    def covers(self, other: "Hours") -> bool:
        """Whether every minute of ``other`` lies inside."""
        gap = (other.start - self.start) % DAY
        return self.end - self.start == DAY or gap + other.end - other.start <= self.end - self.start

    def shifted(self, minutes: int) -> "Hours":
        """The same span on a clock that shows ``minutes`` more."""
        start = (self.start + minutes) % DAY
        return Hours(start, start + self.end - self.start)

    def __str__(self) -> str:
        ends = (self.start, self.end if self.end <= DAY else self.end - DAY)
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in ends)


def _minutes(text: str) -> int:
    hours, minutes = text.strip().split(":")
    found = int(hours) * 60 + int(minutes)
    if len(minutes) != 2 or int(minutes) > 59 or not 0 <= found <= DAY:
        raise ValueError(text)
    return found


def minute_of(moment: dt.datetime) -> int:
    """The minute of the day on the clock of ``moment``."""
    return moment.hour * 60 + moment.minute


def _checked(text: str) -> str:
    return str(Hours.parse(text))


HoursText = Annotated[str, AfterValidator(_checked)]
"""A span of hours in settings, kept in its one spelling."""
