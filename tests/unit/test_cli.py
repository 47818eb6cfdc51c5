"""What both command lines share: options anywhere, exit codes, tables and times as people read them."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
import typer
from nexus_common.cli import (
    AnywhereOptions,
    HomeOption,
    JsonOption,
    Options,
    ago,
    harmless,
    moment,
    options,
    run_cli,
    show,
    table,
)
from nexus_common.errors import NexusError

app = typer.Typer(cls=AnywhereOptions, rich_markup_mode=None, add_completion=False)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    home: HomeOption = None,
    site: Annotated[str | None, typer.Option("--site")] = None,
    as_json: JsonOption = False,
) -> None:
    """Example: demo"""
    context.obj = Options(home, as_json, site)


@app.command()
def tell(context: typer.Context, words: list[str]) -> None:
    given = options(context)
    show(context, {"home": given.home and str(given.home), "site": given.site, "words": words}, "as text")


@app.command()
def fail(context: typer.Context, how: str) -> None:
    raise {"nexus": NexusError("cause; remedy"), "keys": KeyboardInterrupt(), "pipe": BrokenPipeError()}[how]


def run(*argv: str) -> int:
    return run_cli(app, "demo", list(argv))


ALL = ["--home", "/h", "--site", "a", "--json", "tell", "x"]


@pytest.mark.parametrize(
    "argv",
    [
        ALL,
        ["tell", "x", *ALL[:5]],
        ["--json", "tell", "--site", "a", "x", "--home", "/h"],
        ["tell", "--home=/h", "x", "--json", "--site=a"],
    ],
    ids=" ".join,
)
def test_options_may_stand_anywhere(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 0
    assert json.loads(capsys.readouterr().out) == {"home": "/h", "site": "a", "words": ["x"]}


def test_what_stands_behind_two_dashes_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "tell", "--", "--home", "--json") == 0
    assert json.loads(capsys.readouterr().out)["words"] == ["--home", "--json"]


def test_text_is_printed_where_json_is_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tell", "x") == 0
    assert capsys.readouterr().out == "as text\n"


@pytest.mark.parametrize("argv", [["nonsense"], ["tell"], ["tell", "x", "--nonsense"], ["tell", "x", "--home"]])
def test_wrong_usage_ends_with_2_and_says_why(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    assert "Usage: demo" in capsys.readouterr().err


def test_a_failure_ends_with_1_and_its_cause_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fail", "nexus") == 1
    assert capsys.readouterr() == ("", "demo: cause; remedy\n")


def test_ctrl_c_ends_with_130() -> None:
    assert run("fail", "keys") == 130


def test_a_reader_who_went_away_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        assert run("fail", "pipe") == 0


def test_help_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tell", "--help") == 0
    assert "Usage: demo tell" in capsys.readouterr().out


def test_options_without_the_callback_are_an_error_of_the_program() -> None:
    bare = typer.Typer()
    bare.command()(tell)
    with pytest.raises(RuntimeError, match="the callback did not set the options"):
        run_cli(bare, "bare", ["x"])


def test_a_table_is_plain_text_without_trailing_spaces() -> None:
    assert table(["site", "days"], [["hospital-a", "9"], ["b", "120"]], right=(1,)).splitlines() == [
        "site         days",
        "─" * 17,
        "hospital-a      9",
        "b             120",
    ]


def test_square_brackets_in_a_table_are_shown() -> None:
    assert "[red]x[/red]" in table(["a"], [["[red]x[/red]"]])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90, "1 min ago"), (3590, "59 min ago"), (5000, "1 h ago"), (3.5 * 86_400, "3 d ago"), (-3600, "0 s ago")],
)
def test_how_long_ago_is_told_in_the_largest_fitting_unit(seconds: float, text: str) -> None:
    assert ago(time.time() - seconds) == text


def test_what_never_happened_is_never() -> None:
    assert ago(None) == "never"


def test_a_moment_is_local_time_with_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert moment(1_780_000_000) == "2026-05-28 22:26"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_no_terminal_obeys_what_a_peer_has_worded() -> None:
    assert harmless("Kim\x1b[2J\u202egnp.exe\r\x9b1m") == "Kim\\x1b[2J\\u202egnp.exe\\r\\x9b1m"
    kept = "Müller, 2\xa0rows │ ok\n\tnext"
    assert harmless(kept) == kept
