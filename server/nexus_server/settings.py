"""``server.toml``: where the server listens and under which address the sites dial it."""

from pathlib import Path
from typing import Final

from nexus_common.address import Address, AddressOrOff, refuse_unspecified, split_address
from nexus_common.config import Settings, read_toml
from pydantic import model_validator

TEMPLATE: Final = """\
# Settings of this consortium's server; `nexus-server` reads them at its start.
name = {name}
contact = {contact}          # whom a site asks when an invitation does not work

# The main port: what sites dial, and where this machine listens for it.
address = {address}
listen = {address}

# The enrolment port: open only while an invitation is.
enrol_address = {enrol_address}
enrol_listen = {enrol_address}

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


def admin_socket(home: Path) -> Path:
    """Where the running server takes administration."""
    return home / "admin.sock"


def audit_file(home: Path) -> Path:
    """The audit log."""
    return home / "audit.jsonl"
