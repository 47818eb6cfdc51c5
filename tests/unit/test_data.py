"""Files of rows: what is read, what is left out and why, what stops a site.  No message shows text."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nexus_client.data import DataSource, SiteRows, read_rows
from nexus_client.rows import MAX_CHARACTERS
from nexus_common.config import parse_toml
from nexus_common.errors import NexusError

SECRET = "Zacharias Quillfeather"
NO_TOKENIZER = Path("/nonexistent/tokenizer.json")


def read(folder: Path, name: str, **settings: Any) -> SiteRows:
    return read_rows([DataSource(path=name, **settings)], folder, NO_TOKENIZER)


def read_csv(folder: Path, text: str | bytes, **settings: Any) -> SiteRows:
    (folder / "faq.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(folder, "faq.csv", **settings)


def reasons(rows: SiteRows) -> list[tuple[int, str | None, str]]:
    return [(problem.line, problem.column, problem.reason) for problem in rows.problems]


def test_csv_pairs_are_read_with_negatives_and_normalised_white_space(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, 'query,passage,negative,id\n" a \t b ","c\nd",x,1\ne,f,,2\n')
    assert [(p.query, p.passage, p.negative, p.line) for p in rows.pairs] == [
        ("a b", "c d", "x", 2),
        ("e", "f", None, 4),
    ]
    assert rows.counts == {"faq.csv": 2}
    assert not rows.problems


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_delimiter_is_recognised(tmp_path: Path, mark: str) -> None:
    rows = read_csv(tmp_path, f'id{mark}query{mark}passage\n1{mark}"what, or; who|me"{mark}x\n')
    assert rows.pairs[0].query == "what, or; who|me"


def test_a_stated_delimiter_is_used(tmp_path: Path) -> None:
    assert read_csv(tmp_path, "query^passage\na^b\n", delimiter="^").pairs[0].passage == "b"


def test_jsonl_scores_are_scaled_by_score_max(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(
        '{"a": "x", "b": "y", "score": 4, "z": []}\n\n{"a": "x", "b": "w", "score": 2.5}\n'
    )
    assert [row.score for row in read(tmp_path, "s.jsonl", score_max=5).scored] == [0.8, 0.5]


def test_labels_may_be_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "u.jsonl").write_text('{"text": "lost my card", "label": 41}\n')
    assert read(tmp_path, "u.jsonl").utterances[0].label == "41"


def test_columns_map_our_names_to_the_files(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, "Frage,Antwort\na,b\n", columns={"query": "Frage", "passage": "Antwort"})
    assert rows.pairs[0].query == "a"


def test_a_named_group_column_is_the_group(tmp_path: Path) -> None:
    assert read_csv(tmp_path, "query,passage,topic\na,b,t1\n", group="topic").pairs[0].group == "t1"
    assert read_csv(tmp_path, "query,passage,topic\na,b,t1\n", group="query").pairs[0].group == "a"
    mapped = read_csv(tmp_path, "query,passage,topic\na,b,t1\n", columns={"query": "topic"}, group="query").pairs[0]
    assert (mapped.query, mapped.group) == ("t1", "a")


def test_a_row_without_a_group_is_left_out(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, "query,passage,topic\na,b,\nc,d,t1\n", group="topic")
    assert rows.count == 1
    assert reasons(rows) == [(2, "topic", "is empty")]


def test_a_group_column_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"no column 'topics'.*did you mean 'topic'"):
        read_csv(tmp_path, "query,passage,topic\na,b,t1\n", group="topics")


def test_a_broken_row_costs_no_other_row(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, 'query,passage\na,b\nc,d,e\n"open,f\ng,h\ni,\n"j" k,l\nm,n\n')
    assert [p.query for p in rows.pairs] == ["a", "g", "m"]
    found = {line: (column, reason) for line, column, reason in reasons(rows)}
    assert "3 columns, the header has 2" in found[3][1]
    assert "broken CSV" in found[4][1]
    assert found[6] == ("passage", "is empty")
    assert "broken CSV" in found[7][1]


def test_an_open_quote_at_the_end_is_reported_where_it_begins(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, 'query,passage\na,b\n"c,d\ne,f\n')
    assert [p.query for p in rows.pairs] == ["a", "e"]
    assert reasons(rows) == [(3, None, "broken CSV: unexpected end of data")]


def test_mixed_encodings_lose_only_the_rows_that_do_not_decode(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, "query,passage\nfür,b\n".encode() + "Größe,c\n".encode("cp1252") + b"d,e\n")
    assert [p.query for p in rows.pairs] == ["für", "d"]
    ((line, column, reason),) = reasons(rows)
    assert (line, column) == (3, "query")
    assert 'encoding = "cp1252"' in reason


def test_bytes_in_ignored_columns_do_not_matter(tmp_path: Path) -> None:
    assert not read_csv(tmp_path, b"query,passage,note\na,b,\xe4\n").problems


def test_cp1252_is_read_where_it_is_declared(tmp_path: Path) -> None:
    assert read_csv(tmp_path, "query,passage\nGröße,€\n".encode("cp1252"), encoding="cp1252").pairs[0].query == "Größe"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_decides(tmp_path: Path, encoding: str) -> None:
    rows = read_csv(tmp_path, "query,passage\nGröße,b\n".encode(encoding), encoding="cp1252")
    assert rows.pairs[0].query == "Größe"


def test_utf16_without_a_mark_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match='set encoding = "utf-16-le"'):
        read_csv(tmp_path, "query,passage\na,b\n".encode("utf-16-le"))
    assert read_csv(tmp_path, "query,passage\na,b\n".encode("utf-16-le"), encoding="utf-16-le").count == 1


def test_damaged_utf16_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match="not valid utf-16-le at byte 30; convert it to UTF-8"):
        read_csv(tmp_path, "query,passage\na".encode("utf-16") + b"\x00")


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ("NUL\0,b", "query", "NUL character"),
        ("a," + "x" * (MAX_CHARACTERS + 1), "passage", "is 100001 characters long, more than 100000"),
        ("a,\u00a0 ", "passage", "is empty"),
    ],
)
def test_unusable_fields_are_left_out(tmp_path: Path, row: str, column: str, reason: str) -> None:
    rows = read_csv(tmp_path, f"query,passage\n{row}\nc,d\n")
    assert rows.count == 1
    assert rows.problems[0].column == column
    assert reason in rows.problems[0].reason


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        ("nan", "not a finite number"),
        ("inf", "not a finite number"),
        ("0,7", "decimals need a point"),
        ("4.5", "set score_max = 5"),
        ("-0.1", "score is outside 0 to 1"),
        ("", "is not a number"),
    ],
)
def test_unusable_scores_are_left_out(tmp_path: Path, score: str, reason: str) -> None:
    rows = read_csv(tmp_path, f'a,b,score\nx,y,0.5\nx,z,1\nx,w,"{score}"\n')
    assert rows.count == 2
    assert rows.problems[0].column == "score"
    assert reason in rows.problems[0].reason


def test_a_file_whose_scores_mostly_exceed_the_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"3 of 4 rows: score is outside 0 to 1; set score_max = 5"):
        read_csv(tmp_path, "a,b,score\nx,y,0.5\nx,z,3\nx,w,5\nx,v,2\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"query": "a"', "not valid JSON at character 14"),
        ('["a", "b"]', "a JSON list, not an object"),
        ('{"query": "a", "passage": 7}', "is int, not text"),
        ('{"query": "a", "passage": null}', "is missing"),
        ('{"query": "a"}', "is missing"),
        ('{"query": "a", "passage": "\\ud800"}', "not valid utf-8"),
        ("[" * 100_000, "not usable JSON (RecursionError)"),
        ('{"query": "a", "passage": ' + "1" * 5000 + "}", "not usable JSON (ValueError)"),
    ],
)
def test_unusable_jsonl_lines_are_left_out(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "q.jsonl").write_text(f'{{"query": "c", "passage": "d"}}\n{line}\n')
    rows = read(tmp_path, "q.jsonl")
    assert rows.count == 1
    assert reason in rows.problems[0].reason
    assert rows.problems[0].line == 2


def test_jsonl_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"query": "c\u2028e", "passage": "d"}\r\n', encoding="utf-8")
    assert read(tmp_path, "q.jsonl").pairs[0].query == "c e"


def test_parquet_with_nulls_and_wrong_types(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"query": ["a", None, "c"], "passage": ["x", "y", "z"], "n": [{"k": 1}] * 3}),
        tmp_path / "p.parquet",
    )
    rows = read(tmp_path, "p.parquet")
    assert [p.line for p in rows.pairs] == [1, 3]
    assert reasons(rows) == [(2, "query", "is missing")]
    pq.write_table(pa.table({"query": [1, 2], "passage": ["x", "y"]}), tmp_path / "p.parquet")
    with pytest.raises(
        NexusError,
        match=r"none of 2 rows is usable:\s+2 x column 'query' is int, not text \(first in line 1\)",
    ):
        read(tmp_path, "p.parquet")


def test_parquet_text_that_does_not_decode_is_left_out(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"\xe4"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"query": broken, "passage": ["x", "y"]}), tmp_path / "p.parquet")
    rows = read(tmp_path, "p.parquet")
    assert rows.count == 1
    assert reasons(rows)[0][:2] == (2, "query")


def test_parquet_scores_of_any_number_type(tmp_path: Path) -> None:
    score = pa.array([0.25, 0.5], pa.float32())
    pq.write_table(
        pa.table({"a": ["x", "y"], "b": ["z", "z"], "score": score.cast(pa.decimal128(4, 2))}),
        tmp_path / "p.parquet",
    )
    assert [row.score for row in read(tmp_path, "p.parquet").scored] == [0.25, 0.5]


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(NexusError, match=r"p.parquet is not a Parquet file"):
        read(tmp_path, "p.parquet")


def test_columns_that_fit_nothing_name_what_was_found_and_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(NexusError) as caught:
        read_csv(tmp_path, "qeury,answer\na,b\n")
    message = str(caught.value)
    for part in (
        "'qeury', 'answer'",
        "query, passage[, negative] | a, b, score | text, label",
        "did you mean 'qeury'",
        "columns = {",
    ):
        assert part in message


def test_parquet_columns_that_fit_nothing_are_named_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), tmp_path / "p.parquet")
    with pytest.raises(NexusError, match=r"'question', 'answer'\) fit none of"):
        read(tmp_path, "p.parquet")


def test_jsonl_rows_of_another_shape_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(
        '{"text": "a", "label": "b"}\n' + '{"query": "c", "passage": "d"}\n{"query": "e", "passage": "f"}\n'
    )
    rows = read(tmp_path, "q.jsonl")
    assert len(rows.pairs) == 2
    assert reasons(rows) == [(1, "passage", "is missing")]


def test_a_first_line_that_is_no_header_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"<22 characters>.*needs a header line") as caught:
        read_csv(tmp_path, f"{SECRET},has a broken leg\n{SECRET},again\n")
    assert "Quillfeather" not in str(caught.value)


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match="'query' stands twice"):
        read_csv(tmp_path, "query,query,passage\na,b,c\n")


def test_missing_sources_are_listed_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("query,passage\n")
    sources = [DataSource(path=name) for name in ("none.csv", "no-folder", "empty.csv", "letter.pdf")]
    (tmp_path / "letter.pdf").write_text("x")
    with pytest.raises(NexusError) as caught:
        read_rows(sources, tmp_path, NO_TOKENIZER)
    message = str(caught.value)
    assert "4 of 4 data sources" in message
    assert f"none.csv does not exist (looked for {tmp_path / 'none.csv'})" in message
    assert "no-folder does not exist" in message
    assert "empty.csv: none of 0 rows is usable" in message
    assert "letter.pdf: .pdf is not read; accepted: .jsonl" in message


def test_no_source_at_all_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(NexusError, match=r"add \[\[data\]\]"):
        read_rows([], tmp_path, NO_TOKENIZER)


def test_an_unreadable_file_says_what_to_look_at(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:  # nobody can open it as a file, not even root
        opened.bind(os.path.relpath(tmp_path / "faq.csv"))
        with pytest.raises(NexusError, match=r"faq.csv cannot be read: .*; give the account that runs nexus-client"):
            read(tmp_path, "faq.csv")


def test_duplicates_are_counted_once_across_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,passage\na,b\na,b\nc,d\n")
    (tmp_path / "b.csv").write_text("query,passage\na, b\ne,f\n")
    rows = read_rows([DataSource(path="a.csv"), DataSource(path="b.csv")], tmp_path, NO_TOKENIZER)
    assert (rows.count, rows.duplicates, rows.counts) == (3, 2, {"a.csv": 2, "b.csv": 1})


def test_one_text_with_two_labels_keeps_the_first(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, "text,label\nlost card,card\nlost card,loan\n")
    assert [u.label for u in rows.utterances] == ["card"]
    assert reasons(rows) == [(3, "label", "differs from the label of the same text in faq.csv line 2")]


def test_the_fingerprint_is_of_the_rows_alone(tmp_path: Path) -> None:
    first = read_csv(tmp_path, "query,passage\na,b\nc,d\n").fingerprint
    assert read_csv(tmp_path, "id;query;passage\n\n1;c;d\n2;a;b\n").fingerprint == first
    assert read_csv(tmp_path, "query,passage\na,b\nc,e\n").fingerprint != first


def test_no_message_carries_text_of_rows(tmp_path: Path) -> None:
    bad = [
        f'{{"query": "{SECRET}"',
        f'["{SECRET}"]',
        f'{{"query": "{SECRET}", "passage": ["{SECRET}"]}}',
        f'{{"query": "{SECRET}\\u0000", "passage": "x"}}',
        f'{{"{SECRET}": 1}}',
        f'"{SECRET}"',
    ]
    (tmp_path / "q.jsonl").write_text('{"query": "c", "passage": "d"}\n' + "\n".join(bad))
    problems = read(tmp_path, "q.jsonl").problems
    assert len(problems) == len(bad)
    assert not any("Quillfeather" in str(problem) for problem in problems)
    (tmp_path / "q.jsonl").write_text("\n".join(bad))
    with pytest.raises(NexusError) as caught:
        read(tmp_path, "q.jsonl")
    assert "Quillfeather" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('encoding = "utf-9"', "'utf-9' is no text encoding"),
        ('encoding = "base64"', "is no text encoding"),
        ('delimiter = ", "', "must be one character"),
        ('columns = { qeury = "Frage" }', "did you mean 'query'"),
        ("score_max = 0", "greater than 0"),
        ("score_max = inf", "finite"),
        ('pathh = "x"', "did you mean 'path'"),
    ],
)
def test_settings_are_checked(setting: str, message: str) -> None:
    with pytest.raises(NexusError, match=message):
        parse_toml(DataSource, f'path = "x"\n{setting}', "site.toml")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".md"]),
    st.sampled_from([b"", b"query,passage\n", b'{"query": "a", "passage": "b"}\n', b"# t\n\nx\n\n## "]),
    st.binary(max_size=200),
)
def test_any_bytes_are_rows_or_a_clear_error(tmp_path: Path, suffix: str, start: bytes, rest: bytes) -> None:
    (tmp_path / f"f{suffix}").write_bytes(start + rest)
    try:
        rows = read(tmp_path, f"f{suffix}")
    except NexusError as error:
        assert len(str(error)) < 3000
    else:
        assert rows.count > 0
        json.dumps(rows.fingerprint)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.sampled_from("a,;\t\"\n\r{}[]:'\\0 q"), max_size=60))
def test_any_quoting_is_rows_or_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "f.csv").write_bytes(b"query,passage\nfine,row\n" + text.encode())
    rows = read(tmp_path, "f.csv")
    assert rows.pairs[0].query == "fine"


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "faq.csv")
    with pytest.raises(NexusError, match="is a pipe or a device"):
        read_rows([DataSource(path="faq.csv")], tmp_path, tmp_path)
    (tmp_path / "handbook").mkdir()
    os.mkfifo(tmp_path / "handbook" / "a.md")
    with pytest.raises(NexusError, match="holds no"):
        read_rows([DataSource(path="handbook")], tmp_path, tmp_path)


@pytest.mark.timeout(60)
def test_a_file_of_broken_lines_alone_takes_no_time_that_grows_with_their_square(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text("query,passage\nwhere,here\n" + '"a"b,c\n' * 200_000)
    assert len(read_rows([DataSource(path="faq.csv")], tmp_path, tmp_path).problems) == 200_000
