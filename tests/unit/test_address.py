"""HOST:PORT as people write it, and the rule that nothing beyond loopback is dialled or listened at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nexus_common.address import Address, refuse_unspecified, split_address, split_proxy
from nexus_common.errors import NexusError
from pydantic import TypeAdapter, ValidationError

PORTS = st.integers(1, 65_535)


@given(st.ip_addresses(v=4).map(str) | st.from_regex(r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63}){0,3}", fullmatch=True), PORTS)
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
    [
        "",
        ":",
        "host",
        "host:",
        ":80",
        "[]:80",
        "host:0",
        "host:65536",
        "host:-1",
        "host:８０",
        "host: 80",
        "h:8x",
        "a..b:80",
        f"{'x' * 64}:80",
        "klinik-münchen.example:80",
    ],
)
def test_this_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        split_address(text)


def test_a_setting_that_is_no_address_is_a_fault_of_that_setting() -> None:
    with pytest.raises(ValidationError, match="'host' is not HOST:PORT"):
        TypeAdapter(Address).validate_python("host")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "192.0.2.1", "server.example", "0127.0.0.1"])
def test_what_can_be_dialled_is_let_through(host: str) -> None:
    refuse_unspecified(f"{host}:8443")


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "[0:0::0]"])  # noqa: S104
def test_what_nobody_can_dial_is_refused(host: str) -> None:
    with pytest.raises(NexusError, match="name this server's own address"):
        refuse_unspecified(f"{host}:8443")


@pytest.mark.parametrize(
    ("text", "found"), [("http://proxy.example:3128", ("proxy.example", 3128)), ("http://[::1]:80/", ("::1", 80))]
)
def test_a_proxy_is_a_host_and_a_port(text: str, found: tuple[str, int]) -> None:
    assert split_proxy(text) == found


@pytest.mark.parametrize(
    "text", ["", "proxy:3128", "https://proxy:3128", "http://proxy", "http://a:b@proxy:3128", "http://"]
)
def test_any_other_proxy_is_refused_with_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_proxy(text)
