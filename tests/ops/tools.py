"""Programs beside Python with which tests look at what ``deploy/`` ships."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
NO_SKIPS = os.environ.get("NEXUS_OPS_NO_SKIPS") == "1"  # `make test-ops` sets it

only_test_ops = pytest.mark.skipif(not NO_SKIPS, reason="it needs a package registry: `make test-ops` runs it")


def tool(name: str, package: str) -> str:
    """Where a program is; without it the test that asks is skipped, with the Debian package that has it."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return path


def told(*command: str | Path, cwd: Path | None = None) -> str:
    """What a program prints; the test fails with all of it where the program does."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout
