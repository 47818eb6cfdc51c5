"""The runbook has a section for each alert and for nothing else, and the commands in it exist."""

import re

import click
import pytest
import typer
from nexus_client import cli as client
from nexus_server import cli as server

from tests.ops.shipped import RULES, alerts
from tests.ops.tools import DEPLOY

TEXT = (DEPLOY / "README.md").read_text()
SECTIONS = dict(re.findall(r"^### (Nexus\w+)\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL))
PROGRAMS = {"nexus-server": server.app, "nexus-client": client.app}
COMMANDS = sorted(set(re.findall(r"`(nexus-(?:server|client)(?: [^`]+)?)`", re.sub(r"\s+", " ", TEXT))))


def test_each_alert_has_its_section_in_the_order_of_the_rules_and_each_section_its_alert() -> None:
    assert list(SECTIONS) == [name for file in RULES for name in alerts(file)]


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_says_what_the_alert_means_and_then_what_to_do(name: str) -> None:
    meaning, *steps = re.split(r"^\d\. ", SECTIONS[name], flags=re.MULTILINE)
    assert meaning.strip().startswith("*")
    assert steps or "`nexus-" in meaning
    assert "`" in SECTIONS[name], "no command"


@pytest.mark.parametrize("text", COMMANDS)
def test_a_command_in_it_exists_with_these_options(text: str) -> None:
    program, *words = text.split()
    command: click.Command = typer.main.get_command(PROGRAMS[program])
    known = {name for parameter in command.params for name in parameter.opts}
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
        known |= {name for parameter in command.params for name in parameter.opts}
    options = [word for word in words if word.startswith("-")]
    assert set(options) <= known
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    values = sum(not word.startswith("-") for word in words) - sum(_takes_a_value(command, one) for one in options)
    assert values <= len(arguments), f"{text}: what is {words}?"
    assert not isinstance(command, click.Group) or command.invoke_without_command, f"{text} is not a whole command"


def _takes_a_value(command: click.Command, option: str) -> bool:
    return any(option in one.opts and isinstance(one, click.Option) and not one.is_flag for one in command.params)


def test_the_commands_were_found() -> None:
    assert {"nexus-server status", "nexus-client audit --verify --from HEAD"} <= set(COMMANDS)
