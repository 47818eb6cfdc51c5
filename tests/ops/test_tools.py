"""What the tests here rely on: a missing program is told by name, and `make test-ops` takes no skip for a success."""

import os
import subprocess
import sys

import pytest

from tests.ops.tools import ROOT, tool

SKIPPED = "tests/ops/test_tools.py::test_a_missing_program_is_told_with_its_package"


def test_a_missing_program_is_told_with_its_package() -> None:
    if "PYTEST_SKIP_HERE" in os.environ:
        tool("no-such-program", "some-package")
    with pytest.raises(pytest.skip.Exception, match=r"^no-such-program .* \(apt-get install some-package\)$"):
        tool("no-such-program", "some-package")


def test_a_skip_is_a_failure_where_nothing_may_be_skipped() -> None:
    environment = os.environ | {"PYTEST_SKIP_HERE": "1", "NEXUS_OPS_NO_SKIPS": "1"}
    alone = ["-m", "ops", "-p", "no:cacheprovider", "--confcutdir=tests/ops"]
    command = [sys.executable, "-m", "pytest", *alone, SKIPPED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "skipped, and `make test-ops` runs all" in done.stdout
    assert "no-such-program is not installed (apt-get install some-package)" in done.stdout
