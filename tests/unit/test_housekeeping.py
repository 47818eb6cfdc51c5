"""What the server does each second: a fault in one step stops no other, and no rotation is tried each second."""

from types import SimpleNamespace
from typing import Any

import pytest
from nexus_server.app import Server


def faulty() -> None:
    raise OSError("read-only file system")


@pytest.fixture
def server() -> Any:
    """A server that cannot write its certificates, whose CA comes to its end; it notes in ``done`` what it did."""
    made: Any = Server.__new__(Server)
    made.done = []

    def rotate() -> None:
        made.done.append("rotate")
        faulty()

    made.settings = SimpleNamespace(hosts=["127.0.0.1"])
    made.authority = SimpleNamespace(days_left=729, ensure_server_certificate=lambda _: False)
    made.enrolment = SimpleNamespace(rotate=rotate, watch=faulty)
    made.refresh_sites = lambda: made.done.append("sites")
    made.registry = SimpleNamespace(note_seen=lambda _: made.done.append("seen"))
    made.journal = SimpleNamespace(settle=lambda: made.done.append("journal"))
    made._seen, made._rotate_from = {}, 0.0
    return made


def test_a_step_that_fails_stops_no_other_and_a_rotation_is_tried_again_much_later(server: Any) -> None:
    server._tick()
    server._tick()
    assert server.done == ["rotate", *["sites", "seen", "journal"] * 2]


def test_the_rounds_go_on_where_certificates_cannot_be_renewed(server: Any) -> None:
    problems: list[str] = []
    turns: list[None] = []
    server.renewal = SimpleNamespace(renew=faulty)
    server.conductor = SimpleNamespace(turn=lambda: turns.append(None), problem=None)
    stops = iter([False, False, True])
    server._stopping = SimpleNamespace(
        is_set=lambda: next(stops), wait=lambda _: problems.append(server.conductor.problem)
    )
    server._run_rounds()
    assert len(turns) == 2
    assert problems == ["OSError; the server's log says more"] * 2
