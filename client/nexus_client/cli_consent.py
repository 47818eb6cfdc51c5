"""Commands of ``nexus-client`` with which a site's people say yes, no or stop, and read what happened.

They work on the site's own files beside the running agent, which sees a changed policy within a second.
"""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from nexus_common.account import act_as_owner
from nexus_common.audit_view import SinceOption, VerifyOption, show_audit
from nexus_common.cli import options, show
from nexus_common.errors import NexusError
from nexus_common.plan_page import as_html, as_markdown
from nexus_common.plan_words import plan_words

from nexus_client.consent import Consent
from nexus_client.privacy import epsilon
from nexus_client.site import SiteHome

NameArgument = Annotated[str | None, typer.Argument(help="name of the plan; the newest where it is left out")]
ByOption = Annotated[str, typer.Option("--by", help="who says so: name and office")]
RefOption = Annotated[str | None, typer.Option("--ref", help="your own reference, such as a file number")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="base, alone, federated, personal, a version's number or a name (what is in use)"),
]
MAX_PERSON: Final = 200


def place_of(context: typer.Context) -> SiteHome:
    """The site that a command is for."""
    given = options(context)
    return SiteHome.find(given.home, given.site)


def place_to_write(context: typer.Context) -> SiteHome:
    """As ``place_of``, for what writes there in this process: from now on it acts as the folder's owner."""
    place = place_of(context)
    act_as_owner(place.state)
    return place


def _consent(context: typer.Context) -> Consent:
    return Consent(place_of(context))


def _person(text: str | None) -> str:
    """One printable line, since it stands in the log and in the policy's comments."""
    text = (text or "").strip()
    if not text.isprintable() or len(text) > MAX_PERSON:
        raise NexusError(f"--by and --ref take one line of at most {MAX_PERSON} printable characters")
    return text


def add_plan_commands(app: typer.Typer) -> None:
    """``plan show``, ``plan approve``, ``plan withdraw``."""
    plans = typer.Typer(
        help="Show, approve or withdraw a plan.\n\n\b\nExample: nexus-client plan show", add_completion=False
    )
    app.add_typer(plans, name="plan")

    @plans.command("show")
    def plan_show(
        context: typer.Context,
        name: NameArgument = None,
        html: Annotated[Path | None, typer.Option(help="write one printable page for the officer")] = None,
    ) -> None:
        """Show a plan in sentences, with its twelve words.

        \b
        Example: nexus-client plan show --html plan.html
        """
        consent = _consent(context)
        plan, before = consent.find(name), consent.approved()
        words, spent = plan_words(plan.hash), epsilon(plan) if plan.privacy else None
        text = as_markdown(plan, words, before if before and before.hash != plan.hash else None, spent)
        if html is not None:
            html.write_text(as_html(text, f"Plan {plan.name}"), encoding="utf-8")
        show(
            context,
            {"plan": plan.name, "hash": plan.hash.hex(), "words": list(words), "standing": consent.standing(plan)[0]},
            f"written: {html}" if html else text,
        )

    @plans.command("approve")
    def plan_approve(
        context: typer.Context,
        by: ByOption,
        name: NameArgument = None,
        ref: RefOption = None,
    ) -> None:
        """Approve a plan: asks for its twelve words, as another site read them.

        \b
        Example: nexus-client plan approve --by 'Dr X, DPO' --ref 2026-114
        """
        consent, by, reference = _consent(context), _person(by), _person(ref)
        if not by:
            raise NexusError("--by is empty: who approves?")
        plan = consent.find(name)
        consent.check(plan)
        asked = f"the twelve words of plan {plan.name}, as another site read them to you"
        words = typer.prompt(asked) if sys.stdin.isatty() else sys.stdin.readline()
        consent.approve(plan, words, by, reference or None)
        show(
            context,
            {"plan": plan.name, "hash": plan.hash.hex(), "standing": "approved"},
            f"plan {plan.name} is approved by {by}; `nexus-client plan withdraw --by ...` ends that at any time",
        )

    @plans.command("withdraw")
    def plan_withdraw(
        context: typer.Context,
        by: ByOption,
        name: NameArgument = None,
        ref: RefOption = None,
    ) -> None:
        """Take an approval back, at once.

        \b
        Example: nexus-client plan withdraw --by 'Dr X, DPO'
        """
        plan = _consent(context).withdraw(name, _person(by), _person(ref) or None)
        show(
            context,
            {"plan": plan, "standing": "withdrawn"},
            f"the approval of plan {plan} is withdrawn: nothing more is trained or sent for it. Versions made "
            "until now keep what they learnt; the coordinator can train again from before, or stop their use "
            "(nexus-server plan new --from, models withdraw)",
        )


PARTICIPATION: Final = {
    "pause": ("paused", "Stop taking part for a while; approvals stay.", "pauses: nothing trains here until `resume`"),
    "resume": ("active", "Take part again.", "takes part again"),
    "leave": (
        "left",
        "Leave the consortium: every approval ends.",
        "has left: every approval ended, and the coordinator sees it. Versions and keys are kept; delete "
        "its folders to remove them, or come back with `resume` and a new approval",
    ),
}


def add_site_commands(app: typer.Typer) -> None:
    """``audit``, ``pause``, ``resume``, ``leave``."""

    @app.command("audit")
    def audit_log(
        context: typer.Context,
        verify: VerifyOption = False,
        since: SinceOption = None,
    ) -> None:
        """Print the audit log, or verify it.

        \b
        Example: nexus-client audit --verify --from 3f1a...
        """
        place = place_of(context)
        program = f"nexus-client {place.site}"
        show_audit(context, place.audit_file, program, verify=verify, since=since)

    for name, (participation, what, done) in PARTICIPATION.items():
        _add_participation(app, name, participation, what, done)


def _add_participation(app: typer.Typer, name: str, participation: str, what: str, done: str) -> None:
    def change(context: typer.Context, by: Annotated[str, typer.Option("--by", help="who says so")] = "") -> None:
        consent = _consent(context)
        consent.participate(participation, _person(by) or "administrator")
        show(context, {"site": consent.place.site, "participation": participation}, f"{consent.place.site} {done}")

    change.__doc__ = f"{what}\n\n\b\nExample: nexus-client {name}"
    app.command(name)(change)
