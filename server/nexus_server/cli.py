"""``nexus-server``: parse, call one function, print."""

import logging
import time
from pathlib import Path
from typing import Annotated

import typer
from nexus_common import certs, rpc
from nexus_common.cli import HomeOption, JsonOption, Options, ago, moment, new_app, options, run_cli, show, table
from nexus_common.config import parse_toml, toml_string
from nexus_common.disk import write_durably
from nexus_common.errors import NexusError

from nexus_server import admin_api as admin
from nexus_server.settings import TEMPLATE, ServerSettingsFile, admin_socket, checked
from nexus_server.words import sentence

app = new_app("The consortium's server. Without a command it runs until it is stopped.", "nexus-server --home ./server")
DEFAULT_HOME = Path("/var/lib/nexus/server")


def _home(context: typer.Context) -> Path:
    return options(context).home or DEFAULT_HOME


@app.callback(invoke_without_command=True)
def serve(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Run the server (what systemd starts).

    \b
    Example: nexus-server --home ./server
    """
    context.obj = Options(home, as_json)
    if context.invoked_subcommand is not None:
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from nexus_server.app import Server  # noqa: PLC0415  Flower is loaded by the process that serves, not by commands

    Server(_home(context)).run()


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
) -> None:
    """Make state folder, settings, server key and transport CA.

    \b
    Example: nexus-server init --home ./server
    """
    from nexus_server.ca import CertificateAuthority, CertificateFiles  # noqa: PLC0415

    home = _home(context)
    if (home / "server.toml").exists():
        raise NexusError(f"{home} is already initialised; its keys are what the sites trust, so nothing was changed")
    quoted = {"name": name, "contact": contact, "address": address, "enrol_address": enrol_address}
    text = TEMPLATE.format(**{key: toml_string(value) for key, value in quoted.items()})
    checked(parse_toml(ServerSettingsFile, text, "nexus-server init"))
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = CertificateAuthority.create(CertificateFiles(home / "keys"), name)
    write_durably(home / "server.toml", text.encode())  # last: it says that all of it is there
    pinned = certs.key_hash(authority.certificate).hex()[:16]
    show(
        context,
        {"home": str(home), "address": address, "enrol_address": enrol_address},
        f"made {home}: server.toml, keys/ (the CA's key is what sites will pin, {pinned}…: back it up)\n"
        f"next: nexus-server --home {home}\n      nexus-server --home {home} invite hospital-a",
    )


@app.command()
def invite(context: typer.Context, site: str) -> None:
    """Print one line to paste at the site.

    \b
    Example: nexus-server invite hospital-a
    """
    answer = _call(context, "invite", admin.SiteName(site=site), admin.InviteLine)
    show(
        context,
        answer.model_dump(),
        f"{answer.line}\n\nPaste it at {site}: nexus-client join   (valid until {moment(answer.expires)}, one key)\n"
        f"Firewall at {site}: outgoing TCP to {answer.enrol_address} (joining only) and {answer.address}; TLS 1.3 "
        "passed through, not inspected; nothing incoming.",
    )


@app.command()
def sites(context: typer.Context) -> None:
    """List sites: last seen, certificate, preparing or ready.

    \b
    Example: nexus-server sites
    """
    answer = _call(context, "sites", rpc.Nothing(), admin.SiteList)
    rows = [
        [
            line.site,
            "connected" if line.connected else "away",
            ago(line.last_seen),
            str(line.certificate_days_left),
            line.readiness or "",
        ]
        for line in answer.sites
    ]
    rows += [[site, "invited", "never", "", ""] for site in answer.invited]
    show(
        context,
        answer.model_dump(),
        table(["site", "state", "last seen", "certificate days", "run"], rows)
        if rows
        else "no site yet: nexus-server invite hospital-a",
    )


@app.command()
def train(
    context: typer.Context,
    plan: Path,
    detach: Annotated[bool, typer.Option("--detach", help="start and return")] = False,
) -> None:
    """Start or resume a run; Ctrl-C leaves it running.

    \b
    Example: nexus-server train plan.toml
    """
    try:
        text = plan.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise NexusError(f"{plan} cannot be read: {problem}") from None
    status = _call(context, "train", admin.PlanText(text=text, where=str(plan)), admin.Status)
    shown, quiet = "", options(context).as_json
    try:
        while not detach and status.state in ("running", "stopping"):
            if (line := sentence(status)) != shown:
                shown = line
                if not quiet:
                    typer.echo(line)
            time.sleep(0.25)
            status = _call(context, "status", rpc.Nothing(), admin.Status)
    except KeyboardInterrupt:
        typer.echo(f"\nthe run goes on without this window; `nexus-server stop {status.run}` ends it")
        return
    show(context, status.model_dump(), sentence(status))


@app.command()
def stop(context: typer.Context, run: str) -> None:
    """End a run after the round in progress.

    \b
    Example: nexus-server stop demo
    """
    status = _call(context, "stop", admin.RunName(run=run), admin.Status)
    show(context, status.model_dump(), f"run {run} stops after the round in progress; `nexus-server train` resumes it")


@app.command()
def status(context: typer.Context) -> None:
    """Show run, round, phase, who is missing, what it waits for.

    \b
    Example: nexus-server status
    """
    answer = _call(context, "status", rpc.Nothing(), admin.Status)
    show(context, answer.model_dump(), sentence(answer) + f"\nconnected: {', '.join(answer.connected) or 'no site'}")


@app.command()
def models(context: typer.Context) -> None:
    """List versions and their cohorts.

    \b
    Example: nexus-server models
    """
    answer = _call(context, "models", rpc.Nothing(), admin.VersionList)
    rows = [
        [
            v.run,
            str(v.number),
            v.hash[:12],
            moment(v.created),
            ", ".join(v.cohort) or "(first vector)",
            f"{v.seconds:.2f}" if v.seconds is not None else "",
        ]
        for v in answer.versions
    ]
    show(
        context,
        answer.model_dump(),
        table(["run", "version", "hash", "made", "cohort", "seconds"], rows)
        if rows
        else "no version yet: nexus-server train plan.toml",
    )


def _call(context: typer.Context, name: str, request: rpc.Body, answer: type[rpc.Ans]) -> rpc.Ans:
    home = _home(context)
    with rpc.channel(rpc.local_address(admin_socket(home))) as channel:
        try:
            return rpc.call(channel, admin.SERVICE, name, request, answer)
        except rpc.Unavailable:
            gone = f"the server on {home} ended without good-bye, or this account may not use its socket"
            found = gone if admin_socket(home).exists() else f"no nexus-server is running on {home}"
            raise NexusError(f"{found}; start it: nexus-server --home {home}") from None
        except ConnectionError as problem:
            raise NexusError(f"the server on {home} failed at {name} ({problem}); its log says why") from None


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_cli(app, "nexus-server", argv)
