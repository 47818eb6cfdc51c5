"""The one public port against everybody who should not get in, in a real server process."""

import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography import x509
from nexus_client.check_server import check_server
from nexus_client.clock import ServerClock
from nexus_client.link import FleetLink
from nexus_client.site import SiteHome
from nexus_client.tls import tls_context
from nexus_common import certs
from nexus_common import flower as fl
from nexus_common.wire import Parcel
from nexus_server.door import MAX_CONNECTIONS_OF_A_SITE
from nexus_server.gate import FLEET_PATHS

from tests.processes.harness import Federation

pytestmark = pytest.mark.processes
SITES = ("hospital-a", "hospital-b")


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found(*SITES)
        yield made
        memory = psutil.Process(made.processes["server"].pid).memory_info().rss
        assert made.server_status()["run"] is None, "the server still answers after all that"
        assert memory < 200e6, f"the server takes {memory / 1e6:.0f} MB"


def client(federation: Federation, context: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(base_url=f"https://127.0.0.1:{federation.port}", verify=context, trust_env=False)


def fleet(federation: Federation, site: str) -> tuple[FleetLink, bytes]:
    keys = federation.keys(site)
    key = certs.load_transport_key(keys / "transport.key")
    link = FleetLink(f"127.0.0.1:{federation.port}", key, tls_context(keys), lambda _: None, ServerClock())
    return link, certs.public_pem(key.public_key())


def activated(federation: Federation, site: str) -> tuple[FleetLink, fl.Node]:
    link, pem = fleet(federation, site)
    return link, fl.Node(
        node_id=link.ActivateNode(fl.ActivateNodeRequest(public_key=pem, heartbeat_interval=10)).node_id
    )


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/v1/fleet/register-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        "/v1/control",
        "/metrics",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_paths_do_not_exist(federation: Federation, path: str, method: str) -> None:
    with client(federation, tls_context(federation.keys("hospital-a"))) as http:
        assert http.request(method, path).status_code == 404


@pytest.mark.parametrize("path", sorted(FLEET_PATHS))
def test_garbage_in_a_body_is_refused_and_harms_nothing(federation: Federation, path: str) -> None:
    with client(federation, tls_context(federation.keys("hospital-a"))) as http:
        for body in (b"", b"\xff" * 1000, b"\x0a\x80\x80\x80\x80\x10"):
            assert http.post(path, content=body).status_code >= 400


@pytest.mark.parametrize("header", ["Content-Length: 6291457", "Transfer-Encoding: chunked", "Content-Length: -1"])
def test_a_body_too_long_or_without_length_is_not_read(federation: Federation, header: str) -> None:
    with (
        socket.create_connection(("127.0.0.1", federation.port)) as plain,
        tls_context(federation.keys("hospital-a")).wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        tls.sendall(f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
        assert tls.recv(100).startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))


def issued(federation: Federation, folder: Path, *, ca: str, key: str, days_ago: int = 0) -> ssl.SSLContext:
    """A client context whose certificate is forged as the arguments say."""
    keys, now = federation.keys("hospital-a"), dt.datetime.now(dt.UTC)
    if ca == "own":
        ca_key = certs.new_transport_key()
        authority = certs.make_authority(ca_key, "demo", now)
    else:
        ca_key = certs.load_transport_key(federation.home / "server" / "keys" / "ca.key")
        authority = x509.load_pem_x509_certificate((keys / "ca.crt").read_bytes())
    own = certs.load_transport_key(keys / "transport.key") if key == "enrolled" else certs.new_transport_key()
    at = now - dt.timedelta(days=days_ago)
    certificate = certs.issue_site(ca_key, authority, own.public_key(), "hospital-a", bytes(32), at)
    (folder / "site.crt").write_bytes(certs.pem(certificate))
    certs.save_key(folder / "transport.key", own)
    (folder / "ca.crt").write_bytes((keys / "ca.crt").read_bytes())
    return tls_context(folder)


@pytest.mark.parametrize(
    ("ca", "key", "days_ago"), [("own", "enrolled", 0), ("consortium's", "enrolled", 400)], ids=["other CA", "expired"]
)
def test_a_wrong_certificate_ends_in_the_handshake(
    federation: Federation, tmp_path: Path, ca: str, key: str, days_ago: int
) -> None:
    context = issued(federation, tmp_path, ca=ca, key=key, days_ago=days_ago)
    with client(federation, context) as http, pytest.raises(httpx.TransportError):
        http.post("/v1/fleet/pull-messages", content=b"")


@pytest.mark.parametrize(
    ("ca", "key", "state", "found"),
    [
        ("consortium's", "enrolled", "ok", "answers over TLS 1.3"),
        ("own", "enrolled", "fault", "ends the connection once it has seen this site's certificate"),
        ("consortium's", "new", "fault", "knows no site with this certificate"),
    ],
    ids=["in order", "other CA", "not enrolled"],
)
def test_a_sites_check_says_whether_the_door_knows_it(
    federation: Federation, tmp_path: Path, ca: str, key: str, state: str, found: str
) -> None:
    place = SiteHome("hospital-a", tmp_path, tmp_path)
    place.keys.mkdir()
    issued(federation, place.keys, ca=ca, key=key)
    before = federation.log("server")
    (line, *_) = check_server(place, SiteHome.of(federation.home / "sites", "hospital-a").settings())
    assert line.state == state
    assert found in line.found
    assert " ERROR " not in federation.log("server").removeprefix(before), "a check is no matter for the coordinator"


def test_a_certificate_of_the_consortium_with_a_key_that_is_not_enrolled_finds_nothing(
    federation: Federation, tmp_path: Path
) -> None:
    context = issued(federation, tmp_path, ca="consortium's", key="new")
    with client(federation, context) as http:
        assert http.post("/v1/fleet/activate-node", content=b"x").status_code == 404


def test_no_certificate_or_an_older_tls_ends_in_the_handshake(federation: Federation) -> None:
    bare = ssl.create_default_context(cafile=str(federation.keys("hospital-a") / "ca.crt"))
    with client(federation, bare) as http, pytest.raises(httpx.TransportError):
        http.post("/v1/fleet/pull-messages", content=b"")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_verify_locations(federation.keys("hospital-a") / "ca.crt")
    old.load_cert_chain(federation.keys("hospital-a") / "site.crt", federation.keys("hospital-a") / "transport.key")
    with client(federation, old) as http, pytest.raises(httpx.TransportError):
        http.post("/v1/fleet/pull-messages", content=b"")


def test_a_site_can_be_nobody_else(federation: Federation) -> None:
    link_a, node_a = activated(federation, "hospital-a")
    link_b, node_b = activated(federation, "hospital-b")
    _, pem_a = fleet(federation, "hospital-a")
    fl.TaskIdentity.run_id, fl.TaskIdentity.task_id, fl.TaskIdentity.node_id = 1, 1, fl.SUPERLINK_NODE_ID
    answer = Parcel("readiness", {"state": "ready"})
    instruction = fl.instruction(Parcel("prepare", {"plan": b"x"}), node_a.node_id, 60)
    fl.name_by_content(instruction)
    reply = fl.reply(answer, instruction)
    fl.name_by_content(reply)
    assert reply.metadata.src_node_id == node_a.node_id
    in_a_name = fl.PushMessagesRequest(
        node=node_b,
        messages_list=[fl.message_to_proto(fl.sent_ahead(reply))],
        message_object_trees=[fl.get_object_tree(reply)],
    )
    for forbidden in (
        lambda: link_b.PushMessages(in_a_name),
        lambda: link_b.PullMessages(fl.PullMessagesRequest(node=node_a)),
        lambda: link_b.ActivateNode(fl.ActivateNodeRequest(public_key=pem_a, heartbeat_interval=10)),
        lambda: link_b.DeactivateNode(fl.DeactivateNodeRequest(node_id=node_a.node_id)),
        lambda: link_b.PullObject(fl.PullObjectRequest(node=node_a, run_id=1, object_id="0" * 64)),
    ):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            forbidden()
        assert refused.value.response.status_code in (401, 403)
    assert "certificate and claimed identity differ" in federation.log("server")
    link_a.SendNodeHeartbeat(fl.SendNodeHeartbeatRequest(node=node_a, heartbeat_interval=10))


def opened(federation: Federation, site: str) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", federation.port), 10)
    return tls_context(federation.keys(site)).wrap_socket(plain, server_hostname="127.0.0.1")


def test_headers_without_end_are_refused_and_not_kept(federation: Federation) -> None:
    process = psutil.Process(federation.processes["server"].pid)
    before = process.memory_info().rss
    with opened(federation, "hospital-a") as tls, contextlib.suppress(OSError):
        tls.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n")
        for _ in range(6000):
            tls.sendall(b"X-Filler: " + b"a" * 16_000 + b"\r\n")
    assert process.memory_info().rss - before < 30e6, "96 MB of headers were sent"


def test_one_sites_connections_do_not_shut_the_others_out(federation: Federation) -> None:
    held = [opened(federation, "hospital-a") for _ in range(MAX_CONNECTIONS_OF_A_SITE + 20)]
    try:
        closed = 0
        for tls in held:
            tls.settimeout(0.2)
            try:
                closed += tls.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                closed += 1
        assert closed >= 20
        link, node = activated(federation, "hospital-b")
        link.SendNodeHeartbeat(fl.SendNodeHeartbeatRequest(node=node, heartbeat_interval=10))
    finally:
        for tls in held:
            tls.close()


def test_a_tree_of_many_parts_is_refused_by_its_size(federation: Federation) -> None:
    with client(federation, tls_context(federation.keys("hospital-a"))) as http:
        assert http.post("/v1/fleet/push-messages", content=b"\x12\x00" * 100_000).status_code == 404
