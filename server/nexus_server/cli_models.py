"""``nexus-server models``: versions and their cohorts; going back to one, taking some out of use."""

import re
from typing import Annotated

import typer
from nexus_common import rpc
from nexus_common.cli import moment, show, table
from nexus_common.errors import NexusError
from nexus_common.report import ArmLine

from nexus_server import admin_api as admin
from nexus_server.asking import call

RunOption = Annotated[str | None, typer.Option("--run", help="the run; the newest where it is left out")]


def add_model_commands(app: typer.Typer) -> None:
    """``models``, ``models rollback``, ``models withdraw``."""
    models = typer.Typer(
        help="List versions and their cohorts; roll back, withdraw.\n\n\b\nExample: nexus-server models",
        invoke_without_command=True,
        add_completion=False,
        rich_markup_mode=None,
    )
    app.add_typer(models, name="models")
    models.callback()(_models)
    models.command("rollback")(_rollback)
    models.command("withdraw")(_withdraw)


def _models(context: typer.Context) -> None:
    """List versions and their cohorts.

    \b
    Example: nexus-server models
    """
    if context.invoked_subcommand is None:
        _print(context, call(context, "models", rpc.Nothing(), admin.VersionList))


def _rollback(context: typer.Context, version: int, run: RunOption = None) -> None:
    """Use an earlier version at once; training goes on from between it and its successor.

    \b
    Example: nexus-server models rollback 7
    """
    _print(context, call(context, "rollback", admin.Rollback(run=run, version=version), admin.VersionList))


def _withdraw(context: typer.Context, versions: str, run: RunOption = None) -> None:
    """Take versions out of use: sites get the one before at their next contact.

    \b
    Example: nexus-server models withdraw 5..9
    """
    found = re.fullmatch(r"(\d{1,6})(?:\.\.(\d{1,6}))?", versions)
    if found is None:
        raise NexusError(f"{versions!r} is no range of versions, such as 5..9")
    first, last = int(found[1]), int(found[2] or found[1])
    _print(context, call(context, "withdraw", admin.Withdrawal(run=run, first=first, last=last), admin.VersionList))


def _dendrites(arm: ArmLine) -> str:
    return str(arm.dendrites)


def _loss(arm: ArmLine) -> str:
    return f"{arm.figures['loss']:.3f}" if "loss" in arm.figures else ""


def _score(arm: ArmLine) -> str:
    return f"{100 * arm.figures['score']:.1f}" if "score" in arm.figures else ""


def _print(context: typer.Context, answer: admin.VersionList) -> None:
    rows = [
        [
            v.run,
            str(v.number),
            v.hash[:12],
            moment(v.created),
            ", ".join(v.cohort) or "(no cohort)",
            v.state,
            f"{v.seconds:.2f}" if v.seconds is not None else "",
            *(" | ".join(map(shown, v.arms)) for shown in (_dendrites, _loss, _score)),
        ]
        for v in answer.versions
    ]
    head = ["run", "version", "hash", "made", "cohort", "state", "seconds", "dendrites", "loss", "score"]
    text = table(head, rows) if rows else "no version yet: nexus-server plan new, train"
    show(context, answer.model_dump(), "\n".join([text, *answer.notes]))
