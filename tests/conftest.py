import fcntl
import os
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
from nexus_client.encoder_file import encoder_file
from nexus_client.site import default_base
from nexus_common import layout
from nexus_common.base_model import base_hash
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


@pytest.fixture(scope="session")
def graphs(pytestconfig: pytest.Config) -> Path:
    """The encoder's graphs, made once (20 s) for all tests to come; a site's ``state/onnx`` can be a link to the
    parent."""
    assert pytestconfig.cache is not None
    root = pytestconfig.cache.mkdir("onnx")
    made_by = [Path(encoder_file.__code__.co_filename).read_text(), *map(version, ("torch", "transformers", "onnx"))]
    folder = root / sha256("\n".join(made_by).encode()).hexdigest()[:8] / base_hash(default_base())[:16]
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        encoder_file(default_base(), folder, "int8")
    return folder
