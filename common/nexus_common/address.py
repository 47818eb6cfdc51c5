"""``HOST:PORT`` as people write it, and the rule that holds until updates are masked: loopback only."""

import ipaddress
from typing import Annotated

from pydantic import AfterValidator

from nexus_common.errors import Refusal


def split_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:8443`` or ``[::1]:8443`` -> host, port; ValueError with the cause."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"{text!r} is not HOST:PORT with a port from 1 to 65535")
    return host, int(port)


def _valid(text: str) -> str:
    split_address(text)
    return text


Address = Annotated[str, AfterValidator(_valid)]


def refuse_beyond_loopback(text: str) -> None:
    """Refusal ``no-secure-aggregation-yet`` for every address that another machine could reach."""
    host, _ = split_address(text)
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise Refusal(
            "no-secure-aggregation-yet",
            f"{text} is not a loopback address; the server could read every "
            "site's update, so until secure aggregation is in, both programs stay on 127.0.0.1 or ::1",
        )
