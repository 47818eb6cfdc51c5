"""A service manager that listens is told; where none does, nothing happens."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from nexus_common.notify import notify


@contextlib.contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(5)
        yield listening


def test_a_service_manager_hears_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a short path
    with manager("n") as listening:
        monkeypatch.setenv("NOTIFY_SOCKET", "n")
        notify("READY=1")
        assert listening.recv(100) == b"READY=1"


def test_an_abstract_socket_is_written_with_an_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with manager(f"\0{tmp_path}") as listening:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}")
        notify("STOPPING=1")
        assert listening.recv(100) == b"STOPPING=1"


def test_without_a_service_manager_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was made"))
    notify("READY=1")


def test_one_that_is_gone_is_told_in_the_log_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with caplog.at_level(logging.ERROR):
        notify("READY=1")
    assert "cannot be reached to say READY=1" in caplog.text
