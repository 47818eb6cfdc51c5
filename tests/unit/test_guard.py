"""A client that does not read its answer is cut off, and what such clients leave unread is bounded: real sockets."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from nexus_client import guard
from nexus_client.guard import Bodies
from nexus_client.openai_api import ApiError
from nexus_common import connection
from nexus_common.connection import Connection
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ANSWER = bytes(24 << 20)
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server of long answers, whose clients have a second to read one."""
    monkeypatch.setattr(connection, "READS_AN_ANSWER_SECONDS", 1.0)

    async def answer(_: Request) -> Response:
        return Response(ANSWER)

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        Starlette(routes=[Route("/", answer)]), http=Connection, loop="asyncio", ws="none", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def read(client: socket.socket, seconds: float) -> int:
    """How many bytes come until the server closes or as many seconds are over."""
    found, ends = 0, time.monotonic() + seconds
    client.settimeout(seconds)
    try:
        while time.monotonic() < ends and (part := client.recv(1 << 20)):
            found += len(part)
    except OSError:
        pass
    return found


def test_who_does_not_read_is_cut_off_and_who_does_is_not(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as slow, socket.create_connection(("127.0.0.1", port)) as quick:
        slow.sendall(ASK)
        for _ in range(2):
            quick.sendall(ASK)
            assert read(quick, 0.8) > len(ANSWER)
        time.sleep(2)
        assert read(slow, 5) < len(ANSWER), "what was in the system's buffers, and the end"
        assert Connection.unread() == 0


def test_while_too_much_waits_to_be_read_no_body_is_taken(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"2")]}

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    def take() -> bytes:
        return asyncio.run(Bodies().read(Request(scope, receive))).data

    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(ASK)
        ends = time.monotonic() + 5
        while Connection.unread() == 0 and time.monotonic() < ends:
            time.sleep(0.01)
        assert take() == b"{}"
        monkeypatch.setattr(guard, "MOST_UNREAD_BYTES", 1 << 20)
        with pytest.raises(ApiError, match="too much"):
            take()
