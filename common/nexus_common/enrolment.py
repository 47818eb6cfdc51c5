"""The invitation line and the two calls of enrolment, as both sides see them.

The line names the enrolment address, the site, the SHA-256 of the CA's key, and a one-time secret:

    nexus://hospital-a:SECRET@server.example:8444/?ca=HASH
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import ConfigDict, TypeAdapter, ValidationError

from nexus_common.address import split_address
from nexus_common.config import SiteName
from nexus_common.errors import NexusError
from nexus_common.rpc import Body

SERVICE: Final = "nexus.Enrolment"
_SITE_NAME: Final = TypeAdapter(SiteName)


class Authority(Body):
    """The consortium's CA certificate (PEM), for the site to hold against its pinned hash."""

    certificate: str


class EnrolRequest(Body):
    """A site's two public keys, each proven by a signature."""

    model_config = ConfigDict(**Body.model_config, ser_json_bytes="base64", val_json_bytes="base64")
    site: SiteName
    secret: bytes
    csr: bytes
    identity: bytes
    signature: bytes


class EnrolAnswer(Body):
    """Certificate (PEM) and main address, or a refusal code with its facts."""

    certificate: str | None = None
    server: str | None = None
    refused: str | None = None
    expired: float | None = None
    contact: str | None = None


@dataclass(frozen=True)
class Invite:
    """What the pasted line says."""

    address: str
    site: str
    ca_hash: bytes
    secret: bytes

    @property
    def line(self) -> str:
        """The line to paste."""
        return f"nexus://{self.site}:{_text(self.secret)}@{self.address}/?ca={quote(_text(self.ca_hash))}"

    @classmethod
    def parse(cls, line: str) -> "Invite":
        """Read a pasted line; NexusError that says what is wrong with it."""
        try:
            parts = urlsplit(line.strip())
            ca = _bytes(parse_qs(parts.query, strict_parsing=True)["ca"][0])
            secret = _bytes(parts.password or "")
            address = parts.netloc.rpartition("@")[2]
            split_address(address)
            whole = parts.scheme == "nexus" and len(ca) == 32 and len(secret) == 16
            site = _SITE_NAME.validate_python(parts.username)
        except (ValueError, KeyError, ValidationError):
            whole = None
        if not whole:
            raise NexusError(
                "this is not an invitation line (nexus://SITE:SECRET@HOST:PORT/?ca=HASH); paste it whole, "
                "as `nexus-server invite` printed it"
            )
        return cls(address, site, ca, secret)


def request_bytes(site: str, secret: bytes, csr: bytes) -> bytes:
    """What a site's identity key signs when it enrols."""
    return b"nexus enrol 1\n" + site.encode() + b"\n" + hashlib.sha256(secret).digest() + csr


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
