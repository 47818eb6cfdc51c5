"""Folders of documents: headings become questions, their sections passages."""

from pathlib import Path

import pytest
from nexus_client.data import DataSource, SiteRows, read_rows
from nexus_client.documents import MAX_PIECES
from nexus_client.embed import default_base
from nexus_common.errors import NexusError
from tokenizers import Tokenizer

TOKENIZER = default_base() / "tokenizer.json"


def read(folder: Path, **files: str | bytes) -> SiteRows:
    for name, content in files.items():
        path = folder / "docs" / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows([DataSource(path="docs")], folder, TOKENIZER)


def found(rows: SiteRows) -> list[tuple[str, str]]:
    return [(pair.query, pair.passage) for pair in rows.pairs]


def test_headings_ask_and_sections_answer(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        a_md="""---
author: nobody
---
# Going home after *surgery*

Bring your `card`.
Wait for the [letter](https://example.org).

## Overview
- one <b>item</b>
- another

## Empty

## How do I get my results?

| when | where |
|---|---|
| Monday | desk |

```
# no heading
```
""",
    )
    assert found(rows) == [
        ("Going home after surgery", "Bring your card. Wait for the letter."),
        ("Going home after surgery: Overview", "one item another"),
        ("How do I get my results?", "when where Monday desk # no heading"),
    ]
    assert [pair.line for pair in rows.pairs] == [4, 9, 15]
    assert all(pair.heading for pair in rows.pairs)
    assert rows.counts == {"docs": 3}


def test_the_first_line_of_plain_text_is_its_title(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        a_txt="\n  Visiting hours on the ward \r\n\r\nFrom two\r\nto four.\r\n\r\nNot on Sunday.\r\n",
    )
    assert found(rows) == [("Visiting hours on the ward", "From two to four. Not on Sunday.")]
    assert rows.pairs[0].line == 2


def test_markdown_without_headings_is_read_as_plain_text(tmp_path: Path) -> None:
    assert found(read(tmp_path, a_md="Lost card hotline\n\nCall us.")) == [("Lost card hotline", "Call us.")]


def test_text_before_the_first_heading_belongs_to_the_title(tmp_path: Path) -> None:
    rows = read(tmp_path, a_md="Valid from May.\n\n# Fees for foreign transfers\n\nFive euros.")
    assert found(rows) == [
        ("Fees for foreign transfers", "Valid from May."),
        ("Fees for foreign transfers", "Five euros."),
    ]


def test_a_heading_that_many_documents_share_is_joined_with_the_title(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        a_md="# About hip pain\n## When to call us\nAt night.",
        b_md="# About gout\n## When to call us\nNever.",
    )
    assert [pair.query for pair in rows.pairs] == [
        "About hip pain: When to call us",
        "About gout: When to call us",
    ]


def test_folders_are_read_to_the_bottom_without_hidden_ones(tmp_path: Path) -> None:
    rows = read(tmp_path, ward__b_md="# Title one here\nx", a_txt="Title two\ny", c_pdf="no")
    hidden = tmp_path / "docs" / ".git"
    hidden.mkdir()
    (hidden / "d.md").write_text("# Hidden\nz")
    assert [pair.file for pair in read(tmp_path).pairs] == ["docs/a.txt", "docs/ward/b.md"]
    assert rows.count == 2


def test_long_sections_are_split_at_sentence_ends(tmp_path: Path) -> None:
    text = " ".join(f"Patient {number} reports chest pain that goes away at rest." for number in range(60))
    rows = read(tmp_path, a_md=f"# A long section here\n{text}\n# A short section here\nOne sentence.")
    long = [pair for pair in rows.pairs if pair.query.startswith("A long")]
    count = Tokenizer.from_file(str(TOKENIZER))
    count.no_truncation()
    count.no_padding()
    assert rows.sections_split == 1
    assert len(long) >= 3
    assert all(pair.passage.endswith("rest.") for pair in long)
    assert all(len(count.encode(pair.passage).ids) <= MAX_PIECES for pair in long)
    assert len({pair.group for pair in long}) == 1, "a section stays on one side of the hold-out"


def test_mixed_encodings_lose_only_their_section(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        a_md="# What is the größe\nfür\n".encode()
        + "# And the second one\nGröße\n# The third is fine\nx".encode("cp1252"),
    )
    assert [pair.query for pair in rows.pairs] == ["What is the größe", "The third is fine"]
    ((problem),) = rows.problems
    assert (problem.file, problem.line, problem.column) == ("docs/a.md", 3, "section")
    assert 'encoding = "cp1252"' in problem.reason


def test_a_document_with_nul_is_left_out_whole(tmp_path: Path) -> None:
    rows = read(tmp_path, a_txt="Title\ntext", b_txt=b"Title\n\nbin\0ary")
    assert rows.count == 1
    assert str(rows.problems[0]) == "docs/b.txt line 3: holds a NUL character: not a text document"


def test_a_folder_without_documents_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"docs holds no .txt or .md documents; PDF and Word.*\.csv.*one by one"):
        read(tmp_path, a_csv="query,passage\na,b")


def test_documents_without_sections_say_so(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"docs: none of 2 document\(s\) has a title or heading with text below"):
        read(tmp_path, a_txt="Only a title", b_md="# Nothing\n## Below")


def test_groups_and_columns_are_for_tables(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Title\nx")
    with pytest.raises(NexusError, match="group and columns are for tables"):
        read_rows([DataSource(path="a.md", group="topic")], tmp_path, TOKENIZER)


def test_a_missing_tokenizer_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Title\n" + "word " * 500)
    with pytest.raises(NexusError, match="check base_model"):
        read_rows([DataSource(path="a.md")], tmp_path, tmp_path / "tokenizer.json")
