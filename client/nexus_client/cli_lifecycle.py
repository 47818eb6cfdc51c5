"""``nexus-client backup`` and ``restore``: a site as one file."""

from pathlib import Path
from typing import Annotated

import typer
from nexus_common.cli import moment, options, show, show_backup

from nexus_client.cli_consent import place_of
from nexus_client.cli_unit import next_steps


def add_lifecycle_commands(app: typer.Typer) -> None:
    """``backup``, ``restore``."""

    @app.command()
    def backup(
        context: typer.Context,
        file: Annotated[Path, typer.Argument(help="the file to write; there must be none yet")],
    ) -> None:
        """Write this site into one file. The file holds SECRET KEYS (mode 0600) and what adapters learnt.

        Identity, certificates, settings, policy, plans, adapters, audit log; not your text, not the cache or index
        made of it, and not the record of what was opened, which must never be rolled back.

        \b
        Example: nexus-client backup /media/safe/hospital-a-2026-05-02.tar
        """
        from nexus_client.backup import back_up  # noqa: PLC0415

        show_backup(context, file, *back_up(place_of(context), file), "this site's secret keys and its adapters")

    @app.command()
    def restore(
        context: typer.Context,
        file: Annotated[Path, typer.Argument(help="what `backup` has written")],
    ) -> None:
        """Make a site again from a backup; it serves only plans that are approved from then on.

        \b
        Example: nexus-client restore /media/safe/hospital-a-2026-05-02.tar
        """
        from nexus_client.backup import restore as made_again  # noqa: PLC0415

        given = options(context)
        place, contents, ended = made_again(file, given.home, given.site)
        call = place.call
        lines = [f"restored {place.site} as of {moment(contents.made)}; stop the old one where it still runs"]
        for name in ended:
            lines.append(
                f"the approval of plan {name} ended: which of its sums this site has helped to open is in no backup. "
                f"To take part again:\n  {call} plan show {name}\n  {call} plan approve {name} --by NAME\nor, better, "
                f"ask the coordinator for a plan that continues it (nexus-server plan new NEXT --from {name})"
            )
        lines.append(f"next:\n  {call} check\n{next_steps(place)}")
        data = {"site": place.site, "made": contents.made, "approvals_ended": ended, "state": str(place.state)}
        show(context, data, "\n".join(lines))
