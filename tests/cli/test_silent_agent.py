"""An agent that hangs is told, and not waited for."""

import socket
import tempfile
from pathlib import Path

import pytest
from nexus_client import cli


def test_status_does_not_wait_long_for_an_agent_that_hangs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "STATUS_SECONDS", 0.5)
    with tempfile.TemporaryDirectory(prefix="nx") as folder, socket.socket(socket.AF_UNIX) as hanging:  # a short path
        state = Path(folder) / "a" / "state"
        state.mkdir(parents=True)
        (state.parent / "site.toml").write_text('site = "a"\nserver = "127.0.0.1:1"\n')
        hanging.bind(str(state / "agent.sock"))
        hanging.listen()
        assert cli.main(["--home", folder, "status"]) == 1
    assert "the agent failed at status (deadline_exceeded" in capsys.readouterr().err
