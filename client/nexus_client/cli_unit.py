"""``nexus-client unit``: what the site's service may read."""

from typing import Annotated

import typer
from nexus_common.cli import show
from nexus_common.errors import NexusError

from nexus_client.cli_consent import place_of
from nexus_client.service_unit import drop_in, install
from nexus_client.site import ETC, SiteHome


def add_unit_command(app: typer.Typer) -> None:
    """``unit``."""
    app.command("unit")(_unit)


def next_steps(place: SiteHome) -> str:
    """From a site that was enrolled or restored to its running agent."""
    start = place.start("enable --now")
    if start == place.call:
        return f"  {place.call}            (the agent)"
    return f"  {place.call} unit --write && systemctl daemon-reload\n  {start}"


def _unit(
    context: typer.Context,
    write: Annotated[bool, typer.Option("--write", help="put it where systemd reads it, as root")] = False,
) -> None:
    """Print what lets the systemd service read this site's data.

    \b
    Example: nexus-client unit --write
    """
    place = place_of(context)
    if not write:
        text = drop_in(place)
        show(context, {"site": place.site, "drop_in": text}, text.rstrip("\n"))
        return
    if not place.is_the_systems:
        raise NexusError(
            f"the service reads its settings in {ETC / place.site}, and these lie in {place.settings_folder}"
        )
    written = [str(path) for path in install(place)]
    show(
        context,
        {"site": place.site, "written": written},
        "".join(f"written: {path}\n" for path in written)
        + f"next:\n  systemctl daemon-reload\n  systemctl enable nexus-client@{place.site}\n"
        + f"  systemctl restart nexus-client@{place.site}\n  nexus-client --site {place.site} check",
    )
