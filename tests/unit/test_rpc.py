"""Typed calls over a real Unix socket: answers, faults that travel as text, and faults that must not."""

import logging
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from nexus_common import rpc
from nexus_common.errors import NexusError, Refusal

SERVICE = "nexus.Test"


class Number(rpc.Body):
    """Request and answer."""

    n: int


def halve(number: Number) -> Number:
    return Number(n=number.n // 2)


def refuse(_: Number) -> Number:
    raise Refusal("site-busy", "der Lauf „größer“\nläuft noch")


def refuse_at_length(number: Number) -> Number:
    raise NexusError("x" * number.n)


def fail(_: Number) -> Number:
    raise ValueError("Zacharias Quillfeather")


METHODS = {run.__name__: rpc.Method(Number, Number, run) for run in (halve, refuse, refuse_at_length, fail)}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nx") as made:  # short: a socket lies in it
        yield Path(made)


@pytest.fixture(scope="module")
def channel(folder: Path) -> Iterator[grpc.Channel]:
    server = rpc.start_local(METHODS, SERVICE, folder / "s")
    with grpc.insecure_channel(rpc.local_address(folder / "s")) as opened:
        yield opened
    server.stop(None).wait()


def call(channel: grpc.Channel, name: str, n: int = 8) -> Number:
    return rpc.call(channel, SERVICE, name, Number(n=n), Number, 10.0)


def test_an_answer_comes_back_typed(channel: grpc.Channel) -> None:
    assert call(channel, "halve") == Number(n=4)


def test_the_socket_is_for_those_who_may_enter_its_folder(channel: grpc.Channel, folder: Path) -> None:
    assert (folder / "s").stat().st_mode & 0o777 == 0o660


def test_a_nexus_error_travels_with_its_text(channel: grpc.Channel) -> None:
    with pytest.raises(NexusError) as problem:
        call(channel, "refuse")
    assert str(problem.value) == "site-busy: der Lauf „größer“\nläuft noch"


def test_a_long_nexus_error_travels_too(channel: grpc.Channel) -> None:
    with pytest.raises(NexusError, match="x" * 1000):
        call(channel, "refuse_at_length", 20_000)


def test_another_fault_is_a_failed_connection_and_no_nexus_error(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.CRITICAL, "grpc"),
        pytest.raises(ConnectionError, match=r"^internal: a fault of the program"),
    ):
        call(channel, "fail")


def test_the_text_of_another_fault_stays_where_it_arose(channel: grpc.Channel) -> None:
    with pytest.raises(ConnectionError) as problem:
        call(channel, "fail")
    assert "Quillfeather" not in str(problem.value)


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(ConnectionError, match=r"^unimplemented: "):
        call(channel, "double")


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"null", b"[]", b'{"n": "x"}', b"{}", b'{"n": 1, "m": 2}', b"[" * 10_000], ids=repr
)
def test_a_body_that_is_not_exactly_the_request_is_malformed(channel: grpc.Channel, body: bytes) -> None:
    raw = channel.unary_unary(f"/{SERVICE}/halve")
    with pytest.raises(grpc.RpcError) as problem:
        raw(body, timeout=10)
    assert (problem.value.code(), problem.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed")


def test_an_answer_of_another_type_is_a_failed_connection(channel: grpc.Channel) -> None:
    with pytest.raises(ConnectionError, match=r"^internal: "):
        rpc.call(channel, SERVICE, "halve", Number(n=8), rpc.Nothing, 10.0)


def test_a_body_beyond_the_limit_is_not_taken(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as problem:
        channel.unary_unary(f"/{SERVICE}/halve")(bytes(rpc.MAX_MESSAGE_BYTES + 1), timeout=10)
    assert problem.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_socket_nobody_serves_is_unavailable(folder: Path) -> None:
    with (
        grpc.insecure_channel(rpc.local_address(folder / "none")) as nobody,
        pytest.raises(ConnectionError, match=r"^unavailable: "),
    ):
        call(nobody, "halve")


def test_a_socket_in_a_deep_folder_is_reached(folder: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    server = rpc.start_local(METHODS, SERVICE, deep / "s")
    with grpc.insecure_channel(rpc.local_address(deep / "s")) as opened:
        assert call(opened, "halve") == Number(n=4)
    server.stop(None).wait()


def test_an_address_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(NexusError, match=f"cannot listen at {address}: it is taken"):
            rpc.start(METHODS, SERVICE, address)
