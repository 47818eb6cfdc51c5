import os
from collections.abc import Iterator

import pytest
from nexus_common import layout
from nexus_common.stages import stages_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: they wait more than they work, and at the end one worker would wait alone."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An adapter of 2,352 parameters, and processes that die but no disk that does: faster, and the same otherwise."""
    monkeypatch.setattr(layout, "WIDTH", 48)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    stages_of.cache_clear()  # it holds layouts of the usual width
    yield
    stages_of.cache_clear()
