"""A site's text: the files and folders that ``site.toml`` names, as rows.  Private; nothing here leaves the
machine.

A bad row is left out and reported by file, line, column and reason, never by its text.  A source with nothing
usable stops with an error, since a site that silently trains on half its data is worse than one that waits
for its administrator.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from nexus_common.config import Settings, nearest
from nexus_common.errors import NexusError
from pydantic import Field, field_validator

from nexus_client.documents import DOCUMENT_SUFFIXES, read_documents
from nexus_client.rows import (
    ACCEPTED,
    COLUMNS,
    KINDS,
    OPTIONAL,
    BadField,
    Fields,
    Pair,
    Row,
    RowProblem,
    Scored,
    Utterance,
    outside,
    summary,
)
from nexus_client.tables import TABLE_SUFFIXES, Table, nearest_column, read_table, shown_columns


class DataSource(Settings):
    """One ``[[data]]`` table of ``site.toml``."""

    path: Annotated[str, Field(min_length=1)]
    """A table, a document or a folder of documents; relative to the folder of site.toml."""
    encoding: str = "utf-8"
    """Of text files; a byte order mark in the file counts more."""
    delimiter: str | None = None
    """Of CSV; None recognises , ; tab and |."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column name -> the file's."""
    score_max: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The largest score: 5 where scores run from 0 to 5."""
    group: str | None = None
    """The file's column whose equal values stay on one side of the hold-out."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        try:
            "".encode(name)
        except LookupError:
            raise ValueError(f"{name!r} is no text encoding; common ones: utf-8, cp1252, utf-16") from None
        return name

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, mark: str | None) -> str | None:
        if mark is not None and (len(mark) != 1 or mark in '"\r\n \0'):
            raise ValueError('must be one character, such as ";" or "\\t", and no quote, space or line end')
        return mark

    @field_validator("columns")
    @classmethod
    def _our_columns(cls, names: dict[str, str]) -> dict[str, str]:
        for name in names:
            if name not in COLUMNS:
                hint = nearest(name, COLUMNS) or f"; known: {', '.join(COLUMNS)}"
                raise ValueError(f'{name!r} is none of our columns{hint} (write: ours = "the file\'s")')
        return names


@dataclass(frozen=True)
class SiteRows:
    """All usable rows of a site.  ``counts`` has the rows of each source; rows seen twice are counted
    once."""

    pairs: tuple[Pair, ...]
    scored: tuple[Scored, ...]
    utterances: tuple[Utterance, ...]
    problems: tuple[RowProblem, ...]
    counts: dict[str, int]
    duplicates: int
    sections_split: int

    @property
    def every(self) -> tuple[Row, ...]:
        """The rows of all kinds."""
        return (*self.pairs, *self.scored, *self.utterances)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.every)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the rows, whatever their order, files and lines."""
        return hashlib.sha256("\n".join(sorted(json.dumps(row.key) for row in self.every)).encode()).hexdigest()


@dataclass(frozen=True)
class _Part:
    """What one source gave."""

    rows: Sequence[Row]
    problems: list[RowProblem]
    sections_split: int = 0


class _Nothing(NexusError):
    """A source is not there, or holds nothing at all."""


def read_rows(sources: Sequence[DataSource], folder: Path, tokenizer: Path, *, or_nothing: bool = False) -> SiteRows:
    """Read all sources.  ``folder`` is that of site.toml, ``tokenizer`` the base model's tokenizer.json.

    Raises NexusError that lists every source that is missing, unreadable or without a usable row; ``or_nothing`` takes
    a source that is missing, or without any row, for one whose text was deleted.
    """
    if not sources:
        raise NexusError('site.toml names no data; add [[data]] and path = "FILE or FOLDER" for each of your sources')
    parts, faults = dict[str, _Part](), list[str]()
    for source in sources:
        try:
            if source.path in parts:
                raise NexusError(f"{source.path} is named twice; take one [[data]] table out")
            parts[source.path] = _read(source, folder, tokenizer)
        except NexusError as fault:
            if or_nothing and isinstance(fault, _Nothing):
                continue
            faults.append(str(fault))
        except OSError as problem:
            faults.append(
                f"{source.path} cannot be read: {problem.strerror}; give the account that runs "
                "nexus-client the right to read it"
            )
    if len(faults) > 1:
        raise NexusError("\n  ".join([f"{len(faults)} of {len(sources)} data sources cannot be used:", *faults]))
    if faults:
        raise NexusError(faults[0])
    return _together(parts)


def _read(source: DataSource, folder: Path, tokenizer: Path) -> _Part:
    path = folder / Path(source.path).expanduser()
    if not path.exists():
        looked = "" if str(path) == source.path else f" (looked for {path})"
        raise _Nothing(f"{source.path} does not exist{looked}; correct path in [[data]] of site.toml, or take it out")
    if path.is_fifo() or path.is_char_device() or path.is_block_device():
        raise NexusError(f"{source.path} is a pipe or a device, and reading it might never end")
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in DOCUMENT_SUFFIXES:
        if source.group or source.columns:
            raise NexusError(
                f"{source.path} holds documents: group and columns are for tables; take them out of [[data]]"
            )
        documents = read_documents(path, source.path, source.encoding, tokenizer)
        part = _Part(documents.rows, documents.problems, documents.sections_split)
        what = f"none of {documents.files} document(s) has a title or heading with text below it"
    elif suffix in TABLE_SUFFIXES:
        wanted = {source.columns.get(column, column) for column in COLUMNS} | (
            {source.group} if source.group else set()
        )
        table = read_table(path, source.path, wanted, source.encoding, source.delimiter)
        part = _table_rows(source, table)
        what = f"none of {len(table.records) + len(table.problems)} rows is usable"
    else:
        raise NexusError(
            f"{source.path}: {suffix or 'no suffix'} is not read; accepted: "
            f"{', '.join(TABLE_SUFFIXES)}, or documents as "
            ".txt and .md (PDF and Word are converted beforehand)"
        )
    if not part.rows:
        kind = NexusError if part.problems else _Nothing
        raise kind(f"{source.path}: {what}{summary(part.problems)}")
    return part


def _table_rows(source: DataSource, table: Table) -> _Part:
    if not table.columns:
        return _Part([], table.problems)
    names = {column: source.columns.get(column, column) for column in COLUMNS}
    required = _fitting(source, table, names)
    ours = {names[column]: column for column in (*required, *([OPTIONAL] if "query" in required else []))}
    if source.group:
        if source.group not in table.columns:
            raise NexusError(
                f"{source.path} has no column {source.group!r} (group in [[data]])"
                f"{nearest_column([source.group], table.columns)} found: "
                f"{shown_columns(table.columns)}"
            )
        names["group"] = source.group
    rows, problems = list[Row](), list(table.problems)
    for record in table.records:
        values = {ours[name]: value for name, value in record.values.items() if name in ours}
        if source.group:
            values["group"] = record.values.get(source.group)
        fields = Fields(values, names, source.encoding, source.score_max, source.path, record.line)
        try:
            rows.append(KINDS[required](fields))
        except BadField as bad:
            problems.append(RowProblem(source.path, record.line, bad.column, bad.reason))
    off = sum(problem.reason == outside(source.score_max) for problem in problems)
    if off > len(rows):  # then the range is wrong, and the scores that do fit mean something else
        raise NexusError(f"{source.path}: {off} of {off + len(rows)} rows: {outside(source.score_max)}")
    return _Part(rows, sorted(problems, key=lambda problem: problem.line))


def _fitting(source: DataSource, table: Table, names: dict[str, str]) -> tuple[str, ...]:
    """The required columns of the kind that most rows are; NexusError where the file has those of no kind."""
    files = {required: [names[column] for column in required] for required in KINDS}
    there = [required for required in KINDS if set(files[required]) <= set(table.columns)]
    if not there:
        missing = [name for name in names.values() if name not in table.columns]
        raise NexusError(
            f"{source.path}: its columns ({shown_columns(table.columns)}) fit none of: "
            f"{ACCEPTED}{nearest_column(missing, table.columns)} name them with columns = "
            '{ query = "the file\'s name" }; a table needs a header line'
        )
    return max(there, key=lambda kind: sum(record.values.keys() >= set(files[kind]) for record in table.records))


def _together(parts: dict[str, _Part]) -> SiteRows:
    """Rows of all sources: exact duplicates once, and of two labels for one text the first."""
    rows, labelled = dict[tuple[object, ...], Row](), dict[str, Utterance]()
    problems, counts, duplicates = list[RowProblem](), dict[str, int](), 0
    for name, part in parts.items():
        problems += part.problems
        before = len(rows)
        for row in part.rows:
            if isinstance(row, Utterance) and (other := labelled.setdefault(row.text, row)).label != row.label:
                reason = f"differs from the label of the same text in {other.file} line {other.line}"
                problems.append(RowProblem(row.file, row.line, "label", reason))
            elif row.key in rows:
                duplicates += 1
            else:
                rows[row.key] = row
        counts[name] = len(rows) - before
    kept = rows.values()
    return SiteRows(
        pairs=tuple(row for row in kept if isinstance(row, Pair)),
        scored=tuple(row for row in kept if isinstance(row, Scored)),
        utterances=tuple(row for row in kept if isinstance(row, Utterance)),
        problems=tuple(problems),
        counts=counts,
        duplicates=duplicates,
        sections_split=sum(part.sections_split for part in parts.values()),
    )
