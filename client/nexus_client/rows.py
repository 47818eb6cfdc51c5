"""What a row of a site's text is: a question with its answer, a scored pair, or a labelled utterance.

Values from files are checked here, one row at a time.  The text of a row never stands in a reason: reasons
reach logs, so they name columns, lengths and types only.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

MAX_CHARACTERS: Final = 100_000
SHOWN_REASONS: Final = 4


@dataclass(frozen=True)
class Pair:
    """A question and a passage that answers it; ``heading`` where the question is a heading of a document."""

    query: str
    passage: str
    negative: str | None
    group: str
    file: str
    line: int
    heading: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for exact duplicates."""
        return ("pair", self.query, self.passage, self.negative, self.group)


@dataclass(frozen=True)
class Scored:
    """Two texts and how alike they are, 0 to 1."""

    a: str
    b: str
    score: float
    group: str
    file: str
    line: int

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for exact duplicates."""
        return ("scored", self.a, self.b, self.score, self.group)


@dataclass(frozen=True)
class Utterance:
    """A text and its label."""

    text: str
    label: str
    group: str
    file: str
    line: int

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for exact duplicates."""
        return ("utterance", self.text, self.label, self.group)


Row = Pair | Scored | Utterance


@dataclass(frozen=True)
class RowProblem:
    """A row that was left out: where it stands and why, without its text."""

    file: str
    line: int
    column: str | None
    reason: str

    def __str__(self) -> str:
        column = f", column {self.column!r}" if self.column else ""
        return f"{self.file} line {self.line}{column}: {self.reason}"


def summary(problems: Sequence[RowProblem]) -> str:
    """How often which reason was met, the most frequent first, with its first line; empty where there is
    none."""
    if not problems:
        return ""
    reasons = Counter((problem.column, problem.reason) for problem in problems)
    first = {(problem.column, problem.reason): problem.line for problem in reversed(problems)}
    lines = [
        f"\n  {n} x {f'column {key[0]!r} ' if key[0] else ''}{key[1]} (first in line {first[key]})"
        for key, n in reasons.most_common(SHOWN_REASONS)
    ]
    more = [f"\n  and {len(reasons) - SHOWN_REASONS} more of other kinds"] if len(reasons) > SHOWN_REASONS else []
    return ":" + "".join(lines + more)


class BadField(Exception):
    """One value that makes its row unusable."""

    def __init__(self, column: str | None, reason: str) -> None:
        super().__init__(reason)
        self.column, self.reason = column, reason


@dataclass(frozen=True)
class Fields:
    """One record of a table under our column names, and how to read it.

    ``names`` gives the file's own name of each column; "group" is among them where a group column is named.
    """

    values: Mapping[str, object]
    names: Mapping[str, str]
    encoding: str
    score_max: float
    file: str
    line: int

    def text(self, column: str) -> str:
        """The column's text, white space normalised; BadField where it is none."""
        return checked(self._value(column), self._name(column), self.encoding)

    def label(self, column: str) -> str:
        """As ``text``; whole numbers are labels too."""
        value = self._value(column)
        return str(value) if isinstance(value, int) else self.text(column)

    def optional(self, column: str) -> str | None:
        """As ``text``, None where the column is absent or empty."""
        value = self.values.get(column)
        return None if value is None or (isinstance(value, str) and not value.strip()) else self.text(column)

    def score(self, column: str) -> float:
        """The score divided by ``score_max``."""
        value, name = self._value(column), self._name(column)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
            raise BadField(name, f"is {type(value).__name__}, not a number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise BadField(name, f"is not a number ({len(str(value))} characters; decimals need a point)") from None
        if not math.isfinite(number):
            raise BadField(name, "is not a finite number")
        if not 0 <= number <= self.score_max:
            raise BadField(name, outside(self.score_max))
        return number / self.score_max

    def group(self, default: str) -> str:
        """The named column's value, else ``default``."""
        return self.label("group") if "group" in self.names else default

    def _name(self, column: str) -> str:
        return self.names.get(column, column)

    def _value(self, column: str) -> object:
        value = self.values.get(column)
        if value is None:
            raise BadField(self._name(column), "is missing")
        return value


def outside(score_max: float) -> str:
    """The reason for a score that does not fit the stated range."""
    remedy = "set score_max = 5 where scores run from 0 to 5" if score_max < 5 else "set score_max to the largest score"
    return f"score is outside 0 to {score_max:g}; {remedy}"


def checked(value: object, column: str | None, encoding: str) -> str:
    """A value as text with its white space normalised; BadField where it is not text that can be used."""
    if not isinstance(value, str):
        raise BadField(column, f"is {type(value).__name__}, not text")
    if len(value) > MAX_CHARACTERS:
        raise BadField(column, f"is {len(value)} characters long, more than {MAX_CHARACTERS}")
    if not (text := " ".join(decoded(value, column, encoding).split())):
        raise BadField(column, "is empty")
    return text


def decoded(text: str, column: str | None, encoding: str) -> str:
    """The text itself; BadField where it holds NUL, or bytes that did not decode (they came through as
    surrogates)."""
    if "\0" in text:
        raise BadField(column, "holds a NUL character: not text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadField(column, undecodable(encoding)) from None
    return text


def undecodable(encoding: str) -> str:
    """The reason for bytes that are not valid in the declared encoding."""
    remedy = (
        "check the setting encoding"
        if encoding.lower() in {"cp1252", "windows-1252"}
        else 'for a file from older Windows software set encoding = "cp1252", else mend it'
    )
    return f"holds bytes or characters that are not valid {encoding}; {remedy}"


def _pair(row: Fields) -> Row:
    passage = row.text("passage")
    return Pair(row.text("query"), passage, row.optional("negative"), row.group(passage), row.file, row.line)


def _scored(row: Fields) -> Row:
    a = row.text("a")
    return Scored(a, row.text("b"), row.score("score"), row.group(a), row.file, row.line)


def _utterance(row: Fields) -> Row:
    text = row.text("text")
    return Utterance(text, row.label("label"), row.group(text), row.file, row.line)


KINDS: Final[dict[tuple[str, ...], Callable[[Fields], Row]]] = {
    ("query", "passage"): _pair,
    ("a", "b", "score"): _scored,
    ("text", "label"): _utterance,
}
"""Columns that a file must have -> how its rows are read; the first that fits counts."""
OPTIONAL: Final = "negative"
COLUMNS: Final = (*(column for required in KINDS for column in required), OPTIONAL)
ACCEPTED: Final = "query, passage[, negative] | a, b, score | text, label"
