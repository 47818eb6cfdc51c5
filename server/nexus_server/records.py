"""What the registry remembers, as frozen records: sites, invitations, runs, versions."""

from dataclasses import dataclass
from typing import Final

from nexus_common.plan import Plan

RUNNING: Final = "running"
STOPPING: Final = "stopping"
STOPPED: Final = "stopped"
FINISHED: Final = "finished"


@dataclass(frozen=True)
class SiteRow:
    """An enrolled site."""

    name: str
    key_hash: bytes
    public_pem: bytes
    identity: bytes
    certificate: bytes
    expires: float
    enrolled: float
    last_seen: float | None
    readiness: str | None


@dataclass(frozen=True)
class Invitation:
    """An open or used invitation; ``request_hash`` is of the key that used it."""

    secret_hash: bytes
    site: str
    created: float
    expires: float
    request_hash: bytes | None


@dataclass(frozen=True)
class Run:
    """A run and how far it came; ``round`` is the number of its newest version."""

    plan: Plan
    state: str
    round: int
    optimiser: str | None


@dataclass(frozen=True)
class Version:
    """One committed version: 0 is the first vector, n the result of round n."""

    run: str
    number: int
    hash: str
    cohort: tuple[str, ...]
    seconds: float | None
    bytes_up: int | None
    created: float
