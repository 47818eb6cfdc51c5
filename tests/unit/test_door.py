"""The door's sockets, with a real connection over TLS to it in this process."""

import socket
from pathlib import Path

from nexus_client.tls import tls_context
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.door import SiteConnection, open_door
from nexus_server.gate import Gate
from nexus_server.tls import DoorTls

from tests.unit.test_rotation import HOSTS, site


def test_no_small_answer_waits_for_nagles_delay(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(CertificateFiles(tmp_path / "server"), "demo")
    authority.ensure_server_certificate(HOSTS)
    keys = site(authority, tmp_path / "site")
    server = open_door(Gate(None, lambda _: None), HOSTS[0], 0, DoorTls(authority.files).context)
    try:
        address = server.servers[0].sockets[0].getsockname()
        with (
            socket.create_connection(address, 10) as plain,
            tls_context(keys).wrap_socket(plain, server_hostname=HOSTS[0]) as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert tls.recv(100).startswith(b"HTTP/1.1 404")
            (accepted,) = SiteConnection.living
            option = accepted.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert option == 1, "60 ms more for each message of a round"
    finally:
        server.should_exit = True
