"""A short run of chaos; ``make chaos SECONDS=1800`` is the long one."""

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes


@pytest.mark.long
@pytest.mark.timeout(400)
def test_half_a_minute_of_chaos_loses_nothing() -> None:
    command = [sys.executable, "-m", "tests.chaos.chaos", "--seconds", "30", "--seed", "11"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search("([0-9]+) kills and cuts, and all of it held", done.stdout)
    assert found, done.stdout
    assert int(found[1]) >= 5
