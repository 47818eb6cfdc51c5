"""Tables of text: CSV, JSONL and Parquet files as records, and what could not be read of them, by position.

Libraries read (csv, json, pyarrow); a broken row costs no other row.  Errors carry no text of a row: a first
line that is no header would put private text where column names are expected, so only what looks like a name
is shown.
"""

import codecs
import csv
import difflib
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nexus_common.errors import NexusError

from nexus_client.rows import RowProblem, undecodable

CSV_SUFFIXES: Final = (".csv", ".tsv")
JSONL_SUFFIXES: Final = (".jsonl", ".ndjson")
PARQUET_SUFFIXES: Final = (".parquet",)
TABLE_SUFFIXES: Final = (*JSONL_SUFFIXES, *CSV_SUFFIXES, *PARQUET_SUFFIXES)
DELIMITERS: Final = ",;\t|"
BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
PLAIN_NAME: Final = re.compile(r"[^\W\d][\w.-]{0,23}")
SHOWN_COLUMNS: Final = 12


@dataclass(frozen=True)
class Record:
    """One row as read: its line (a Parquet file's row number, from 1) and values under the file's column
    names."""

    line: int
    values: dict[str, object]


@dataclass(frozen=True)
class Table:
    """A file's column names, its readable rows, and the others."""

    columns: tuple[str, ...]
    records: list[Record]
    problems: list[RowProblem]


def read_table(path: Path, name: str, wanted: Collection[str], encoding: str, delimiter: str | None) -> Table:
    """Read a file by its suffix.  ``wanted`` are the column names that matter; Parquet reads no others.

    Raises NexusError for a file that is not what its suffix says, and OSError.
    """
    suffix = path.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        return _parquet(path, name, wanted)
    text = read_text(path, name, encoding)
    if suffix in JSONL_SUFFIXES:
        return _jsonl(text, name)
    return _csv(text, name, wanted, "\t" if delimiter is None and suffix == ".tsv" else delimiter)


def read_text(path: Path, name: str, encoding: str) -> str:
    """A file as text, a byte order mark before the declared encoding; invalid bytes become lone surrogates
    (PEP 383).

    Raises NexusError for encodings that allow no such repair, and OSError.
    """
    data = path.read_bytes()
    for mark, codec in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            data, encoding = data[len(mark) :], codec
            break
    try:
        return data.decode(encoding, "surrogateescape")
    except UnicodeError as problem:
        place = f" at byte {problem.start}" if isinstance(problem, UnicodeDecodeError) else ""
        raise NexusError(
            f"{name} is not valid {encoding}{place}; convert it to UTF-8, for example with iconv"
        ) from None


def shown_columns(columns: Collection[str]) -> str:
    """Column names for an error; what does not look like a name is shown by its length."""
    each = [repr(c) if PLAIN_NAME.fullmatch(c) else f"<{len(c)} characters>" for c in list(columns)[:SHOWN_COLUMNS]]
    more = f" and {len(columns) - SHOWN_COLUMNS} more" if len(columns) > SHOWN_COLUMNS else ""
    return (", ".join(each) or "none") + more


def nearest_column(wanted: Iterable[str], columns: Collection[str]) -> str:
    """A hint where one of the file's columns is nearly one that is wanted, then ";"."""
    known = {column.casefold(): column for column in columns if PLAIN_NAME.fullmatch(column)}
    for name in wanted:
        if len(name) > 1 and (near := difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.5)):
            return f"; for {name!r} did you mean {known[near[0]]!r}?"
    return ";"


def _jsonl(text: str, name: str) -> Table:
    columns: dict[str, None] = {}
    records, problems = list[Record](), list[RowProblem]()
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except json.JSONDecodeError as problem:
            problems.append(
                RowProblem(name, line, None, f"not valid JSON at character {problem.pos + 1}: {problem.msg}")
            )
        except (ValueError, RecursionError) as problem:
            problems.append(RowProblem(name, line, None, f"not usable JSON ({type(problem).__name__})"))
        else:
            if isinstance(value, dict):
                columns.update(dict.fromkeys(value))
                records.append(Record(line, value))
            else:
                problems.append(
                    RowProblem(
                        name, line, None, f"a JSON {type(value).__name__}, not an object; JSONL holds one object a line"
                    )
                )
    return Table(tuple(columns), records, problems)


def _csv(text: str, name: str, wanted: Collection[str], delimiter: str | None) -> Table:
    lines = list(io.StringIO(text, newline=""))
    if "\0" in "".join(lines[:1]):
        raise NexusError(
            f"{name} holds NUL characters in its first line: if it is UTF-16 without a byte "
            'order mark, set encoding = "utf-16-le", else it is not text'
        )
    rows = _csv_rows(lines, delimiter or _recognised(lines, wanted))
    header_line, header = next(((line, row) for line, row in rows if row), (0, []))
    if isinstance(header, str):
        raise NexusError(f"{name}: the header in line {header_line} cannot be read: {header}")
    columns = [column.strip() for column in header]
    twice = {column for column in columns if column in wanted and columns.count(column) > 1}
    if twice:
        raise NexusError(f"{name}: column {shown_columns(twice)} stands twice in the header; rename one of them")
    records, problems = list[Record](), list[RowProblem]()
    for line, row in rows:
        if isinstance(row, str):
            problems.append(RowProblem(name, line, None, f"broken CSV: {row}"))
        elif row and len(row) != len(columns):
            reason = f"{len(row)} columns, the header has {len(columns)}; a text with the delimiter needs quotes"
            problems.append(RowProblem(name, line, None, reason))
        elif row:
            records.append(Record(line, dict(zip(columns, row, strict=True))))
    return Table(tuple(columns), records, problems)


def _csv_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """(first line, fields or what is wrong); after a broken quote it goes on with the very next line."""
    start = 0
    while start < len(lines):
        rest = map(lines.__getitem__, range(start, len(lines)))  # no copy: every line may be broken
        reader, at = csv.reader(rest, delimiter=delimiter, strict=True), start
        try:
            for fields in reader:
                yield at + 1, fields
                at = start + reader.line_num
        except csv.Error as problem:
            yield at + 1, str(problem)
            start = at + 1
        else:
            return


def _recognised(lines: list[str], wanted: Collection[str]) -> str:
    """The delimiter that gives the header most of the wanted columns, then most columns."""

    def fit(delimiter: str) -> tuple[int, int]:
        header = next((row for _, row in _csv_rows(lines, delimiter) if row), [])
        return (0, 0) if isinstance(header, str) else (sum(c.strip() in wanted for c in header), len(header))

    return max(DELIMITERS, key=fit)


def _parquet(path: Path, name: str, wanted: Collection[str]) -> Table:
    import pyarrow  # noqa: PLC0415  only where a Parquet file is named
    from pyarrow import parquet  # noqa: PLC0415

    records, problems = list[Record](), list[RowProblem]()
    try:
        with parquet.ParquetFile(path) as opened:
            columns = tuple(opened.schema_arrow.names)
            chosen = [column for column in columns if column in wanted]
            if len(set(chosen)) < len(chosen):
                raise NexusError(f"{name}: a column among {shown_columns(chosen)} stands twice; rename one of them")
            line = 0
            for batch in opened.iter_batches(columns=chosen) if chosen else ():
                for i in range(batch.num_rows):
                    line += 1
                    values: dict[str, object] = {}
                    for column, array in zip(batch.schema.names, batch.columns, strict=True):
                        try:
                            values[column] = array[i].as_py()
                        except ValueError:
                            problems.append(RowProblem(name, line, column, undecodable("utf-8")))
                            break
                    else:
                        records.append(Record(line, values))
    except (pyarrow.ArrowException, OSError) as problem:
        if isinstance(problem, PermissionError):
            raise
        raise NexusError(
            f"{name} is not a Parquet file that can be read ({type(problem).__name__}); "
            "write it again, or export it as CSV"
        ) from None
    return Table(columns, records, problems)
