"""``nexus-client check``: everything an administrator can mend before the first round, each with its remedy.

Runs in the command's own process, beside a running agent or without one.  It connects to the consortium's server and
nowhere else, and shows counts and positions of rows, never their text.
"""

import datetime as dt
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Final

from cryptography import x509
from nexus_common.address import split_address
from nexus_common.errors import NexusError, Refusal
from nexus_common.recipe import PACKAGED_BASE

from nexus_client.agent_api import CheckLine, CheckReport
from nexus_client.clock import seconds_ahead
from nexus_client.consent import Consent
from nexus_client.material import texts_of
from nexus_client.policy import read_policy
from nexus_client.rows import summary
from nexus_client.site import SiteHome, SiteSettings
from nexus_client.split import hold_out_warnings
from nexus_client.tls import dial, foreign_issuer, tls_context
from nexus_client.workspace import Workspace

CONNECT_SECONDS: Final = 5.0
WARN_DAYS: Final = 121  # a third of a certificate's year: when renewal is due
TOKEN_BYTES: Final = 110_000  # a text's token states on disk, a typical passage
WARN_SECONDS: Final = 60.0


def check_site(place: SiteHome) -> CheckReport:
    """Look at all of it; one fault does not hide the next."""
    try:
        settings = place.settings()
    except NexusError as problem:
        return CheckReport(site=place.site, lines=[_line("settings", "fault", str(problem), "correct site.toml")])
    workspace = Workspace(place, settings)
    lines = [_line("settings", "ok", str(place.settings_file))]
    parts: tuple[Callable[[], Iterator[CheckLine]], ...] = (
        lambda: _policy(place),
        lambda: _base_model(workspace),
        lambda: _engine(workspace),
        lambda: _data(workspace),
        lambda: _disk(workspace),
        lambda: _certificate(place),
        lambda: _server(place, settings),
    )
    for part in parts:
        lines += part()
    return CheckReport(site=place.site, lines=lines)


def _line(name: str, state: str, found: str, remedy: str | None = None) -> CheckLine:
    return CheckLine.model_validate({"name": name, "state": state, "found": found, "remedy": remedy})


def _policy(place: SiteHome) -> Iterator[CheckLine]:
    try:
        policy, approved = read_policy(place.policy_file), Consent(place).approved()
    except Refusal as refusal:
        yield _line("policy", "fault", str(refusal), f"correct {place.policy_file}: until then nothing is allowed")
        return
    plan = f"plan {approved.name} is approved" if approved else "no plan is approved yet"
    yield _line("policy", "ok", f"{place.policy_file}: {policy.participation}, {plan}")
    if not policy.accept_no_record_privacy and policy.max_epsilon is None:
        yield _line(
            "policy",
            "warning",
            "only plans with record-level privacy can be approved, and this release cannot train with it yet",
            "for the data-protection officer to say: accept_no_record_privacy in policy.toml",
        )


def _base_model(workspace: Workspace) -> Iterator[CheckLine]:
    try:
        name = workspace.base_hash
    except NexusError as problem:
        yield _line("base model", "fault", str(problem), "name a SentenceTransformer folder, or take base_model out")
        return
    packaged = "the packaged all-MiniLM-L6-v2" if name == PACKAGED_BASE else f"base_model = {name!r} in a run's file"
    yield _line("base model", "ok", f"{workspace.base_folder} ({packaged})")


def _engine(workspace: Workspace) -> Iterator[CheckLine]:
    try:
        workspace.layer  # noqa: B018
        yield _line("engine", "ok", workspace.settings.engine)
    except NexusError as problem:
        yield _line("engine", "fault", str(problem), "install it, or take engine out of site.toml")


def _data(workspace: Workspace) -> Iterator[CheckLine]:
    try:
        rows, material = workspace.rows, workspace.material
    except NexusError as problem:
        yield _line("data", "fault", str(problem), f"see [[data]] in {workspace.place.settings_file}")
        return
    counts = ", ".join(f"{count} rows from {name}" for name, count in rows.counts.items())
    twice = f"; {rows.duplicates} exact duplicates counted once" if rows.duplicates else ""
    yield _line("data", "ok", f"{counts}{twice}")
    if rows.problems:
        first = "; ".join(str(problem) for problem in rows.problems[:3])
        found = f"{len(rows.problems)} rows are left out{summary(rows.problems)}\n  first: {first}"
        yield _line("data", "warning", found, "correct these rows, or leave them out for good")
    if rows.sections_split:
        yield _line("data", "ok", f"{rows.sections_split} sections are longer than the model reads and were split")
    parts = material.rows
    held = f"{parts.train} rows to train on, {parts.choose} to choose by, {parts.judge} only to judge by"
    yield _line("hold-out", "ok" if parts.train else "fault", held, None if parts.train else "add rows")
    for warning in hold_out_warnings(material):
        yield _line("hold-out", "warning", warning)
    wanted = len(texts_of(material.train))
    if wanted > (limit := workspace.settings.salience_rows):
        found = f"{wanted} texts to train on, but salience_rows = {limit}: a run with salience trains on a part"
        yield _line("hold-out", "warning", found, f"raise salience_rows (about {TOKEN_BYTES // 1000} kB of disk each)")


def _disk(workspace: Workspace) -> Iterator[CheckLine]:
    state = workspace.place.state
    if not state.is_dir():
        yield _line("disk", "fault", f"the state folder {state} is missing", "restore it, or run `nexus-client join`")
        return
    free, need = shutil.disk_usage(state).free, workspace.settings.salience_rows * TOKEN_BYTES
    found = f"{free / 1e9:.1f} GB free at {state}; the embedding cache may take up to {need / 1e9:.2f} GB"
    if free < need:
        yield _line("disk", "warning", found, "free some space, or lower salience_rows in site.toml")
    else:
        yield _line("disk", "ok", found)


def _certificate(place: SiteHome) -> Iterator[CheckLine]:
    path, rejoin = place.keys / "site.crt", f"join again with a line of `nexus-server invite {place.site} --renew`"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as problem:
        yield _line("certificate", "fault", f"{path} cannot be read: {problem}", rejoin)
        return
    now, end = dt.datetime.now(dt.UTC), certificate.not_valid_after_utc
    days, until = (end - now).days, f"valid until {end:%Y-%m-%d}"
    if now < certificate.not_valid_before_utc:
        begin = f"valid only from {certificate.not_valid_before_utc:%Y-%m-%d}, this machine says {now:%Y-%m-%d}"
        yield _line("certificate", "fault", begin, "set this machine's clock (`timedatectl`)")
    elif days < 0:
        yield _line("certificate", "fault", f"{until}, this machine says {now:%Y-%m-%d}", rejoin)
    else:
        found = f"{until}, {days} days left"
        if days < WARN_DAYS:
            yield _line("certificate", "warning", found, "it renews itself while the agent is connected")
        else:
            yield _line("certificate", "ok", found)


def _server(place: SiteHome, settings: SiteSettings) -> Iterator[CheckLine]:
    """TCP, TLS in both directions, and the server's clock, on one connection that asks for nothing."""
    host, _ = split_address(settings.server)
    try:
        context = tls_context(place.keys)
    except OSError as problem:
        yield _line("server", "fault", f"keys and certificates cannot be used: {problem}", "run `nexus-client join`")
        return
    try:
        with dial(settings.server, settings.proxy, CONNECT_SECONDS) as plain:
            began = time.time()
            with context.wrap_socket(plain, server_hostname=host) as tls:
                tls.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                answer = tls.recv(4096).decode("latin-1")
            took = time.time() - began
    except ssl.SSLError as problem:
        yield _line("server", "fault", *_refused(place, settings, problem))
        return
    except OSError as problem:
        yield _line("server", "fault", *_silence(settings, problem))
        return
    yield _line("server", "ok", f"{settings.server} answers over TLS 1.3 with this consortium's certificate")
    yield from _clock(answer, began + took / 2)


def _refused(place: SiteHome, settings: SiteSettings, problem: ssl.SSLError) -> tuple[str, str]:
    """Which of the two ends did not accept the other's certificate, whose that was, and the remedy."""
    address, unverified = settings.server, isinstance(problem, ssl.SSLCertVerificationError)
    try:
        issuer = foreign_issuer(problem, address, settings.proxy, place.keys)
    except (OSError, ValueError):
        issuer = "an issuer that it did not show again" if unverified else None
    if issuer is not None:
        return (
            f"the certificate at {address} came from {issuer!r}, not from the consortium: this network inspects TLS, "
            "or another server answers there",
            f"have {address} exempted from TLS inspection, or correct `server`; there is no switch to accept it. Where "
            "the consortium's own key was replaced, join again with a line of "
            f"`nexus-server invite {place.site} --renew`",
        )
    if isinstance(problem, ssl.SSLCertVerificationError):
        found = f"the certificate at {address} is the consortium's, but: {problem.verify_message}"
        return found, "correct `server`, or the clock"
    found = f"{address} refuses this site's certificate ({problem.reason})"
    return found, "ask the coordinator whether this site is enrolled there"


def _silence(settings: SiteSettings, problem: OSError) -> tuple[str, str]:
    """Why nobody answers, as far as it shows, and the remedy."""
    address, proxy = settings.server, settings.proxy
    host, port = split_address(address)
    if proxy is not None:
        found = f"no way to {address} through {proxy}: {problem.strerror or problem}"
        return found, f"is `proxy` in site.toml right, and does it pass CONNECT to {address}?"
    if isinstance(problem, socket.gaierror):
        return (
            f"no machine is known by the name {host}: {problem.strerror}",
            "correct `server`, or have it entered in DNS",
        )
    if isinstance(problem, TimeoutError):
        return f"{address} does not answer at all", f"a firewall drops it: have outgoing TCP to {address} opened"
    if isinstance(problem, ConnectionRefusedError):
        return f"{host} answers, but nothing listens on port {port}", "is nexus-server running, and is the port right?"
    return f"nobody answers at {address}: {problem.strerror or problem}", "does the network reach it, and the firewall?"


def _clock(answer: str, here: float) -> Iterator[CheckLine]:
    """This clock against the Date line of the server's answer, which has whole seconds."""
    dates = [line[5:].strip() for line in answer.split("\r\n") if line.lower().startswith("date:")]
    if (ahead := seconds_ahead(dates[0] if dates else "", here)) is None:
        yield _line("clock", "warning", "the server did not say its time", "compare `timedatectl` on both machines")
        return
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server, which the agent allows for"
    if abs(ahead) > WARN_SECONDS:
        yield _line("clock", "warning", found, "set the clock: `timedatectl set-ntp true`")
    else:
        yield _line("clock", "ok", f"within {WARN_SECONDS:.0f} s of the server")
