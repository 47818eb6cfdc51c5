"""The site's connection outlives whatever goes wrong on it."""

import datetime as dt
import gc
import logging
import threading
from pathlib import Path

import httpx
import pytest
from nexus_client import link as module
from nexus_client.link import Link
from nexus_common import certs, wire
from nexus_common import flower as fl
from nexus_common.audit import AuditLog
from nexus_common.errors import Refusal
from nexus_common.journal import Journal


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Link:
    """A link that has nobody to talk to, and no patience."""
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 0.002)
    ca_key, key, now = certs.new_transport_key(), certs.new_transport_key(), dt.datetime.now(dt.UTC)
    authority = certs.make_authority(ca_key, "demo", now)
    (tmp_path / "ca.crt").write_bytes(certs.pem(authority))
    certificate = certs.issue_site(ca_key, authority, key.public_key(), "hospital-a", bytes(32), now)
    (tmp_path / "site.crt").write_bytes(certs.pem(certificate))
    certs.save_key(tmp_path / "transport.key", key)
    return Link("127.0.0.1:1", tmp_path, lambda _: wire.Readiness(wire.READY), Journal(AuditLog(tmp_path / "log")))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (httpx.ConnectError("refused"), True),
        (ValueError("a part does not match its hash"), True),
        (Refusal("malformed"), True),
        (RuntimeError("can't start new thread"), False),
        (IndexError("list index out of range"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_after_any_fault_it_connects_again(
    link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception, expected: bool
) -> None:
    tries = []

    def connect() -> None:
        tries.append(1)
        if len(tries) == 3:
            link._stop.set()
        raise fault

    monkeypatch.setattr(link, "_connect", connect)
    with caplog.at_level(logging.WARNING):
        link.run()
    assert len(tries) == 3
    faults = link._metrics.registry.get_sample_value("nexus_client_connection_faults_total")
    assert faults == 2, "the third ended with the link"
    assert ("this was not expected" in caplog.text) != expected


def test_pauses_double_up_to_the_longest_and_no_two_sites_come_back_in_step(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 30.0)
    runs: list[list[float]] = []

    def wait(seconds: float) -> None:
        runs[-1].append(seconds)
        if len(runs[-1]) == 8:
            link._stop.set()

    monkeypatch.setattr(link._stop, "wait", wait)
    for _ in range(2):
        link._stop.clear()
        runs.append([])
        link.run()
    for waited in runs:
        for pause, seconds in zip([1, 2, 4, 8, 16, 30, 30, 30], waited, strict=True):
            assert 0.8 * pause <= seconds <= 1.2 * pause
    assert len(set(runs[0]) & set(runs[1])) == 0
    assert max(abs(one - other) for one, other in zip(*runs, strict=True)) > 0.1, "spread over seconds, not moments"


def test_nobody_at_the_address_is_said_with_the_address(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(link._stop, "wait", lambda seconds: waited.append(seconds) or link._stop.set())
    link.run()
    assert link.state.startswith("no connection to 127.0.0.1:1 (ConnectError")
    assert link.state.endswith("; `nexus-client check` looks for the cause")


@pytest.mark.parametrize(
    ("headers", "read"),
    [
        ({"content-length": "0"}, True),
        ({"content-length": str(fl.MAX_SMALL_BODY_BYTES)}, True),
        ({"content-length": str(fl.MAX_SMALL_BODY_BYTES + 1)}, False),
        ({"content-length": "-1"}, False),
        ({"content-length": "9" * 5000}, False),
        ({"content-length": "9", "transfer-encoding": "chunked"}, False),
        ({"transfer-encoding": "chunked"}, False),
        ({"content-length": "9", "content-encoding": "gzip"}, False),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_body_is_read_only_where_its_length_is_known_bounded_and_its_own(headers: dict[str, str], read: bool) -> None:
    response = httpx.Response(200, headers=headers, request=httpx.Request("POST", "https://127.0.0.1:1"))
    if read:
        module._bounded(response)
        return
    with pytest.raises(httpx.RemoteProtocolError, match="without length, too long or packed"):
        module._bounded(response)


def test_only_a_part_may_be_large() -> None:
    headers = {"content-length": str(fl.MAX_BODY_BYTES)}
    url = f"https://127.0.0.1:1{module.OBJECTS}"
    module._bounded(httpx.Response(200, headers=headers, request=httpx.Request("POST", url)))
    with pytest.raises(httpx.RemoteProtocolError):
        module._bounded(
            httpx.Response(200, headers=headers, request=httpx.Request("POST", url.replace("pull", "push")))
        )


def test_a_session_that_could_not_be_renewed_is_to_be_renewed_again(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise httpx.ConnectError("refused")

    assert link.renew(), "without a session the next connection is a new one"
    link._node = fl.Node(node_id=2)
    monkeypatch.setattr(link, "_connect", gone)
    assert not link.renew()
    monkeypatch.setattr(link, "_connect", lambda: None)
    assert link.renew()


def test_a_question_that_ends_for_a_new_session_is_no_fault_of_the_connection(
    link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held, ended, again = threading.Event(), threading.Event(), threading.Event()

    def pull(_: object) -> None:
        held.set()
        ended.wait(10)
        request = httpx.Request("POST", "https://127.0.0.1:1")
        raise httpx.HTTPStatusError("ended", request=request, response=httpx.Response(409, request=request))

    def activate(_: object) -> object:
        if threading.current_thread() is threading.main_thread():
            ended.set()  # the server ends the old question, and answers this one only after
            assert again.wait(10)
        elif ended.is_set():
            ended.clear()
            again.set()
        return fl.Node(node_id=2)

    monkeypatch.setattr(link, "take_certificate", lambda: None)
    monkeypatch.setattr(link._link, "PullMessages", pull)
    monkeypatch.setattr(link._link, "ActivateNode", activate)
    monkeypatch.setattr(link._link, "DeactivateNode", lambda _: ended.set())
    thread = threading.Thread(target=link.run, daemon=True)
    with caplog.at_level(logging.WARNING):
        thread.start()
        assert held.wait(10)
        assert link.renew()
        link.stop()
        thread.join(10)
    assert not thread.is_alive()
    assert caplog.text == ""
    assert link._metrics.registry.get_sample_value("nexus_client_connection_faults_total") == 0


def test_no_connection_is_closed_under_a_thread_that_reads_from_it(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answered = threading.Event(), threading.Event()

    def held(_: object) -> None:
        asked.set()
        answered.wait(10)
        raise httpx.RemoteProtocolError("the server ended the question")

    monkeypatch.setattr(link, "_connect", lambda: None)
    monkeypatch.setattr(link, "take_certificate", lambda: None)
    monkeypatch.setattr(link._link, "PullMessages", held)
    monkeypatch.setattr(link._link, "DeactivateNode", lambda _: answered.set())
    link._node = fl.Node(node_id=2)
    thread = threading.Thread(target=link.run, daemon=True)
    thread.start()
    assert asked.wait(10)
    link.stop()
    assert not link._link._client.is_closed
    thread.join(10)
    assert not thread.is_alive()


def test_a_good_bye_that_nobody_answers_is_not_waited_for(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(module, "GOOD_BYE_SECONDS", 0.1)
    monkeypatch.setattr(link._link, "DeactivateNode", lambda _: answered.wait(30))
    link._node = fl.Node(node_id=2)
    stopping = threading.Thread(target=link.stop)
    stopping.start()
    stopping.join(10)
    assert not stopping.is_alive()
    answered.set()


def test_connections_end_when_no_thread_uses_them_any_more(link: Link) -> None:
    gc.disable()
    try:
        client, in_a_call = link._link._client, link._link.PullMessages
        link.take_certificate()
        assert not client.is_closed
        del in_a_call
        assert client.is_closed
    finally:
        gc.enable()
