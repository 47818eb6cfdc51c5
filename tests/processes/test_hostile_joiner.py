"""Strangers at the enrolment port while an invitation is open: junk, bombs, crowds; the invited site still joins."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from nexus_client.tls import shown_certificate
from nexus_common import certs
from nexus_common.enrolment import SERVICE

from tests.processes.harness import Federation, until, write_rows

pytestmark = pytest.mark.processes
MEGABYTES = 100e6


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.init()
        made.start("server")
        made.ask("nexus-server", "invite", "bank-z")  # never used: the listener stays open
        yield made


def channel(federation: Federation) -> grpc.Channel:
    address = f"127.0.0.1:{federation.enrol_port}"
    leaf = shown_certificate(address, protocols=("h2",))
    assert leaf is not None
    credentials = grpc.ssl_channel_credentials(certs.pem(leaf))
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(address, credentials, options=options)


def test_strangers_whose_requests_never_end_are_named_as_the_cause_and_gone_within_a_minute(
    federation: Federation,
) -> None:
    """They can keep sites from joining for as long as they are there: gRPC gives each a thread."""
    line, over = federation.ask("nexus-server", "invite", "bank-b")["line"], threading.Event()

    def endless() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with contextlib.ExitStack() as held:
        calls = []
        for _ in range(40):
            call = held.enter_context(channel(federation)).stream_unary(f"/{SERVICE}/enrol")
            calls.append(call.future(endless(), timeout=60))  # which would end with its last reference
        refused = federation.call("nexus-client", "join", line)
        over.set()
    assert refused.returncode == 1
    assert "is too busy to answer (" in refused.stderr
    until("a site can join", lambda: federation.call("nexus-client", "join", line).returncode == 0, 60)


def test_junk_bombs_and_crowds_leave_the_server_small_and_the_port_open(federation: Federation, tmp_path: Path) -> None:
    process = psutil.Process(federation.processes["server"].pid)
    before, codes = process.memory_info().rss, set()
    junk = [b"", b"\xff" * 1000, b"[" * 60_000, os.urandom(60_000), b"\0" * (3 << 20)]
    with channel(federation) as calls:
        for method in ("enrol", "authority", "none"):
            call = calls.unary_unary(f"/{SERVICE}/{method}")
            for data in junk:
                with pytest.raises(grpc.RpcError) as refused:
                    call(data, timeout=20)
                codes.add(refused.value.code())
        with pytest.raises(grpc.RpcError) as bomb:  # 300 MB in 300 kB
            calls.unary_unary(f"/{SERVICE}/enrol")(bytes(300 << 20), timeout=60, compression=grpc.Compression.Gzip)
        assert bomb.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    code = grpc.StatusCode
    assert codes == {code.INVALID_ARGUMENT, code.RESOURCE_EXHAUSTED, code.UNIMPLEMENTED}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with contextlib.ExitStack() as open_ones:
        for number in range(300):
            plain = open_ones.enter_context(socket.create_connection(("127.0.0.1", federation.enrol_port), 10))
            if number % 3 == 0:
                plain.sendall(os.urandom(1000))
            elif number % 3 == 1:
                with contextlib.suppress(OSError):
                    tls = open_ones.enter_context(context.wrap_socket(plain, server_hostname="x"))
                    tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 1000 + os.urandom(3000))
        federation.join("bank-a", write_rows(tmp_path / "rows.jsonl", 20, "box"))
        plain.settimeout(10)
        assert plain.recv(1) == b"", "nobody is silent for long"
        grown = process.memory_info().rss - before
    print(f"server: {before / 1e6:.0f} MB before, {grown / 1e6:+.0f} MB with 300 connections")
    assert grown < MEGABYTES
    assert len(federation.log("server")) < 100_000
    assert federation.server_status()["run"] is None
