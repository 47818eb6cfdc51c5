"""The calls of the administration socket as both ends see them: requests and answers, nothing that needs Flower."""

from typing import Final, Literal

from nexus_common.report import TrialLine, VersionLine
from nexus_common.rpc import Body
from pydantic import Field

SERVICE: Final = "nexus.ServerAdmin"


class InviteRequest(Body):
    """A site to invite, and who answers for its data in plans; ``kind``: to join, to renew or to replace its keys."""

    site: str
    controller: str = ""
    contact: str = ""
    kind: Literal["join", "renew", "replace"] = "join"


class SiteName(Body):
    """A site."""

    site: str


class RunName(Body):
    """A run."""

    run: str


class PlanText(Body):
    """A plan as it stands in its file ``where``, or only the name of one that the server knows."""

    text: str | None
    where: str


class NewPlan(Body):
    """What a new plan is made of: all enrolled sites, or an earlier plan with changes."""

    name: str
    purpose: str = ""
    end_date: str = ""
    rounds: int | None = None
    min_cohort: int | None = None
    hours: str | None = None
    base_model: str | None = None
    recipe: str = ""  # TOML: [adapter], [local], [server], [aggregation], [privacy] or single settings
    start: str | None = None
    clip_norm: float | None = None
    range: float | None = None
    origin: str | None = None  # name of the plan that it follows
    add: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    version: int | None = None


class PlanDraft(Body):
    """A plan's file for the coordinator to complete, what to know about it, and the bounds it has."""

    text: str
    notes: list[str]
    clip_norm: float
    range: float


class PlanStanding(Body):
    """A plan, and where its sites stand; ``code`` is what a site's policy objects to."""

    class Site(Body):
        """One site's answer, ``unasked`` before there is one."""

        site: str
        state: str
        code: str
        at: float | None

    plan: str
    hash: str
    became: str  # proposed, wanted, or the state of its run
    canonical: str
    sites: list[Site]


class PlanList(Body):
    """All plans, the newest first."""

    plans: list[PlanStanding]


class Rollback(Body):
    """Go back to a version of a run; without a name the newest run."""

    run: str | None
    version: int


class Withdrawal(Body):
    """Take versions of a run out of use."""

    run: str | None
    first: int
    last: int


class InviteLine(Body):
    """The line to paste and until when it is valid."""

    line: str
    expires: float
    enrol_address: str
    address: str


class SiteLine(Body):
    """One enrolled site; ``bytes_received`` inside of TLS, since the server started."""

    site: str
    connected: bool
    last_seen: float | None
    certificate_days_left: int
    readiness: str | None
    standing: str | None = None
    bytes_received: int = 0


class SiteList(Body):
    """All sites; ``invited`` have not come yet; ``ca_overlap`` while some still hold an older CA key's certificate."""

    sites: list[SiteLine]
    invited: list[str]
    ca_days_left: int
    ca_overlap: bool


class RotateRequest(Body):
    """A new key for the CA; ``distrust``: what the old one signed counts no more."""

    distrust: bool


class Rotated(Body):
    """Sites whose invitation ended with the old key."""

    ended: list[str]


class Status(Body):
    """One screen: what runs, and what it waits for."""

    run: str | None = None
    state: str | None = None
    round: int = 0
    rounds: int = 0
    phase: str = "idle"
    phase_since: float = 0.0
    missing: tuple[str, ...] = ()
    quorum: int = 0
    sites: int = 0
    in_use: int | None = None
    wanted: str | None = None
    approvals_missing: tuple[str, ...] = ()
    problem: str | None = None
    cohort: tuple[str, ...] = ()
    failed_rounds: int = 0
    spent: bool = False  # all masked inputs that the plan allows
    failures: dict[str, str] = Field(
        default_factory=dict
    )  # of the newest try of the next round, by site; "" is for the round itself
    taken_back: str | None = None  # the last version that its cohort voted down, and what became of the run
    trials: tuple[TrialLine, ...] = ()
    round_seconds: tuple[float, ...] = ()
    bytes_up_per_site_round: int | None = None
    connected: tuple[str, ...] = ()
    metrics: str = ""  # where they are served, or why they are not


class NumberedVersion(VersionLine):
    """One version of a run, with the hash that its file is named by."""

    run: str
    hash: str
    created: float


class VersionList(Body):
    """All versions, oldest first; ``notes`` say which were voted down."""

    versions: list[NumberedVersion]
    notes: tuple[str, ...] = ()


class RunChoice(Body):
    """A run; the newest where none is named."""

    run: str | None
