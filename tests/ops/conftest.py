"""All tests here are ``ops``.  Those that are ``processes`` too are left to ``make test-ops``, where a skip fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ops.tools import NO_SKIPS

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest looks at marks for `-m ops`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker("ops")
        if not NO_SKIPS and item.get_closest_marker("processes"):
            item.add_marker(pytest.mark.skip(reason="it starts processes: `make test-ops` runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    if NO_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, and `make test-ops` runs all: {report.longrepr}"
    return report
