"""The part of ``check`` that asks the running agent what it can read, since only that counts in a round."""

import os
import shlex
from collections.abc import Iterator
from typing import Final

from nexus_common import rpc
from nexus_common.checks import CheckLine, line

from nexus_client.agent_api import SERVICE, DataAccess, UnreadPath
from nexus_client.site import SiteHome

NAME: Final = "service"
SECONDS: Final = 60.0


def check_service(place: SiteHome) -> Iterator[CheckLine]:
    """A line for each path that the agent cannot read, with the remedy; nothing where no agent runs as one would."""
    try:
        found = _asked(place)
    except ConnectionError as problem:
        yield line(NAME, "warning", f"the agent did not say what it can read ({problem})", f"{_restart(place)}")
        return
    if found is None:
        if place.state.exists() and place.state.stat().st_uid != os.geteuid():
            yield line(
                NAME,
                "warning",
                "no agent runs, so this could not ask whether the account of the service can read the data",
                f"start it (`{place.start()}`), and check once more",
            )
        return
    for unread in found.unread:
        yield line(NAME, "fault", f"the agent, as {found.account}, cannot read {_what(unread)}",
                   f"{_remedy(place, found.account, unread)}; then {_restart(place)}")  # fmt: skip
    if not found.unread:
        yield line(NAME, "ok", f"the agent, as {found.account}, can read all {found.paths} paths of site.toml")


def _asked(place: SiteHome) -> DataAccess | None:
    """None where no agent answers."""
    if not place.socket.exists():
        return None
    with rpc.channel(rpc.local_address(place.socket)) as channel:
        try:
            return rpc.call(channel, SERVICE, "data_access", rpc.Nothing(), DataAccess, SECONDS)
        except rpc.Unavailable:
            return None


def _what(unread: UnreadPath) -> str:
    return unread.path if unread.at == unread.path else f"{unread.path}: it ends at {unread.at}"


def _remedy(place: SiteHome, account: str, unread: UnreadPath) -> str:
    if unread.missing:
        there = os.path.lexists(unread.path)
        return (
            f"run `nexus-client --site {place.site} unit --write`" if there else "bring it back, or correct site.toml"
        )
    above = unread.path.startswith(unread.at.rstrip("/") + "/")
    how = f"-m u:{account}:x {shlex.quote(unread.at)}" if above else f"-R -m u:{account}:rX {shlex.quote(unread.path)}"
    return f"run `setfacl {how}` (package acl)"


def _restart(place: SiteHome) -> str:
    if place.is_the_systems:
        return f"`systemctl daemon-reload && systemctl restart nexus-client@{place.site}`"
    return "restart the agent"
