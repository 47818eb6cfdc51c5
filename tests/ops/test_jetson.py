"""The script for a Jetson: what it has a container engine do, asked of one that only repeats it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ops.tools import DEPLOY, tool

SCRIPT = DEPLOY / "jetson/nexus-jetson.sh"


def run(*arguments: str | Path, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(script), *map(str, arguments)],
        env=os.environ | {"DOCKER": "echo"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([tool("shellcheck", "shellcheck"), str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("command", "settings", "end"),
    [
        (["start", "a", "DATA"], "ro", "nexus-client --site a"),
        (["search", "a", "DATA"], "ro", "nexus-client --site a serve"),
        (["do", "a", "DATA", "plan", "show"], "rw", "nexus-client --site a plan show"),
    ],
)
def test_only_a_command_of_the_people_may_write_the_settings(
    tmp_path: Path, command: list[str], settings: str, end: str
) -> None:
    (tmp_path / "a folder").mkdir()
    done = run(*(tmp_path / "a folder" if one == "DATA" else one for one in command))
    assert done.returncode == 0 and done.stdout.startswith("run "), done.stderr
    assert done.stdout.rstrip().endswith(end)
    for part in ("--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", f"{tmp_path}/a folder:/data:ro",
                 f"nexus-a-settings:/etc/nexus:{settings} "):  # fmt: skip
        assert part in done.stdout


def test_an_image_is_made_of_a_clone_and_without_one_that_is_said(tmp_path: Path) -> None:
    assert run("build").stdout.startswith(f"build --file {DEPLOY}/docker/client.Dockerfile")
    in_a_bundle = tmp_path / "deploy" / "jetson" / SCRIPT.name
    in_a_bundle.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, in_a_bundle)
    done = run("build", script=in_a_bundle)
    assert (done.returncode, done.stdout) == (1, "")
    assert "from a clone of the repository" in done.stderr


def test_text_that_is_not_there_starts_nothing(tmp_path: Path) -> None:
    done = run("start", "a", tmp_path / "gone")
    assert (done.returncode, done.stdout) == (1, "")
    assert "gone does not exist" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["start", "a"], ["do", "a", "b"], ["nonsense"]], ids=" ".join)
def test_what_is_no_command_ends_with_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and "nexus-jetson.sh build" in done.stderr
