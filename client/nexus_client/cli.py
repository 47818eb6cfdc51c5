"""``nexus-client``: parse, call one function (through the running agent where there is one), print."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from nexus_common import logs, rpc
from nexus_common.account import act_as_owner
from nexus_common.address import split_proxy
from nexus_common.checks import show_checks
from nexus_common.cli import HomeOption, JsonOption, Options, ago, moment, new_app, options, run_cli, show, table
from nexus_common.errors import NexusError
from rich.console import Console

from nexus_client import agent_api as api
from nexus_client import (
    cli_bench,
    cli_consent,
    cli_export,
    cli_lifecycle,
    cli_report,
    cli_search,
    cli_train,
    cli_unit,
    cli_use,
)
from nexus_client.cli_consent import place_of, place_to_write
from nexus_client.site import SiteHome

app = new_app(
    "A site's client. Without a command it runs as the site's agent until it is stopped.",
    "nexus-client --site hospital-a",
    "join check unit preview status plan evaluate use export index search serve train dry-run report bench audit "
    "backup restore pause resume leave",
)
AGENT_SECONDS = 3600.0
STATUS_SECONDS = 30.0  # what an agent needs that trains on the only processor
SiteOption = Annotated[str | None, typer.Option("--site", help="the site's name, where this machine has several")]


@app.callback(invoke_without_command=True)
def agent(
    context: typer.Context, site: SiteOption = None, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Run the site's agent (what systemd starts).

    \b
    Example: nexus-client --site hospital-a
    """
    context.obj = Options(home, as_json, site)
    if context.invoked_subcommand is not None:
        return
    place = place_to_write(context)
    logs.begin(place.site)
    for chatty in ("httpx", "matplotlib", "sentence_transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    from nexus_client.agent import Agent  # noqa: PLC0415  torch and Flower only where they are used

    Agent(place).run()


@app.command()
def join(
    context: typer.Context,
    line: Annotated[str | None, typer.Argument(help="the pasted line; asked for where it is left out")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="a data file or folder for site.toml; repeatable")] = None,
    proxy: Annotated[str | None, typer.Option(help="http://HOST:PORT, for joining and for site.toml")] = None,
) -> None:
    """Make keys here, paste one line, be enrolled.

    \b
    Example: nexus-client join --data /srv/faq.csv
    """
    from nexus_client.enrol import join as enrol  # noqa: PLC0415

    given = options(context)
    if line is None:
        line = typer.prompt("invitation", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    if proxy is not None:
        try:
            split_proxy(proxy)
        except ValueError as problem:
            raise typer.BadParameter(str(problem)) from None
    place, notes = enrol(given.home, line, given.site, data or [], proxy)
    show(
        context,
        {"site": place.site, "settings": str(place.settings_file), "state": str(place.state)},
        f"{place.site} is enrolled; its keys were made here and stay in {place.keys}\n"
        + "".join(f"{note}\n" for note in notes)
        + f"what this site allows stands in {place.policy_file}: read it\n"
        + f"next:\n  {place.call} check\n  {place.call} preview\n{cli_unit.next_steps(place)}",
    )


@app.command()
def check(context: typer.Context) -> None:
    """Check data, certificate, port, clock, disk, log and model.

    \b
    Example: nexus-client check
    """
    from nexus_client.check import check_site  # noqa: PLC0415

    place = place_of(context)
    show_checks(context, check_site(place), "this site can take part")


cli_unit.add_unit_command(app)


@app.command()
def preview(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=0, max=50, help="sample rows to show (3)", show_default=False)] = 3,
) -> None:
    """Show what would be trained on: counts and sample rows.

    \b
    Example: nexus-client preview
    """
    place = place_of(context)
    request = api.PreviewRequest(rows=rows)

    def here() -> api.PreviewReport:
        from nexus_client import reports  # noqa: PLC0415

        act_as_owner(place.state)
        return reports.preview(reports.workspace_of(place), rows)

    report = _ask(place, "preview", request, api.PreviewReport, here)
    files = "\n".join(f"  {count} rows from {name}" for name, count in report.files.items())
    samples = "\n\n".join("\n".join(f"  {key}: {text}" for key, text in row.items()) for row in report.samples)
    show(
        context,
        report.model_dump(),
        f"{report.site} would train on {report.training} rows:\n{files}\n"
        f"kept apart: {report.choose} to choose by, {report.judge} only to judge by; {report.left_out} left out\n\n"
        f"{samples}\n\nNothing of this leaves the machine; a run sends only the change of the adapter's numbers.",
    )


@app.command()
def status(context: typer.Context) -> None:
    """Show agent, version in use, last round, what waits for you.

    \b
    Example: nexus-client status
    """
    place = place_of(context)

    def here() -> api.StatusReport:
        from nexus_client import status as found  # noqa: PLC0415

        return found.status(place)

    report = _ask(place, "status", rpc.Nothing(), api.StatusReport, here, STATUS_SECONDS)
    show(context, report.model_dump(), _status_text(report, place))


cli_consent.add_plan_commands(app)


@app.command()
def evaluate(context: typer.Context) -> None:
    """Compare keyword search, base and own models; choose.

    \b
    Example: nexus-client evaluate
    """
    place = place_of(context)

    def here() -> api.EvaluateReport:
        from nexus_client import reports  # noqa: PLC0415

        act_as_owner(place.state)
        return reports.evaluate(reports.workspace_of(place))

    with Console(stderr=True).status("judging (at first this also trains this site for itself, to compare) ..."):
        report = _ask(place, "evaluate", rpc.Nothing(), api.EvaluateReport, here)
    rows = [line.cells for line in report.lines]
    version = f"version {report.version} of run {report.run}" if report.run else "no version yet: the run has not begun"
    head = f"{report.site}, {report.rows} rows; federated: {version}"
    text = table(["model", "metric (x 100)", "mean", "95 % interval", "questions", "against base"], rows, (2, 3, 4))
    verdict = f": {report.verdict}" if report.verdict else ""
    used = f"in use: {report.in_use}{verdict}\n  because {report.why}"
    show(
        context,
        report.model_dump(),
        "\n".join([head, text, used, *(f"note: {warning}" for warning in report.warnings)]),
    )


cli_use.add_use_command(app)
cli_export.add_export_command(app)
cli_search.add_search_commands(app)
cli_train.add_train_commands(app)
cli_report.add_report_command(app)
cli_bench.add_bench_command(app)
cli_lifecycle.add_lifecycle_commands(app)
cli_consent.add_site_commands(app)


def _status_text(report: api.StatusReport, place: SiteHome) -> str:
    call = place.call
    running = "running" if report.running else f"not running: start it with `{place.start()}`"
    lines = [f"{report.site}: agent {running}"]
    if report.running:
        met = report.connection in ("connected", "connecting")
        now = report.connection if met else f"it is tried again by itself, and meanwhile:\n  {report.connection}"
        lines.append(f"server {report.server}: last contact {ago(report.last_contact)}; {now}")
        work = f" {report.done} of {report.total}" if report.total else ""
        lines.append(f"doing: {report.phase}{work}")
        lines.append(f"metrics: {report.metrics}")
    if report.run is None:
        lines.append("no version received yet")
    else:
        lines.append(
            f"run {report.run}: version {report.version} of {report.rounds}, "
            f"received {moment(report.version_at or 0)}; adapter: {report.adapter}"
        )
    how = "pinned" if report.pinned else "chosen"
    lines.append(f"in use: {report.in_use} ({how}: {report.why})")
    if report.served not in (None, report.in_use):
        lines.append(
            f"nexus, which clients of `serve` ask for: {report.served}, until a person says otherwise (`{call} use`)"
        )
    if report.refused:
        lines.append(f"not taken: {report.refused}")
    lines.append(f"plan: {report.approved} is approved" if report.approved else "plan: none is approved")
    if report.participation in ("paused", "left"):
        lines.append(f"this site has {report.participation}: `{call} resume` ends that")
    if report.certificate_days_left is not None:
        lines.append(f"certificate: {report.certificate_days_left} days left")
    for name in report.proposed:
        lines.append(f"waits for you: plan {name} is proposed: {call} plan show {name}, then plan approve {name}")
    if report.problem:
        lines.append(f"waits for you: {report.problem}")
    return "\n".join(lines)


def _ask(
    place: SiteHome,
    name: str,
    request: rpc.Body,
    answer: type[rpc.Ans],
    here: Callable[[], rpc.Ans],
    seconds: float = AGENT_SECONDS,
) -> rpc.Ans:
    """Through the running agent, or in this process where none runs."""
    if place.socket.exists():
        with rpc.channel(rpc.local_address(place.socket)) as channel:
            try:
                return rpc.call(channel, api.SERVICE, name, request, answer, seconds)
            except rpc.Unavailable:
                pass  # a socket that an agent left behind
            except ConnectionError as problem:
                raise NexusError(f"the agent failed at {name} ({problem}); its log says why") from None
    return here()


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_cli(app, "nexus-client", argv)
