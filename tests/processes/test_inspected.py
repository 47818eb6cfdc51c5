"""A network that inspects TLS is named and never accepted, also where the machine trusts the inspector."""

import contextlib
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.harness import Federation, free_ports, until, write_rows

pytestmark = pytest.mark.processes
AGENT = "hospital-a"
ISSUER = "'CN=Corporate Inspection CA'"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Middlebox:
    """The process before both ports of the server, and what it got to read."""

    def __init__(self, federation: Federation, folder: Path) -> None:
        self.folder, self._targets = folder, (federation.port, federation.enrol_port)
        self.port, self.enrol_port = free_ports(2)
        pairs = [f"{self.port}:{federation.port}", f"{self.enrol_port}:{federation.enrol_port}"]
        authority = federation.home / "server" / "keys" / "ca.crt"
        command = [sys.executable, str(Path(__file__).with_name("middlebox.py")), str(folder), str(authority), *pairs]
        self._process = subprocess.Popen(command)
        until("the middlebox is up", (folder / "inspection.crt").exists)

    def read(self, target: int) -> list[bytes]:
        """What it read, inside of TLS, on its way to a port; by connection."""
        return [found for path in self.folder.glob(f"read-{target}-*") if (found := path.read_bytes())]

    def accepted(self) -> list[bytes]:
        """The client certificates of the connections on which somebody took its own; empty ones for none."""
        return [path.read_bytes() for path in self.folder.glob("accepted-*")]

    def refused(self, target: int) -> int:
        """Connections that ended over its certificate."""
        return len(list(self.folder.glob(f"refused-{target}-*")))

    @contextlib.contextmanager
    def that_is(self, what: str) -> Iterator[None]:
        """Let it pass bytes (``exempted``), be ``old``, or ``fickle``."""
        (self.folder / what).touch()
        yield
        (self.folder / what).unlink()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.init()
        made.start("server")
        yield made


@pytest.fixture
def box(federation: Federation, tmp_path: Path) -> Iterator[Middlebox]:
    made = Middlebox(federation, tmp_path)
    yield made
    made.end()


def bodies(read: bytes) -> bytes:
    """All that a client's HTTP/2 connection carries in bodies of requests (RFC 9113, section 4.1)."""
    assert read.startswith(PREFACE)
    rest, found = read[len(PREFACE) :], b""
    while rest:
        length, kind = int.from_bytes(rest[:3], "big"), rest[3]
        found += rest[9 : 9 + length] if kind == 0 else b""
        rest = rest[9 + length :]
    return found


def trusting(port: int, authority: Path) -> None:
    """What a program that believes the machine's trust store would give away."""
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
        contextlib.suppress(OSError),
    ):
        tls.sendall(b"a secret")
        tls.recv(1)


def test_a_network_that_inspects_tls_is_named_gets_nothing_and_once_exempted_lets_the_site_connect_by_itself(
    federation: Federation, box: Middlebox, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = box.folder / "inspection.crt"
    trusting(box.port, authority)
    until("it reads what it is shown", lambda: box.read(federation.port) == [b"a secret"])
    for path in (*box.folder.glob("read-*"), *box.folder.glob("accepted-*")):
        path.unlink()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    rows = write_rows(federation.home / "rows.jsonl", 60, "box")
    line = federation.ask("nexus-server", "invite", AGENT)["line"]
    here = line.replace(f":{federation.enrol_port}/", f":{box.enrol_port}/")
    with box.that_is("fickle"):
        told = refused_join(federation, here, rows)
    assert f"answered with a certificate from {ISSUER}, but not as a NEXUS server" in told
    assert "does this network inspect TLS?" in told
    assert box.read(federation.enrol_port) == []
    told = refused_join(federation, here, rows)
    assert f"came from {ISSUER}, not from the consortium's key: this network inspects TLS" in told
    assert "have the address exempted" in told
    (read,) = box.read(federation.enrol_port)
    assert bodies(read) == b"\0\0\0\0\x02{}", "it asked whose key the server has, and said nothing of its own"
    assert not any(word in read for word in (AGENT.encode(), line.split(":")[2].split("@")[0].encode()))

    with box.that_is("exempted"):
        federation.ask("nexus-client", "join", "--data", str(rows), stdin=here + "\n")
    settings = federation.home / "sites" / AGENT / "site.toml"
    settings.write_text(re.sub(r'server = ".*"', f'server = "127.0.0.1:{box.port}"', settings.read_text()))
    refused_check(federation, box)
    with box.that_is("old"):
        refused_check(federation, box)
    checks = box.refused(federation.port)
    assert checks >= 2
    federation.start(AGENT, wait=False)
    said = until("it says why", lambda: inspected(federation))
    assert f"have 127.0.0.1:{box.port} exempted" in said
    assert box.refused(federation.port) > checks
    assert box.read(federation.port) == []
    assert set(box.accepted()) == {b""}, "looked at, and no certificate of the site's was shown"
    assert len(box.read(federation.enrol_port)) == 1

    with box.that_is("exempted"):
        until("it connects by itself", lambda: federation.connected(AGENT))
    assert box.read(federation.port) == []


def refused_join(federation: Federation, line: str, rows: Path) -> str:
    """What ``join`` says where it fails, upon which nothing is set up."""
    refused = federation.call("nexus-client", "join", "--data", str(rows), stdin=line + "\n")
    assert refused.returncode == 1
    assert not (federation.home / "sites" / AGENT / "site.toml").exists()
    return refused.stderr


def refused_check(federation: Federation, box: Middlebox) -> None:
    """``check`` names the issuer and says what to ask for."""
    checked = federation.call("nexus-client", "check", "--site", AGENT)
    assert checked.returncode == 1
    found = f"the certificate at 127.0.0.1:{box.port} came from {ISSUER}, not from the consortium: this network ins"
    assert found in checked.stdout
    assert f"have 127.0.0.1:{box.port} exempted from TLS inspection" in checked.stdout


def inspected(federation: Federation) -> str:
    """What a running agent says of a connection that is inspected, empty where it says something else."""
    try:
        said = federation.site_status(AGENT)["connection"]
    except ConnectionError:
        return ""
    return said if f"came from {ISSUER}, not from the consortium: this network inspects TLS" in said else ""
