"""``nexus-server``: parse, call one function, print."""

import logging
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from nexus_common import certs, logs, rpc
from nexus_common.account import act_as_owner
from nexus_common.audit_view import SinceOption, VerifyOption, show_audit
from nexus_common.cli import HomeOption, JsonOption, Options, ago, moment, new_app, options, run_cli, show, table
from nexus_common.config import parse_toml, toml_string
from nexus_common.disk import make_above, write_durably
from nexus_common.errors import NexusError

from nexus_server import admin_api as admin
from nexus_server import cli_lifecycle, cli_models, cli_plans, cli_report
from nexus_server.asking import call, home_of, start
from nexus_server.settings import TEMPLATE, ServerSettingsFile, audit_file, checked, listen_for
from nexus_server.words import sentence

app = new_app(
    "The consortium's server. Without a command it runs until it is stopped.",
    "nexus-server --home ./server",
    "init invite sites plan train stop status models report check backup restore audit revoke rotate-ca",
)


@app.callback(invoke_without_command=True)
def serve(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Run the server (what systemd starts).

    \b
    Example: nexus-server --home ./server
    """
    context.obj = Options(home, as_json)
    if context.invoked_subcommand is not None:
        return
    act_as_owner(home_of(context))
    logs.begin()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from nexus_server.app import Server  # noqa: PLC0415  Flower is loaded by the process that serves, not by commands

    Server(home_of(context)).run()


@app.command()
def init(
    context: typer.Context,
    address: Annotated[
        str, typer.Option(help="HOST:PORT that sites dial (127.0.0.1:8443)", show_default=False)
    ] = "127.0.0.1:8443",
    enrol_address: Annotated[
        str, typer.Option(help="HOST:PORT for joining only (127.0.0.1:8444)", show_default=False)
    ] = "127.0.0.1:8444",
    name: Annotated[str, typer.Option(help="name of the consortium", show_default=False)] = "consortium",
    contact: Annotated[str, typer.Option(help="whom a site asks for help", show_default=False)] = "the coordinator",
    from_version: Annotated[
        Path | None, typer.Option(help="a site's federated.safetensors: goes on from it after a total loss")
    ] = None,
) -> None:
    """Make state folder, settings, server key and transport CA.

    \b
    Example: nexus-server init --home ./server
    """
    from nexus_server.ca import CertificateAuthority, CertificateFiles  # noqa: PLC0415
    from nexus_server.rebuild import adopt, read_version  # noqa: PLC0415

    home = home_of(context)
    if (home / "server.toml").exists():
        raise NexusError(f"{home} is already initialised; its keys are what the sites trust, so nothing was changed")
    given = {"name": name, "contact": contact, "address": address, "enrol_address": enrol_address}
    listen = {"listen": listen_for(address), "enrol_listen": listen_for(enrol_address)}
    text = TEMPLATE.format(**{key: toml_string(value) for key, value in (given | listen).items()})
    checked(parse_toml(ServerSettingsFile, text, "nexus-server init"))
    version = read_version(from_version) if from_version else None
    make_above(home)
    home.mkdir(mode=0o700, exist_ok=True)
    authority = CertificateAuthority.create(CertificateFiles(home / "keys"), name)
    if version is not None:
        adopt(home / "state", version)
    write_durably(home / "server.toml", text.encode())  # last: it says that all of it is there
    pinned = certs.key_hash(authority.certificate).hex()[:16]
    show(
        context,
        {"home": str(home), "address": address, "enrol_address": enrol_address, **listen},
        f"made {home}: server.toml, keys/ (the CA's key is what sites will pin, {pinned}…: back it up)\n"
        + f"it listens at {' and '.join(listen.values())} (listen, enrol_listen in server.toml)\n"
        + (f"run {version.plan.name} goes on from version {version.number}\n" if version else "")
        + f"next: {start(home, 'enable --now')}\n      nexus-server --home {home} invite hospital-a"
        + (", and every other site: each pastes its line again; its keys, plan and approval stay" if version else ""),
    )


@app.command()
def invite(
    context: typer.Context,
    site: str,
    controller: Annotated[str, typer.Option(help="who is responsible for its data, for plans")] = "",
    contact: Annotated[str, typer.Option(help="whom to ring there, for plans")] = "",
    renew: Annotated[bool, typer.Option("--renew", help="its certificate ran out; its keys are there")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="its keys are lost")] = False,
) -> None:
    """Print one line to paste at the site.

    \b
    Example: nexus-server invite hospital-a --controller "St Anna Hospital" --contact "Dr X, ext. 12"
    """
    if renew and replace:
        raise typer.BadParameter("take --renew or --replace, not both")
    kind: Literal["join", "renew", "replace"] = "renew" if renew else "replace" if replace else "join"
    request = admin.InviteRequest(site=site, controller=controller, contact=contact, kind=kind)
    answer = call(context, "invite", request, admin.InviteLine)
    show(
        context,
        answer.model_dump(),
        f"{answer.line}\n\nPaste it at {site}: nexus-client join   (valid until {moment(answer.expires)}, one key)\n"
        f"Firewall at {site}: outgoing TCP to {answer.enrol_address} (joining only) and {answer.address}; TLS 1.3 "
        "passed through, not inspected; nothing incoming; under 1 MB each way a round."
        + ("\nPlans name the lost keys: `nexus-server plan new NAME --from PLAN` writes one with the new." * replace),
    )


@app.command()
def sites(context: typer.Context) -> None:
    """List sites: last seen, certificate, approvals, preparing or ready.

    \b
    Example: nexus-server sites
    """
    answer = call(context, "sites", rpc.Nothing(), admin.SiteList)
    rows = [
        [
            line.site,
            "connected" if line.connected else "away",
            ago(line.last_seen),
            str(line.certificate_days_left),
            line.standing or "",
            line.readiness or "",
        ]
        for line in answer.sites
    ]
    rows += [[site, "invited", "never", "", "", ""] for site in answer.invited]
    show(
        context,
        answer.model_dump(),
        table(["site", "state", "last seen", "certificate days", "plan", "run"], rows)
        + f"\nthe CA's certificate: {answer.ca_days_left} days"
        + (", its key was replaced and not all sites have come since" if answer.ca_overlap else "")
        if rows
        else "no site yet: nexus-server invite hospital-a",
    )


cli_plans.add_plan_commands(app)


@app.command()
def train(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(help="a plan's file, or the name of one that was proposed")],
    detach: Annotated[bool, typer.Option("--detach", help="start and return")] = False,
) -> None:
    """Start a run when its plan is approved, or resume it; Ctrl-C leaves it running.

    \b
    Example: nexus-server train plan.toml
    """
    status = call(context, "train", cli_plans.plan_text(plan), admin.Status)
    shown, quiet = "", options(context).as_json
    try:
        while not detach and (status.wanted or status.state in ("running", "stopping")):
            if (line := sentence(status)) != shown:
                shown = line
                if not quiet:
                    typer.echo(line)
            time.sleep(0.25)
            status = call(context, "status", rpc.Nothing(), admin.Status)
    except KeyboardInterrupt:
        name = status.wanted or status.run
        typer.echo(f"\nit goes on without this window; `nexus-server stop {name}` ends it")
        return
    show(context, status.model_dump(), sentence(status))


@app.command()
def stop(context: typer.Context, run: str) -> None:
    """End a run after the round in progress.

    \b
    Example: nexus-server stop demo
    """
    status = call(context, "stop", admin.RunName(run=run), admin.Status)
    show(context, status.model_dump(), f"run {run} stops after the round in progress; `nexus-server train` resumes it")


@app.command()
def status(context: typer.Context) -> None:
    """Show run, round, phase, who is missing, what it waits for.

    \b
    Example: nexus-server status
    """
    answer = call(context, "status", rpc.Nothing(), admin.Status)
    show(
        context,
        answer.model_dump(),
        f"{sentence(answer)}\nconnected: {', '.join(answer.connected) or 'no site'}\nmetrics: {answer.metrics}",
    )


cli_models.add_model_commands(app)
cli_report.add_report_command(app)
cli_lifecycle.add_lifecycle_commands(app)


@app.command("audit")
def audit_log(
    context: typer.Context,
    verify: VerifyOption = False,
    since: SinceOption = None,
) -> None:
    """Print the audit log, or verify it.

    \b
    Example: nexus-server audit --verify --from 3f1a...
    """
    path = audit_file(home_of(context))
    show_audit(context, path, "nexus-server", verify=verify, since=since)


@app.command()
def revoke(context: typer.Context, site: str) -> None:
    """Shut a site out, at once; it comes back with a new invitation only.

    \b
    Example: nexus-server revoke hospital-a
    """
    answer = call(context, "revoke", admin.SiteName(site=site), admin.SiteList)
    show(
        context,
        answer.model_dump(),
        f"{site} is shut out and its certificate counts no more; a run that names it goes on without it, or waits "
        "where nobody can be spared: `nexus-server plan new NAME --from PLAN --without " + site + "`",
    )


@app.command("rotate-ca")
def rotate_ca(
    context: typer.Context,
    distrust: Annotated[
        bool, typer.Option("--distrust", help="others may have the old key: sites must join again")
    ] = False,
) -> None:
    """Give the consortium's CA a new key; connected sites follow. Happens by itself two years before the CA ends.

    \b
    Example: nexus-server rotate-ca
    """
    answer = call(context, "rotate_ca", admin.RotateRequest(distrust=distrust), admin.Rotated)
    follow = (
        "the old one counts no more: each site joins again with a line of `nexus-server invite SITE --renew`"
        if distrust
        else "the old one has vouched for it and is destroyed: sites take the new one over at their next contact"
    )
    ended = f"\nopen invitations ended, invite again: {', '.join(answer.ended)}" if answer.ended else ""
    show(context, answer.model_dump(), f"the CA has a new key; {follow}\nback up keys/ again{ended}")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_cli(app, "nexus-server", argv)
