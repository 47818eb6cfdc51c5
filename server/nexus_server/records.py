"""What the registry remembers, as frozen records: sites, invitations, runs, versions."""

from dataclasses import dataclass
from typing import Final

from nexus_common.plan import Plan
from nexus_common.stages import Stage

RUNNING: Final = "running"
STOPPING: Final = "stopping"
STOPPED: Final = "stopped"
FINISHED: Final = "finished"
MADE: Final = "made"
MIDPOINT: Final = "midpoint"
WITHDRAWN: Final = "withdrawn"
ROLLED_BACK: Final = "rolled back"
JOIN: Final = "join"
RENEW: Final = "renew"
REPLACE: Final = "replace"


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
    controller: str = ""
    contact: str = ""


@dataclass(frozen=True)
class Invitation:
    """An open or used invitation; ``request_hash`` is of the keys that used it, at the time ``used``."""

    secret_hash: bytes
    site: str
    created: float
    expires: float
    request_hash: bytes | None
    controller: str = ""
    contact: str = ""
    kind: str = JOIN
    used: float | None = None


@dataclass(frozen=True)
class Proposal:
    """A plan on its way to a run; ``wanted`` once the coordinator has said ``train``."""

    plan: Plan
    wanted: bool


@dataclass(frozen=True)
class Standing:
    """Where a site stands on a plan, as its signed notice said, and what its policy objects to (a refusal code)."""

    site: str
    state: str
    code: str
    at: float


@dataclass(frozen=True)
class Run:
    """A run and how far it came.

    ``round`` is the number of its newest version, which is in ``stage``; ``midpoints`` of its versions were not trained
    but laid between two others by a rollback.
    """

    plan: Plan
    state: str
    round: int
    midpoints: int
    stage: int
    optimiser: str | None

    @property
    def done(self) -> int:
        """Rounds trained."""
        return self.round - self.midpoints

    @property
    def form(self) -> Stage:
        """What its newest version holds."""
        return self.plan.stages[self.stage]


@dataclass(frozen=True)
class Version:
    """One committed version: 0 is the first vector; only those in state ``made`` are for use, of a trial the control.

    ``stage`` numbers the form that it has (``Plan.stages``).
    """

    run: str
    number: int
    hash: str
    cohort: tuple[str, ...]
    seconds: float | None
    bytes_up: int | None
    created: float
    state: str
    stage: int
