"""``nexus-server report``: a run as one page, which the command draws; the server only tells it the numbers."""

from typing import Annotated

import typer
from nexus_common.report import Report
from nexus_common.report_view import OutputOption, show_report

from nexus_server import admin_api as admin
from nexus_server.asking import call


def add_report_command(app: typer.Typer) -> None:
    """``report``."""
    app.command("report")(_report)


def _report(
    context: typer.Context,
    run: Annotated[str | None, typer.Argument(help="the run; the newest where it is left out")] = None,
    output: OutputOption = None,
) -> None:
    """Write a run's page (RUN.html): training graph, trials, quality, cohorts, refusals.

    \b
    Example: nexus-server report demo -o demo.html
    """
    report = call(context, "report", admin.RunChoice(run=run), Report)
    show_report(context, report, output, report.name)
