import os

import pytest
from nexus_common import layout


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter of 2,352 parameters, and processes that die but no disk that does: faster, and the same otherwise."""
    monkeypatch.setattr(layout, "WIDTH", 48)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
