"""``HOST:PORT`` as people write it, with "off" where a port may be left closed, and a proxy's ``http://HOST:PORT``."""

import ipaddress
from typing import Annotated, Final

from pydantic import AfterValidator

from nexus_common.errors import NexusError

OFF: Final = "off"


def split_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:8443`` or ``[::1]:8443`` -> host, port; ValueError with the cause."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not _can_be_dialled(host) or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"{text!r} is not HOST:PORT with a port from 1 to 65535 and a name as DNS has it (xn--...)")
    return host, int(port)


def _can_be_dialled(host: str) -> bool:
    """Whether certificates can hold a name, and Python's own sockets look it up."""
    try:
        return host.isascii() and bool(host.encode("idna"))
    except UnicodeError:  # a part that is empty, or longer than 63
        return False


def _valid(text: str) -> str:
    split_address(text)
    return text


def _valid_or_off(text: str) -> str:
    return text if text == OFF else _valid(text)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_proxy(text: str) -> tuple[str, int]:
    """``http://proxy.example:3128`` -> host, port; ValueError with the cause."""
    if not text.startswith("http://") or "@" in text:
        raise ValueError(f"{text!r} is not http://HOST:PORT, a proxy without a password that takes CONNECT")
    return split_address(text.removeprefix("http://").removesuffix("/"))


def _valid_proxy(text: str) -> str:
    split_proxy(text)
    return text


Address = Annotated[str, AfterValidator(_valid)]
AddressOrOff = Annotated[str, AfterValidator(_valid_or_off)]
Proxy = Annotated[str, AfterValidator(_valid_proxy)]


def refuse_unspecified(text: str) -> None:
    """NexusError for 0.0.0.0 and [::]: to listen at, they are every address of a machine; nobody can dial them."""
    host, _ = split_address(text)
    try:
        unspecified = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return  # a name
    if unspecified:
        raise NexusError(f"{text} cannot be dialled by other machines; name this server's own address or host name")
