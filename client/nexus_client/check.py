"""``nexus-client check``: everything an administrator can mend before the first round, each with its remedy.

Runs in the command's own process, beside a running agent or without one; an agent that runs is asked what it can read.
It connects to the consortium's server and nowhere else, and shows counts and positions of rows, never their text.
"""

import datetime as dt
import shutil
from collections.abc import Callable, Iterator
from typing import Final

from cryptography import x509
from nexus_common.account import act_as_owner
from nexus_common.checks import CheckLine, CheckReport, check_log, line
from nexus_common.errors import NexusError, Refusal
from nexus_common.recipe import PACKAGED_BASE

from nexus_client.check_server import check_server
from nexus_client.check_service import check_service
from nexus_client.consent import Consent
from nexus_client.material import texts_of
from nexus_client.policy import read_policy
from nexus_client.rows import summary
from nexus_client.site import SiteHome
from nexus_client.split import hold_out_warnings
from nexus_client.workspace import Workspace

WARN_DAYS: Final = 121  # a third of a certificate's year: when renewal is due
TOKEN_BYTES: Final = 110_000  # a text's token states on disk, a typical passage


class SiteReport(CheckReport):
    """Those of one site."""

    site: str


def check_site(place: SiteHome) -> SiteReport:
    """Look at all of it; one fault does not hide the next.

    Root asks the agent, and looks where its sandbox ends; what people and the network have written is read as the
    account of the state folder, which this process then goes on as.
    """
    try:
        settings = place.settings()
    except NexusError as problem:
        return SiteReport(site=place.site, lines=[line("settings", "fault", str(problem), "correct site.toml")])
    workspace = Workspace(place, settings)
    lines = [line("settings", "ok", str(place.settings_file))]
    service = list(check_service(place))
    act_as_owner(place.state)
    parts: tuple[Callable[[], Iterator[CheckLine]], ...] = (
        lambda: _policy(place),
        lambda: _base_model(workspace),
        lambda: _engine(workspace),
        lambda: _data(workspace),
        lambda: iter(service),
        lambda: _disk(workspace),
        lambda: iter([check_log(place.audit_file)]),
        lambda: _certificate(place),
        lambda: check_server(place, settings),
    )
    for part in parts:
        lines += part()
    return SiteReport(site=place.site, lines=lines)


def _policy(place: SiteHome) -> Iterator[CheckLine]:
    try:
        policy, consent = read_policy(place.policy_file), Consent(place)
        approved, outdated = consent.approved(), consent.outdated()
    except Refusal as refusal:
        yield line("policy", "fault", str(refusal), f"correct {place.policy_file}: until then nothing is allowed")
        return
    plan = f"plan {approved.name} is approved" if approved else "no plan is approved yet"
    yield line("policy", "ok", f"{place.policy_file}: {policy.participation}, {plan}")
    if outdated:
        told, _, remedy = outdated.partition("; ")
        yield line("plan", "warning", told, remedy)
    if not policy.accept_no_record_privacy and policy.max_epsilon is None:
        yield line(
            "policy",
            "warning",
            "only plans with record-level privacy can be approved, and this release cannot train with it yet",
            "for the data-protection officer to say: accept_no_record_privacy in policy.toml",
        )


def _base_model(workspace: Workspace) -> Iterator[CheckLine]:
    try:
        name = workspace.base_hash
    except NexusError as problem:
        yield line("base model", "fault", str(problem), "name a SentenceTransformer folder, or take base_model out")
        return
    packaged = "the packaged all-MiniLM-L6-v2" if name == PACKAGED_BASE else f"base_model = {name!r} in a run's file"
    yield line("base model", "ok", f"{workspace.base_folder} ({packaged})")


def _engine(workspace: Workspace) -> Iterator[CheckLine]:
    try:
        workspace.layer  # noqa: B018
        yield line("engine", "ok", workspace.settings.engine)
    except NexusError as problem:
        yield line("engine", "fault", str(problem), "install it, or take engine out of site.toml")


def _data(workspace: Workspace) -> Iterator[CheckLine]:
    try:
        rows, material = workspace.rows, workspace.material
    except NexusError as problem:
        yield line("data", "fault", str(problem), f"see [[data]] in {workspace.place.settings_file}")
        return
    counts = ", ".join(f"{count} rows from {name}" for name, count in rows.counts.items())
    twice = f"; {rows.duplicates} exact duplicates counted once" if rows.duplicates else ""
    yield line("data", "ok", f"{counts}{twice}")
    if rows.problems:
        first = "; ".join(str(problem) for problem in rows.problems[:3])
        found = f"{len(rows.problems)} rows are left out{summary(rows.problems)}\n  first: {first}"
        yield line("data", "warning", found, "correct these rows, or leave them out for good")
    if rows.sections_split:
        yield line("data", "ok", f"{rows.sections_split} sections are longer than the model reads and were split")
    parts = material.rows
    held = f"{parts.train} rows to train on, {parts.choose} to choose by, {parts.judge} only to judge by"
    yield line("hold-out", "ok" if parts.train else "fault", held, None if parts.train else "add rows")
    for warning in hold_out_warnings(material):
        yield line("hold-out", "warning", warning)
    wanted = len(texts_of(material.train))
    if wanted > (limit := workspace.settings.salience_rows):
        found = f"{wanted} texts to train on, but salience_rows = {limit}: a run with salience trains on a part"
        yield line("hold-out", "warning", found, f"raise salience_rows (about {TOKEN_BYTES // 1000} kB of disk each)")


def _disk(workspace: Workspace) -> Iterator[CheckLine]:
    state = workspace.place.state
    if not state.is_dir():
        yield line("disk", "fault", f"the state folder {state} is missing", "restore it, or run `nexus-client join`")
        return
    free, need = shutil.disk_usage(state).free, workspace.settings.salience_rows * TOKEN_BYTES
    found = f"{free / 1e9:.1f} GB free at {state}; the embedding cache may take up to {need / 1e9:.2f} GB"
    if free < need:
        yield line("disk", "warning", found, "free some space, or lower salience_rows in site.toml")
    else:
        yield line("disk", "ok", found)


def _certificate(place: SiteHome) -> Iterator[CheckLine]:
    path, rejoin = place.keys / "site.crt", f"join again with a line of `nexus-server invite {place.site} --renew`"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as problem:
        yield line("certificate", "fault", f"{path} cannot be read: {problem}", rejoin)
        return
    now, end = dt.datetime.now(dt.UTC), certificate.not_valid_after_utc
    days, until = (end - now).days, f"valid until {end:%Y-%m-%d}"
    if now < certificate.not_valid_before_utc:
        begin = f"valid only from {certificate.not_valid_before_utc:%Y-%m-%d}, this machine says {now:%Y-%m-%d}"
        yield line("certificate", "fault", begin, "set this machine's clock (`timedatectl`)")
    elif days < 0:
        yield line("certificate", "fault", f"{until}, this machine says {now:%Y-%m-%d}", rejoin)
    else:
        found = f"{until}, {days} days left"
        if days < WARN_DAYS:
            yield line("certificate", "warning", found, "it renews itself while the agent is connected")
        else:
            yield line("certificate", "ok", found)
