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
    at: float  # when it was proposed


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


@dataclass(frozen=True)
class Rejection:
    """A version that its cohort voted down: ``votes`` is the sum over ``sites`` sites.

    ``back_to`` is in use again, where there is one.  ``stopped``: the run went back to that one before, or too often,
    so it has ended until a person says otherwise.
    """

    run: str
    version: int
    votes: float
    sites: int
    back_to: int | None
    stopped: bool
    at: float

    def __str__(self) -> str:
        told = f"the votes of {self.sites} sites on it add up to {self.votes:+.0f}"
        remedy = (
            f"find out what spoils it (`nexus-server report {self.run}`; perhaps a plan without a site), or let it go "
            f"on with `nexus-server train {self.run}`"
        )
        if self.back_to is None:
            return (
                f"version {self.version} was voted down: {told}; there is none before it to go back to, so it stays in "
                f"use and the run has stopped: {remedy}"
            )
        told = f"version {self.version} was taken back: {told}; version {self.back_to} is in use"
        return f"{told}; it was not the first time, so the run has stopped: {remedy}" if self.stopped else told
