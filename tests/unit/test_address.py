"""HOST:PORT as people write it, and the rule that nothing beyond loopback is dialled or listened at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.address import Address, refuse_beyond_loopback, split_address
from nexus_common.errors import Refusal
from pydantic import TypeAdapter, ValidationError

PORTS = st.integers(1, 65_535)


@given(st.ip_addresses(v=4).map(str) | st.from_regex(r"[a-z0-9.-]+", fullmatch=True), PORTS)
def test_host_and_port_come_apart(host: str, port: int) -> None:
    assert split_address(f"{host}:{port}") == (host, port)


@given(st.ip_addresses(v=6), PORTS)
def test_an_ipv6_address_stands_in_brackets(host: object, port: int) -> None:
    assert split_address(f"[{host}]:{port}") == (str(host), port)


@given(st.text())
def test_no_text_raises_anything_but_value_error(text: str) -> None:
    try:
        host, port = split_address(text)
    except ValueError as problem:
        assert "is not HOST:PORT with a port from 1 to 65535" in str(problem)
    else:
        assert host
        assert 0 < port < 65_536


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", ":80", "[]:80", "host:0", "host:65536", "host:-1", "host:８０", "host: 80", "h:8x"],
)
def test_this_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        split_address(text)


def test_a_setting_that_is_no_address_is_a_fault_of_that_setting() -> None:
    with pytest.raises(ValidationError, match="'host' is not HOST:PORT"):
        TypeAdapter(Address).validate_python("host")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "[::1]", "localhost"])
def test_loopback_is_let_through(host: str) -> None:
    refuse_beyond_loopback(f"{host}:8443")


EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize(
    "host",
    [EVERYWHERE, "[::]", "192.168.0.1", "10.0.0.1", "[fe80::1]", "[::ffff:192.168.0.1]", "server.example", "128.0.0.1"],
)
def test_what_another_machine_could_reach_is_refused(host: str) -> None:
    with pytest.raises(Refusal, match="not a loopback address") as refused:
        refuse_beyond_loopback(f"{host}:8443")
    assert refused.value.code == "no-secure-aggregation-yet"


@pytest.mark.parametrize(
    "host", ["localhost.example.com", "127.0.0.1.example.com", "0127.0.0.1", "127.1", "2130706433"]
)
def test_a_name_that_only_looks_like_loopback_is_refused(host: str) -> None:
    with pytest.raises(Refusal, match="no-secure-aggregation-yet"):
        refuse_beyond_loopback(f"{host}:8443")
