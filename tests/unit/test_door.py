"""The door's sockets, with real connections to it in this process."""

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nexus_client.tls import tls_context
from nexus_common.errors import NexusError
from nexus_server import door
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.door import SiteConnection, open_door
from nexus_server.gate import Gate
from nexus_server.tls import DoorTls

from tests.unit.test_rotation import HOSTS, site

MAX_HANDSHAKES = 8


@pytest.fixture
def knock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], socket.socket]]:
    """A plain connection to a door that knows no site, and lets few be in their handshake at once."""
    monkeypatch.setattr(door, "MAX_HANDSHAKES", MAX_HANDSHAKES)
    authority = CertificateAuthority.create(CertificateFiles(tmp_path / "server"), "demo")
    authority.ensure_server_certificate(HOSTS)
    site(authority, tmp_path / "site")
    server = open_door(Gate(None, lambda _: None), HOSTS[0], 0, DoorTls(authority.files).context)
    address = server.servers[0].sockets[0].getsockname()
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(socket.create_connection(address, 10))
    server.should_exit = True


def entered(plain: socket.socket, folder: Path) -> ssl.SSLSocket:
    """With the handshake done."""
    return tls_context(folder / "site").wrap_socket(plain, server_hostname=HOSTS[0])


def is_answered(tls: ssl.SSLSocket) -> bool:
    tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return tls.recv(1000).startswith(b"HTTP/1.1 404")


def test_no_small_answer_waits_for_nagles_delay(knock: Callable[[], socket.socket], tmp_path: Path) -> None:
    with entered(knock(), tmp_path) as tls:
        assert is_answered(tls)
        (accepted,) = SiteConnection.living
        option = accepted.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert option == 1, "60 ms more for each message of a round"


def test_strangers_in_their_handshake_make_room_for_others_and_not_those_who_are_in(
    knock: Callable[[], socket.socket], tmp_path: Path
) -> None:
    with entered(knock(), tmp_path) as early:
        strangers = [knock() for _ in range(3 * MAX_HANDSHAKES)]
        with entered(knock(), tmp_path) as late:
            assert is_answered(late)
        for one in strangers[: -MAX_HANDSHAKES + 1]:
            one.settimeout(door.HANDSHAKE_SECONDS / 2)
            assert one.recv(1) == b"", "closed, and long before its time is up"
        for one in strangers[-MAX_HANDSHAKES + 1 :]:
            one.settimeout(0.01)
            with pytest.raises(TimeoutError):
                one.recv(1)
        assert is_answered(early)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_door_that_cannot_serve_says_so_and_is_not_waited_for() -> None:
    no_context: Any = "a context"
    with pytest.raises(NexusError, match="could not be served"):
        open_door(Gate(None, lambda _: None), HOSTS[0], 0, no_context)


def test_a_port_that_two_have_bound_is_the_first_listeners() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((HOSTS[0], 0))
        bind, no_context = door.Listener.bind, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def bound(listener: door.Listener, address: tuple[str, int]) -> None:
            bind(listener, address)
            other.listen()

        with pytest.MonkeyPatch.context() as patch, pytest.raises(NexusError, match="is another nexus-server running"):
            patch.setattr(door.Listener, "bind", bound)
            open_door(Gate(None, lambda _: None), *other.getsockname(), no_context)


def test_an_address_of_another_machine_is_told_with_what_to_listen_at_instead(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(CertificateFiles(tmp_path / "server"), "demo")
    authority.ensure_server_certificate(HOSTS)
    with pytest.raises(NexusError, match=r'"0\.0\.0\.0:8443" is every address of this machine \(`listen`'):
        open_door(Gate(None, lambda _: None), "192.0.2.7", 8443, DoorTls(authority.files).context)
