"""The systemd units as systemd reads them: no mistake in them, and little that they leave open."""

import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.ops.tools import DEPLOY, tool

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MOST_EXPOSED = 2.0  # of 10


@pytest.fixture
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit under the name of an instance; its program is one that every machine has."""
    shipped: Path = request.param
    made = tmp_path / shipped.name.replace("@.", "@hospital-a.")
    shutil.copy(shipped, tmp_path / shipped.name)
    text = shipped.read_text()
    assert "ExecStart=/opt/nexus/bin/nexus-" in text
    made.write_text(text.replace("ExecStart=/opt/nexus/bin/nexus-client", "ExecStart=/bin/true").replace(
        "ExecStart=/opt/nexus/bin/nexus-server", "ExecStart=/bin/true"))  # fmt: skip
    return made


each = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name, indirect=True)


def test_there_are_units_for_server_agent_and_search() -> None:
    assert [path.name for path in UNITS] == ["nexus-client@.service", "nexus-serve@.service", "nexus-server.service"]


@each
def test_systemd_finds_no_mistake(unit: Path) -> None:
    verify = [tool("systemd-analyze", "systemd"), "verify", "--man=no", str(unit)]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_program_that_a_late_network_ends_is_started_again_for_ever(path: Path) -> None:
    unit = ConfigParser(strict=False, interpolation=None)  # the same key may stand there twice
    unit.read_string(path.read_text())
    assert (unit["Unit"]["StartLimitIntervalSec"], "StartLimitBurst" in unit["Unit"]) == ("0", False)
    assert (unit["Service"]["Restart"], unit["Service"]["RestartSec"]) == ("on-failure", "30")


@each
def test_little_is_left_open(unit: Path) -> None:
    score = [tool("systemd-analyze", "systemd"), "security", "--offline=true", "--no-pager",
             f"--threshold={MOST_EXPOSED * 10:.0f}", str(unit)]  # fmt: skip
    done = subprocess.run(score, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout
