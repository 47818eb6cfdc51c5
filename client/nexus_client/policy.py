"""``policy.toml``: what a site allows.  The site's own word, which beats everything that the server asks for.

It is written by the site's administrator (root, where installed so) and only read by the agent, at every request, so
that a hijacked agent cannot widen it.  A policy that cannot be read allows nothing.
"""

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tomlkit
from nexus_common.config import Settings, parse_toml
from nexus_common.disk import one_at_a_time, write_durably
from nexus_common.errors import NexusError, Refusal
from nexus_common.hours import Hours, HoursText, minute_of
from nexus_common.plan import Plan
from nexus_common.recipe import Hex, Positive
from pydantic import Field

TEMPLATE: Final = """\
# What {site} allows. This file is the site's own word and beats everything that the server asks for.
# The agent reads it at every request and never writes it; `nexus-client plan approve`, `plan withdraw`, `pause`,
# `resume` and `leave` write the first three settings, all others are for you to change here.

participation = "active"            # active, paused (nothing trains here until `nexus-client resume`), or left

# SHA-256 of the plan that this site's people have approved, with who and when; nothing else is trained.
approved_plans = []
withdrawn_plans = []

min_cohort = 3                      # the fewest sites that a sum may be over
max_clip_norm = 20.0                # the largest L2 norm of an update: how far one site may move the adapter in a round
min_rows = 10                       # the fewest training rows with which this site takes part
max_loss = 0.02                     # of nDCG@10 (0 to 1): a new version is used only where this site's hold-out gives
                                    # odds of 1 in 10 or less that it loses more, and does not show it to be worse
allowed_hours = "00:00-24:00"       # by this machine's clock, such as "20:00-06:00"; a plan must stay inside

# Without differential privacy, whoever holds a version can find out whether a known sentence was trained on.
# Only plans with record-level privacy can be approved while this is false.
accept_no_record_privacy = false
# max_epsilon = 3.0                 # the weakest record-level privacy to approve; without it any
"""


class Policy(Settings):
    """The settings of ``policy.toml``."""

    participation: Literal["active", "paused", "left"] = "active"
    approved_plans: tuple[Hex, ...] = ()
    withdrawn_plans: tuple[Hex, ...] = ()
    min_cohort: Annotated[int, Field(ge=3)] = 3
    max_clip_norm: Positive = 20.0
    min_rows: Annotated[int, Field(ge=0)] = 10
    max_loss: Annotated[float, Field(ge=0, le=1)] = 0.02
    allowed_hours: HoursText = "00:00-24:00"
    accept_no_record_privacy: bool = False
    max_epsilon: Positive | None = None

    def check_plan(self, plan: Plan, today: dt.date) -> None:
        """Raise Refusal unless a plan stays inside this policy, approved or not; ``require`` does so at each request.

        The plan's hours must lie inside the allowed ones in summer and in winter: a plan within the hours of every site
        is within hours that all sites share.
        """
        self._check_limits(plan, today)
        for ahead in _clocks(today.year):
            wanted = plan.hours.shifted(ahead)
            if not Hours.parse(self.allowed_hours).covers(wanted):
                raise Refusal(
                    "outside-hours",
                    f"plan {plan.name} runs at {wanted} by this machine's clock (in summer or winter), this site "
                    f"allows {self.allowed_hours} (policy.toml: allowed_hours); ask for a plan whose hours lie inside "
                    "those of every site (`nexus-server plan new --hours`)",
                )

    def _check_limits(self, plan: Plan, today: dt.date) -> None:
        if today > plan.end_date:
            raise Refusal("plan-ended", f"plan {plan.name} ended on {plan.end_date}; ask for one that continues it")
        if plan.quorum < self.min_cohort:
            raise Refusal(
                "cohort-too-small",
                f"plan {plan.name} makes versions of {plan.quorum} sites, this site wants at least {self.min_cohort} "
                "(policy.toml: min_cohort); ask for a plan with a larger min_cohort, or lower yours",
            )
        if plan.local.clip_norm > self.max_clip_norm:
            raise Refusal(
                "clip-bound",
                f"plan {plan.name} lets a site move the adapter by {plan.local.clip_norm:g} a round, this site allows "
                f"{self.max_clip_norm:g} (policy.toml: max_clip_norm)",
            )
        if plan.privacy is None:
            if not self.accept_no_record_privacy:
                raise Refusal(
                    "no-record-privacy",
                    f"plan {plan.name} has epsilon: none (records are not protected); it can be approved only where "
                    "policy.toml says accept_no_record_privacy = true, which is for the data-protection officer to say",
                )
            return
        raise Refusal("privacy-not-available", f"plan {plan.name} asks for noise; this release cannot train with it")

    def check_epsilon(self, plan: Plan, spent: float) -> None:
        """Raise Refusal where a plan's noise is worth less than this site's people want."""
        if self.max_epsilon is not None and spent > self.max_epsilon:
            raise Refusal(
                "epsilon-bound",
                f"plan {plan.name} spends epsilon {spent:.2f}, this site allows {self.max_epsilon:g} (policy.toml: "
                "max_epsilon)",
            )

    def require(self, plan: Plan, now: dt.datetime) -> None:
        """Raise Refusal unless this plan may run here at this moment; ``now`` with a time zone."""
        if self.participation != "active":
            raise Refusal(self.participation, f"policy.toml says participation = {self.participation!r}")
        name = plan.hash.hex()
        if name in self.withdrawn_plans:
            raise Refusal("plan-withdrawn", f"the approval of plan {plan.name} was withdrawn here")
        if name not in self.approved_plans:
            raise Refusal("plan-not-approved", f"plan {plan.name} waits for `nexus-client plan approve`")
        utc = now.astimezone(dt.UTC)
        self._check_limits(plan, utc.date())
        if not Hours.parse(self.allowed_hours).holds(minute_of(now)):
            raise Refusal("outside-hours", f"it is {now:%H:%M}, this site trains at {self.allowed_hours}")
        if not plan.hours.holds(minute_of(utc)):
            raise Refusal("outside-hours", f"it is {utc:%H:%M} UTC, plan {plan.name} trains at {plan.hours}")


def read_policy(path: Path) -> Policy:
    """The site's policy; Refusal ``policy-invalid`` where it is missing or faulty: then nothing is allowed."""
    try:
        return parse_toml(Policy, path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise Refusal("policy-invalid", f"{path} does not exist; `nexus-client join` writes it") from None
    except (OSError, UnicodeDecodeError, NexusError) as problem:
        raise Refusal("policy-invalid", str(problem)) from None


def write_policy(path: Path, site: str) -> None:
    """Write a commented policy where there is none."""
    if not path.exists():
        write_durably(path, TEMPLATE.format(site=site).encode())


def _clocks(year: int) -> set[int]:
    """By how many minutes this machine's clock is ahead of UTC, in winter and in summer."""
    days = (dt.datetime(year, month, 1).astimezone().utcoffset() for month in (1, 7))
    return {int(ahead.total_seconds() // 60) for ahead in days if ahead is not None}


def require_changeable(path: Path) -> None:
    """NexusError where this account cannot change the policy: asked before anything of a change is logged."""
    if not os.access(folder := path.parent, os.W_OK | os.X_OK, effective_ids=True):
        raise NexusError(
            f"{path} cannot be changed by this account, or lies on what is mounted read-only; give the command as the "
            f"account that {folder} belongs to (uid {folder.stat().st_uid})"
        )


def change_policy(path: Path, comment: str = "", **values: Any) -> Policy:
    """Set some values, as ``rewrite_policy`` does."""
    return rewrite_policy(path, lambda _: values, comment)


def rewrite_policy(path: Path, change: Callable[[Policy], dict[str, Any]], comment: str = "") -> Policy:
    """Set what ``change`` makes of the policy and keep the rest of the file as it stands, comments too.

    A list is written one item a line; those of ``approved_plans`` get ``comment``.
    """
    require_changeable(path)
    with one_at_a_time(path.parent):
        return _changed(path, change(read_policy(path)), comment)


def _changed(path: Path, values: dict[str, Any], comment: str) -> Policy:
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        if not isinstance(value, list):
            document[name] = value
            continue
        array = tomlkit.array()
        for item in value:
            array.add_line(item, comment=comment if comment and name == "approved_plans" else None)
        if value:
            array.add_line(indent="")
        document[name] = array
    write_durably(path, tomlkit.dumps(document).encode())
    return read_policy(path)
