"""The calls of the administration socket as both ends see them: requests and answers, nothing that needs Flower."""

from typing import Final

from nexus_common.rpc import Body

SERVICE: Final = "nexus.ServerAdmin"


class SiteName(Body):
    """A site."""

    site: str


class RunName(Body):
    """A run."""

    run: str


class PlanText(Body):
    """A run description as it stands in its file."""

    text: str
    where: str


class InviteLine(Body):
    """The line to paste and until when it is valid."""

    line: str
    expires: float
    enrol_address: str
    address: str


class SiteLine(Body):
    """One enrolled site."""

    site: str
    connected: bool
    last_seen: float | None
    certificate_days_left: int
    readiness: str | None


class SiteList(Body):
    """All sites; ``invited`` have not come yet."""

    sites: list[SiteLine]
    invited: list[str]


class Status(Body):
    """One screen: what runs, and what it waits for."""

    run: str | None = None
    state: str | None = None
    round: int = 0
    rounds: int = 0
    phase: str = "idle"
    phase_since: float = 0.0
    missing: tuple[str, ...] = ()
    min_cohort: int = 0
    cohort: tuple[str, ...] = ()
    failed_rounds: int = 0
    round_seconds: tuple[float, ...] = ()
    bytes_up_per_site_round: int | None = None
    connected: tuple[str, ...] = ()


class VersionLine(Body):
    """One version."""

    run: str
    number: int
    hash: str
    cohort: list[str]
    created: float
    seconds: float | None
    bytes_up: int | None


class VersionList(Body):
    """All versions, oldest first."""

    versions: list[VersionLine]
