"""``nexus-server plan``: write a plan, read it as its people will, put it before them, see where they stand."""

from pathlib import Path
from typing import Annotated, Final

import typer
from nexus_common import rpc
from nexus_common.base_model import base_hash
from nexus_common.cli import moment, show, table
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError
from nexus_common.plan import Plan, parse_plan
from nexus_common.plan_page import as_html, as_markdown
from nexus_common.plan_words import plan_words

from nexus_server import admin_api as admin
from nexus_server.asking import call
from nexus_server.dry_run import NO_DRY_RUN, dry_run

SIGNS: Final = {"pending": "not yet", "unasked": "not heard yet"}


def plan_text(plan: str) -> admin.PlanText:
    """A plan's file, or the name of one that the server knows."""
    path = Path(plan)
    if not path.exists():
        return admin.PlanText(text=None, where=plan)
    return admin.PlanText(text=read_text(path), where=plan)


def read_text(path: Path) -> str:
    """A file's text; NexusError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise NexusError(f"{path} cannot be read: {problem}") from None


def add_plan_commands(app: typer.Typer) -> None:
    """``plan new``, ``plan show``, ``plan propose``, ``plan status``."""
    plans = typer.Typer(
        help="Write, show and propose plans, and see who approved.\n\n\b\nExample: nexus-server plan status",
        add_completion=False,
        rich_markup_mode=None,
    )
    app.add_typer(plans, name="plan")
    plans.command("new")(_new)
    plans.command("show")(_show)
    plans.command("propose")(_propose)
    plans.command("status")(_status)


def _new(
    context: typer.Context,
    name: str,
    file: Annotated[Path | None, typer.Option(help="where to write it (NAME.toml)", show_default=False)] = None,
    purpose: Annotated[str, typer.Option(help="what the model is for, in one sentence")] = "",
    end: Annotated[str, typer.Option(help="last day of the plan, as 2027-06-30")] = "",
    rounds: Annotated[int | None, typer.Option(help="versions to train (10)", show_default=False)] = None,
    min_cohort: Annotated[int | None, typer.Option(help="fewest sites of a version (3)", show_default=False)] = None,
    hours: Annotated[str | None, typer.Option(help="hours of rounds in UTC, as 20:00-06:00")] = None,
    start: Annotated[str | None, typer.Option(help="every-site (default) or quorum: who must approve first")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML of training settings, where not the shipped ones")] = None,
    base: Annotated[Path | None, typer.Option(help="folder of another 384-d SentenceTransformer")] = None,
    clip: Annotated[float | None, typer.Option(help="largest norm of an update, instead of a dry run")] = None,
    follow: Annotated[
        str | None, typer.Option("--from", help="a run whose plan and versions this one goes on from")
    ] = None,
    add: Annotated[list[str] | None, typer.Option(help="a site more; repeatable")] = None,
    without: Annotated[list[str] | None, typer.Option(help="a site less; repeatable")] = None,
    from_version: Annotated[int | None, typer.Option(help="begin at this version, not at the newest")] = None,
) -> None:
    """Write a plan of all enrolled sites, or one that follows another.

    \b
    Example: nexus-server plan new first --purpose "better search in patient leaflets" --end 2027-06-30
    Example: nexus-server plan new second --from first --add bank-b --rounds 20
    """
    if from_version is not None and follow is None:
        raise NexusError("--from-version says at which version of another run to begin; name that run with --from")
    path = file or Path(f"{name}.toml")
    if path.exists():
        raise NexusError(f"{path} exists; give another --file, or delete it")
    request = admin.NewPlan(
        name=name,
        purpose=purpose,
        end_date=end,
        rounds=rounds,
        min_cohort=min_cohort,
        hours=hours,
        start=start,
        base_model=base_hash(base) if base else None,
        recipe=read_text(recipe) if recipe else "",
        clip_norm=clip,
        origin=follow,
        add=tuple(add or ()),
        without=tuple(without or ()),
        version=from_version,
    )
    answer, bounds = call(context, "new_plan", request, admin.PlanDraft), ""
    if clip is None and follow is None:
        measured = dry_run(answer.text, base)
        bounds = "from a dry run on public text" if measured else f"as shipped: {NO_DRY_RUN}"
        answer = call(context, "new_plan", request.model_copy(update=measured or {}), admin.PlanDraft)
    write_durably(path, answer.text.encode())
    notes = [*answer.notes, f"clip_norm {answer.clip_norm:g} and range {answer.range:g} {bounds}".rstrip()]
    show(
        context,
        {"file": str(path), "plan": name, "notes": notes},
        "\n".join([f"written: {path}; read it through and change what is not right", *(f"- {note}" for note in notes)])
        + f"\nnext: nexus-server plan show {path}, then nexus-server plan propose {path}",
    )


def _show(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(help="a plan's file, or the name of one that was proposed")],
    html: Annotated[Path | None, typer.Option(help="write the printable page")] = None,
) -> None:
    """Show a plan in sentences, with its twelve words.

    \b
    Example: nexus-server plan show plan.toml
    """
    given = plan_text(plan)
    known = {} if given.text else {one.plan: one for one in call(context, "plans", rpc.Nothing(), admin.PlanList).plans}
    if not given.text and plan not in known:
        raise NexusError(f"{plan} is neither a file nor a plan of this server; plans: {', '.join(known) or 'none'}")
    found = parse_plan(given.text, plan) if given.text else Plan.model_validate_json(known[plan].canonical)
    words = plan_words(found.hash)
    text = as_markdown(found, words)
    if html is not None:
        html.write_text(as_html(text, f"Plan {found.name}"), encoding="utf-8")
    facts = {"plan": found.name, "hash": found.hash.hex(), "words": list(words)}
    show(context, facts, f"written: {html}" if html else text)


def _propose(context: typer.Context, plan: Path) -> None:
    """Put a plan before its sites' people.

    \b
    Example: nexus-server plan propose plan.toml
    """
    answer = call(context, "propose", plan_text(str(plan)), admin.PlanStanding)
    show(
        context,
        answer.model_dump(exclude={"canonical"}),
        f"plan {answer.plan} is proposed to {', '.join(one.site for one in answer.sites)}\n"
        "next: one call of all sites, on numbers from their own directories: each reads the twelve words of "
        "`nexus-client plan show`, and approves with `nexus-client plan approve` if all are equal\n"
        f"      nexus-server plan status; nexus-server train {answer.plan}",
    )


def _status(context: typer.Context) -> None:
    """Show where each site stands on each plan.

    \b
    Example: nexus-server plan status
    """
    answer = call(context, "plans", rpc.Nothing(), admin.PlanList)
    rows = [
        [
            one.plan,
            one.hash[:12],
            one.became,
            site.site,
            SIGNS.get(site.state, site.state),
            site.code,
            moment(site.at) if site.at else "",
        ]
        for one in answer.plans
        for site in one.sites
    ]
    show(
        context,
        {"plans": [one.model_dump(exclude={"canonical"}) for one in answer.plans]},
        table(["plan", "hash", "state", "site", "approval", "its policy objects", "since"], rows)
        if rows
        else "no plan yet: nexus-server plan new NAME",
    )
