"""What a site's search covers: every distinct passage of its text, with where it stands.

Passages and negatives of pairs, both texts of scored pairs, utterances; questions are not searched.  As private as the
files that they come from.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nexus_client.data import DataSource, SiteRows
from nexus_client.documents import documents_in
from nexus_client.rows import Pair, Row, Scored


@dataclass(frozen=True)
class Passage:
    """One text, the file and line where it stood first, and the heading of its section ("" in a table)."""

    text: str
    file: str
    line: int
    section: str


def passages_of(rows: SiteRows) -> list[Passage]:
    """Every distinct text that search can find, in the order of the files."""
    found = dict[str, Passage]()
    for row in rows.every:
        for passage in _passages(row):
            found.setdefault(passage.text, passage)
    return list(found.values())


def _passages(row: Row) -> Iterator[Passage]:
    section = row.query if isinstance(row, Pair) and row.heading else ""
    if isinstance(row, Pair):
        texts = [row.passage, *([row.negative] if row.negative else [])]
    else:
        texts = [row.a, row.b] if isinstance(row, Scored) else [row.text]
    return (Passage(text, row.file, row.line, section) for text in texts)


def stamp(sources: Sequence[DataSource], folder: Path) -> str:
    """Changes whenever a file of the site's text does, found without reading any; ``folder`` is that of site.toml."""
    named = hashlib.sha256(b"nexus corpus 1\n")
    for source in sources:
        path = folder / Path(source.path).expanduser()
        named.update(source.model_dump_json().encode() + b"\n")
        for file in documents_in(path) if path.is_dir() else [path]:
            try:
                found = file.stat()
                facts: list[object] = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
            except OSError:
                facts = []  # reading it will say why
            named.update(json.dumps([str(file.relative_to(path)), *facts]).encode() + b"\n")
    return named.hexdigest()
