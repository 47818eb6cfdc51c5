"""A program's metrics: read on this machine under its own names, and never a reason not to run."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from nexus_common import connection
from nexus_common.errors import NexusError
from nexus_common.exposition import MOST_CONNECTIONS, Exposition
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.registry import Collector


@contextmanager
def exposed(registry: CollectorRegistry | None = None, host: str = "127.0.0.1") -> Iterator[tuple[Exposition, int]]:
    """One metric at a free port."""
    if registry is None:
        registry = CollectorRegistry()
        Gauge("things", "Some", registry=registry).set(3)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = Exposition(registry, f"{host}:{port}")
    yield made, port
    made.close()


def get(port: int, path: str = "/metrics", **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers, trust_env=False)


def test_silent_and_surplus_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 1.0)
    with exposed() as (_, port), ExitStack() as open_ones:
        for _ in range(MOST_CONNECTIONS):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port)))
        with pytest.raises(httpx.TransportError):
            get(port)
        time.sleep(1.5)
        assert get(port).status_code == 200


def test_another_web_page_gets_no_answer() -> None:
    with exposed() as (_, port):
        assert get(port, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert get(port, **{"Sec-Fetch-Site": "none"}).status_code == 200


def test_metrics_are_served_in_prometheus_text_and_nothing_else_is() -> None:
    with exposed() as (made, port):
        found = get(port)
        assert (found.status_code, found.headers["content-type"].split(";")[0]) == (200, "text/plain")
        assert "\nthings 3.0\n" in found.text
        assert made.told == f"http://127.0.0.1:{port}/metrics"
        assert get(port, "/").status_code == 404
        assert httpx.post(made.told, trust_env=False).status_code == 405


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:1", 200), ("localhost", 200), ("[::1]:9464", 200), ("evil.example", 403), ("evil.example:9464", 403)],
)
def test_on_loopback_no_web_page_can_read_them_under_a_name_of_its_own(host: str, status: int) -> None:
    with exposed() as (_, port):
        assert get(port, host=host).status_code == status


def test_elsewhere_any_name_will_do_and_the_log_warns(caplog: pytest.LogCaptureFixture) -> None:
    with exposed(host="0.0.0.0") as (_, port):  # noqa: S104  as in a container
        assert get(port, host="prometheus-target:9464").status_code == 200
    assert "without a password" in caplog.text


def test_off_opens_nothing() -> None:
    assert Exposition(CollectorRegistry(), "off").told == "off"


def test_a_port_that_is_taken_is_told_with_the_setting_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        made = Exposition(CollectorRegistry(), f"127.0.0.1:{port}")
    told = f"not served: cannot listen on 127.0.0.1 port {port}: Address already in use; `metrics` in the settings"
    assert made.told.startswith(told)
    assert made.told in caplog.text
    made.close()


def test_what_cannot_be_read_is_said_in_the_log_and_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    class Full(Collector):
        def collect(self) -> Iterator:
            raise NexusError("registry.sqlite cannot be read: the disk is full")

    registry = CollectorRegistry()
    registry.register(Full())
    caplog.set_level(logging.ERROR)
    with exposed(registry) as (_, port):
        assert [get(port).status_code for _ in range(2)] == [503, 503]
        assert "full" not in get(port).text
    assert "registry.sqlite cannot be read: the disk is full" in caplog.text
