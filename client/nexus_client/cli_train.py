"""Commands of ``nexus-client`` that train in their own process: this site alone, or public text for a plan's bounds."""

from pathlib import Path
from typing import Annotated

import typer
from nexus_common.cli import options, show
from nexus_common.errors import NexusError
from nexus_common.recipe import read_recipe
from rich.console import Console

from nexus_client.cli_consent import place_to_write


def add_train_commands(app: typer.Typer) -> None:
    """``train --local`` and ``dry-run``."""
    app.command("train")(_train)
    app.command("dry-run")(_dry_run)


def _train(
    context: typer.Context,
    local: Annotated[bool, typer.Option("--local", help="this site alone, no federation, no network")] = False,
    plan: Annotated[Path | None, typer.Option(help="a plan whose recipe to use")] = None,
) -> None:
    """Train on this site alone, to try it out.

    \b
    Example: nexus-client train --local
    """
    if not local:
        raise NexusError(
            "federated training is started by the server (`nexus-server train PLAN`) and done by the "
            "agent; `nexus-client train --local` trains on this site alone"
        )
    from nexus_client import reports  # noqa: PLC0415

    place, quiet = place_to_write(context), options(context).as_json

    def on_round(number: int, rounds: int) -> None:
        if not quiet:
            typer.echo(f"round {number:3} of {rounds}")

    report = reports.train_local(reports.workspace_of(place), plan, on_round)
    kept = f"kept round {report['round']} of {report['rounds']}, the best on the choosing part of the hold-out"
    show(context, report, f"{kept}; `nexus-client evaluate` shows it as 'alone', `report` draws it")


def _dry_run(
    context: typer.Context,
    plan: Annotated[Path, typer.Argument(help="a plan's file")],
    base: Annotated[
        Path | None, typer.Option(help="folder of the plan's base model, where not the packaged one")
    ] = None,
) -> None:
    """Measure on public text how far a plan's recipe moves the adapter.

    \b
    Example: nexus-client dry-run plan.toml
    """
    from nexus_client.dry_run import dry_run  # noqa: PLC0415

    with Console(stderr=True).status("training on public text ..."):
        found = dry_run(read_recipe(plan), str(base) if base else None)
    show(
        context,
        found,
        f"largest norm {found['measured_norm']:.2f}, largest value {found['measured_largest']:.4f}\n"
        f"proposed: clip_norm = {found['clip_norm']:g} in [local], range = {found['range']:g} in [aggregation]",
    )
