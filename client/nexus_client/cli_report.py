"""``nexus-client report``: the site's own page, from its own files; it stays here."""

import typer
from nexus_common.report_view import OutputOption, show_report

from nexus_client.cli_consent import place_of
from nexus_client.site_report import report_of


def add_report_command(app: typer.Typer) -> None:
    """``report``."""
    app.command("report")(_report)


def _report(context: typer.Context, output: OutputOption = None) -> None:
    """Write this site's page (SITE.html): its own rounds and training alone, quality, refusals.

    \b
    Example: nexus-client report -o hospital-a.html
    """
    place = place_of(context)
    show_report(context, report_of(place), output, place.site)
