"""``nexus-server check``, ``backup`` and ``restore``: is it well, and the whole of it as one file."""

from pathlib import Path
from typing import Annotated

import typer
from nexus_common.account import as_owner
from nexus_common.checks import show_checks
from nexus_common.cli import moment, show, show_backup

from nexus_server.asking import home_of, start


def add_lifecycle_commands(app: typer.Typer) -> None:
    """``check``, ``backup``, ``restore``."""

    @app.command()
    def check(context: typer.Context) -> None:
        """Check settings, keys, certificates, ports, disk, database, audit log, clock and last backup.

        \b
        Example: nexus-server check
        """
        from nexus_server.check import check_server  # noqa: PLC0415

        home = home_of(context)
        with as_owner(home):
            report = check_server(home)
        show_checks(context, report, "this server can be relied on")

    @app.command()
    def backup(
        context: typer.Context,
        file: Annotated[Path, typer.Argument(help="the file to write; there must be none yet")],
    ) -> None:
        """Write the whole server into one file, while it runs. The file holds SECRET KEYS (mode 0600).

        Database, versions, audit log, settings, and the keys of the CA and the server: whoever has the file can pass
        for the server. Keep it as you keep those keys.

        \b
        Example: nexus-server backup /media/safe/nexus-2026-05-02.tar
        """
        from nexus_server.backup import back_up  # noqa: PLC0415

        show_backup(context, file, *back_up(home_of(context), file), "secret keys (the CA's, the server's)")

    @app.command()
    def restore(
        context: typer.Context,
        file: Annotated[Path, typer.Argument(help="what `backup` has written")],
    ) -> None:
        """Make a server again from a backup, where there is none.

        Its sites come back by themselves. Before it goes on it asks them for versions newer than the backup's, and goes
        on from the newest that a quorum holds. Stop the old server first where it still runs: both have the same keys.

        \b
        Example: nexus-server restore /media/safe/nexus-2026-05-02.tar
        """
        from nexus_server.backup import restore as made_again  # noqa: PLC0415

        home = home_of(context)
        contents, ended = made_again(file, home)
        names = f" ({', '.join(ended)}): whoever has not come yet needs a new one" if ended else ""
        show(
            context,
            {
                "home": str(home),
                "of": contents.of,
                "made": contents.made,
                "files": len(contents.files),
                "invitations_ended": ended,
            },
            f"restored {contents.of} as of {moment(contents.made)} into {home}\n"
            "Does the old server still run somewhere? Stop it: both have the same keys, and a site cannot tell them "
            "apart. Sums stay safe, for that is in the sites' records, but each spoils the other's rounds, and the "
            "run would fork.\n"
            f"{len(ended)} open {'invitation' if len(ended) == 1 else 'invitations'} of the backup ended{names}.\n"
            "What was withdrawn, rolled back, invited, enrolled or revoked since the backup is not known here: do it "
            f"again.\nnext: {start(home, 'enable --now')}   (it asks its sites for versions newer than the backup's)",
        )
