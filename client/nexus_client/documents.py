"""Folders of .txt and .md documents as rows: titles and headings become questions, their sections passages.

markdown-it-py finds the headings; a heading too short or too common to be asked by itself is joined with its
document's title.  Sections longer than the encoder reads are split at sentence ends, so that nothing of them
is lost unseen.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, NoReturn

from markdown_it import MarkdownIt
from markdown_it.token import Token
from nexus_common.errors import NexusError

from nexus_client.rows import BadField, Pair, RowProblem, checked, decoded
from nexus_client.tables import TABLE_SUFFIXES, read_text

DOCUMENT_SUFFIXES: Final = (".txt", ".md", ".markdown")
MAX_PIECES: Final = 256
"""Word pieces that the base model reads, its two marks at the ends among them."""
MARKS: Final = 2
WORDS_OF_A_QUESTION: Final = 3
_FRONT_MATTER: Final = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)
_BLANK_LINES: Final = re.compile(r"\n\s*\n")
_MARKDOWN: Final = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Documents:
    """Rows from documents, what was left out, how many documents, and how many sections were split."""

    rows: list[Pair]
    problems: list[RowProblem]
    files: int
    sections_split: int


@dataclass(frozen=True)
class _Section:
    file: str
    line: int
    title: str
    heading: str
    blocks: tuple[str, ...]


def read_documents(path: Path, name: str, encoding: str, tokenizer: Path) -> Documents:
    """All documents of a folder (or the one named).  ``tokenizer`` is the base model's tokenizer.json.

    Hidden files and folders are left out.  Raises NexusError where there is no document, and OSError.
    """
    files = (
        {f"{name}/{file.relative_to(path).as_posix()}": file for file in documents_in(path)}
        if path.is_dir()
        else {name: path}
    )
    if not files:
        raise NexusError(
            f"{name} holds no .txt or .md documents; PDF and Word are converted beforehand, and "
            f"tables ({', '.join(TABLE_SUFFIXES)}) are named one by one"
        )
    problems = list[RowProblem]()
    sections = [
        section for file, at in files.items() for section in _sections(read_text(at, file, encoding), file, problems)
    ]
    common = {heading for heading, n in Counter(s.heading.casefold() for s in sections).items() if n > 1}
    splitter = cache(lambda: _splitter(tokenizer))
    rows, split = list[Pair](), 0
    for section in sections:
        try:
            query = checked(_question(section, common), "heading", encoding)
            whole, passages = _passages(section, encoding, splitter)
        except BadField as bad:
            problems.append(RowProblem(section.file, section.line, bad.column, bad.reason))
            continue
        rows += [Pair(query, passage, None, whole, section.file, section.line, heading=True) for passage in passages]
        split += len(passages) > 1
    return Documents(rows, problems, len(files), split)


def documents_in(folder: Path) -> list[Path]:
    """All of a folder's documents, hidden ones left out; OSError where a folder cannot be read."""
    found = list[Path]()
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        here = (Path(parent) / one for one in sorted(files) if not one.startswith("."))
        found += [one for one in here if one.suffix.lower() in DOCUMENT_SUFFIXES and one.is_file()]
    return found


def _raise(problem: OSError) -> NoReturn:
    raise problem


def _sections(text: str, file: str, problems: list[RowProblem]) -> list[_Section]:
    """The sections that hold text; a file with NUL characters is reported whole."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (at := text.find("\0")) >= 0:
        problems.append(
            RowProblem(file, text.count("\n", 0, at) + 1, None, "holds a NUL character: not a text document")
        )
        return []
    parts = list(_markdown(text)) if Path(file).suffix.lower() != ".txt" else []
    title = next((heading for _, heading, _ in parts if heading), None)
    if title is None:  # plain text, or Markdown without a heading: the first line is the title
        first, _, rest = text.lstrip().partition("\n")
        title, line = first, text.count("\n", 0, len(text) - len(text.lstrip())) + 1
        parts = [(line, first, _BLANK_LINES.split(rest))]
    found = list[_Section]()
    for line, heading, blocks in parts:
        words = tuple(" ".join(block.split()) for block in blocks)
        if any(words):
            found.append(_Section(file, line, title, heading or title, tuple(block for block in words if block)))
    return found


def _markdown(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """(line, heading, blocks of plain text) for the part before the first heading (heading "") and for each
    section.

    HTML blocks and comments are left out.
    """
    text = _FRONT_MATTER.sub(lambda found: "\n" * found[0].count("\n"), text)
    line, heading, blocks = 1, "", list[str]()
    tokens = _MARKDOWN.parse(text)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before and before.type == "heading_open" and before.level == 0:
            yield line, heading, blocks
            line, heading, blocks = (before.map or [0])[0] + 1, _plain(token), []
        elif token.type == "inline":
            blocks.append(_plain(token))
        elif token.type in {"fence", "code_block"}:
            blocks.append(token.content)
    yield line, heading, blocks


def _plain(inline: Token) -> str:
    parts = (
        " " if one.type in {"softbreak", "hardbreak"} else one.content
        for one in inline.children or ()
        if one.type != "html_inline"
    )
    return " ".join("".join(parts).split())


def _question(section: _Section, common: set[str]) -> str:
    alone = len(section.heading.split()) >= WORDS_OF_A_QUESTION and section.heading.casefold() not in common
    return section.heading if alone or section.heading == section.title else f"{section.title}: {section.heading}"


def _passages(
    section: _Section, encoding: str, splitter: Callable[[], Callable[[str], list[str]]]
) -> tuple[str, list[str]]:
    """The section's whole text, and the passages it gives."""
    text = decoded("\n\n".join(section.blocks), "section", encoding)
    fits = len(text) <= MAX_PIECES - MARKS  # a piece has at least one character
    parts = [text] if fits else splitter()(text)
    return " ".join(section.blocks), [checked(part, "section", encoding) for part in parts]


def _splitter(tokenizer: Path) -> Callable[[str], list[str]]:
    from semantic_text_splitter import TextSplitter  # noqa: PLC0415  only where a section is long
    from tokenizers import Tokenizer  # noqa: PLC0415

    try:
        pieces = Tokenizer.from_file(str(tokenizer))
    except Exception as problem:  # noqa: BLE001  the library raises just that
        raise NexusError(f"the base model's {tokenizer} cannot be read: {problem}; check base_model") from None
    pieces.no_truncation()  # or long sections would count as short
    pieces.no_padding()
    found: Callable[[str], list[str]] = TextSplitter.from_huggingface_tokenizer(pieces, MAX_PIECES - MARKS).chunks
    return found
