"""``server.toml``: where the server listens and under which address the sites dial it."""

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from nexus_common.address import Address, AddressOrOff, is_loopback, refuse_unspecified, split_address
from nexus_common.config import Settings, read_toml
from pydantic import model_validator

TEMPLATE: Final = """\
# Settings of this consortium's server; `nexus-server` reads them at its start.
name = {name}
contact = {contact}          # whom a site asks when an invitation does not work

# The main port: what sites dial, and where this machine listens for it.  "0.0.0.0:8443" is every IPv4 address of this
# machine, "[::]:8443" IPv6 as well; a name is what /etc/hosts makes of it, often 127.0.1.1, which no site reaches.
address = {address}
listen = {listen}

# The enrolment port: open only while an invitation is.
enrol_address = {enrol_address}
enrol_listen = {enrol_listen}

# Figures of this server for Prometheus, at /metrics; for this machine alone unless you say otherwise.  "off": none.
metrics = "127.0.0.1:9464"
"""


class ServerSettingsFile(Settings):
    """Settings of the server."""

    name: str
    contact: str = "the coordinator"
    address: Address
    listen: Address
    enrol_address: Address
    enrol_listen: Address
    metrics: AddressOrOff = "127.0.0.1:9464"

    @property
    def hosts(self) -> list[str]:
        """The host names and addresses that sites dial, each once."""
        return list(dict.fromkeys(split_address(address)[0] for address in (self.address, self.enrol_address)))

    @model_validator(mode="after")
    def _two_ports(self) -> "ServerSettingsFile":
        if self.listen == self.enrol_listen or self.address == self.enrol_address:
            raise ValueError(f"the main port and the enrolment port are both {self.listen}; give them different ones")
        return self


def read_settings(home: Path) -> ServerSettingsFile:
    """Read and check ``server.toml``."""
    return checked(read_toml(ServerSettingsFile, home / "server.toml", "run `nexus-server init` first"))


def checked(settings: ServerSettingsFile) -> ServerSettingsFile:
    """The settings themselves; NexusError where sites could not dial an address."""
    for address in (settings.address, settings.enrol_address):
        refuse_unspecified(address)
    return settings


def listen_for(address: str) -> str:
    """Where to listen for what sites dial: there where it is an address of this machine, else at every one of its."""
    host, port = split_address(address)
    if is_loopback(host) or _is_own(host):
        return address
    return f"[::]:{port}" if ":" in host else f"0.0.0.0:{port}"


def _is_own(host: str) -> bool:
    """A name is none: it may be led to loopback here, and anywhere tomorrow."""
    try:
        family = socket.AF_INET if ip_address(host).version == 4 else socket.AF_INET6
        with socket.socket(family) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True


def admin_socket(home: Path) -> Path:
    """Where the running server takes administration."""
    return home / "admin.sock"


def audit_file(home: Path) -> Path:
    """The audit log."""
    return home / "audit.jsonl"
