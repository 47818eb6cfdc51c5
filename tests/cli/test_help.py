"""Both programs' help: commands in the order in which people meet them, an example each, code 2 for the rest."""

import re
from collections.abc import Callable

import pytest
from nexus_client.cli import main as client
from nexus_server.cli import main as server

Main = Callable[[list[str]], int]
COMMANDS = {
    server: [
        "init",
        "invite",
        "sites",
        "plan",
        "train",
        "stop",
        "status",
        "models",
        "report",
        "check",
        "backup",
        "restore",
        "audit",
        "revoke",
        "rotate-ca",
    ],
    client: [
        "join",
        "check",
        "unit",
        "preview",
        "status",
        "plan",
        "evaluate",
        "use",
        "export",
        "index",
        "search",
        "serve",
        "train",
        "dry-run",
        "report",
        "bench",
        "audit",
        "backup",
        "restore",
        "pause",
        "resume",
        "leave",
    ],
}
BELOW = {
    server: ["plan new", "plan show", "plan propose", "plan status", "models rollback", "models withdraw"],
    client: ["plan show", "plan approve", "plan withdraw"],
}
EACH = [(main, command) for main in COMMANDS for command in [*COMMANDS[main], *BELOW[main]]]
NAMES = {server: "nexus-server", client: "nexus-client"}
programs = pytest.mark.parametrize("main", COMMANDS, ids=NAMES.get)


def name(value: object) -> str:
    return NAMES.get(value, str(value))


@programs
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_the_commands_in_their_order(main: Main, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    listed = capsys.readouterr().out.split("Commands:\n")[1]
    assert re.findall(r"^  ([\w-]+)", listed, re.MULTILINE) == COMMANDS[main]


@programs
def test_help_says_what_the_program_does_without_a_command(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "Without a command it runs" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("main", "command"), EACH, ids=name)
def test_every_command_has_an_example_that_begins_with_the_program(
    main: Main, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = "".join(capsys.readouterr().out.split())  # however narrow the window that wraps it
    example = "Example:" + NAMES[main] + command.replace(" ", "")
    assert example in text


@pytest.mark.parametrize(("main", "command"), EACH, ids=name)
def test_an_unknown_option_ends_with_2(main: Main, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


@programs
@pytest.mark.parametrize("argv", [["nonsense"], ["--nonsense"], ["--home"], ["status", "nonsense"]], ids=" ".join)
def test_what_is_no_command_ends_with_2(main: Main, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: ")
