"""``nexus-client use``: a person says which model search and serve stay on."""

from typing import Annotated

import typer
from nexus_common.cli import show

from nexus_client.cli_consent import place_to_write
from nexus_client.consent import Consent
from nexus_client.shelf import Shelf

AUTO = "auto"


def add_use_command(app: typer.Typer) -> None:
    """``use``."""
    app.command("use")(_use)


def _use(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="base, alone, federated, personal, a version's number, a name, or auto")],
    by: Annotated[str, typer.Option("--by", help="who says so")] = "administrator",
) -> None:
    """Stay on one model, or follow the hold-out (auto).

    \b
    Example: nexus-client use personal
    """
    place = place_to_write(context)
    shelf = Shelf(place)
    name = None if model == AUTO else shelf.resolve(model)
    Consent(place).audit.append("use", model=name or AUTO, by=by)
    before = shelf.models.served
    shelf.pin(name)
    models = shelf.models
    told = f"search and serve stay on {name}" if name else f"search follows the hold-out, which chooses {models.chosen}"
    held = models.named(models.in_use)
    judged = f"\n{held.name}: {held.reason}" if held and held.reason else ""
    told += f"; nexus, which clients of `serve` ask for, means {models.served}"
    if before not in (None, models.served):
        told += f" (before: {before}, and vectors made with that do not fit)"
    facts = {
        "site": place.site,
        "in_use": models.in_use,
        "served": models.served,
        "pinned": name is not None,
        "why": models.reason,
    }
    show(context, facts, f"{told}{judged}")
