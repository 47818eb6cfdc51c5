"""Whose account a command works under: in a site's state folder that of the service, also where root gives the command.

``evaluate`` asks the running agent, so what it writes is the service's own.  Commands that write there in their own
process become that account, or they would leave files that the service cannot read; and root that writes where another
account may lay links can be led anywhere.
"""

import os
import pwd
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nexus_common.errors import NexusError


@dataclass(frozen=True)
class Account:
    """Another account's numbers and names."""

    user: int
    group: int
    groups: list[int]
    name: str
    home: str


def act_as_owner(folder: Path) -> None:
    """Where this is root and the folder another account's, go on as that account, for good, and say so on stderr."""
    owner = _other_owner(folder)
    if owner is None:
        return
    os.setgroups(owner.groups)
    os.setgid(owner.group)
    os.setuid(owner.user)
    for variable in [one for one in os.environ if one.startswith("XDG_")]:  # root's own folders
        del os.environ[variable]
    os.environ.update(HOME=owner.home, USER=owner.name, LOGNAME=owner.name)
    sys.stderr.write(f"note: {folder} belongs to {owner.name}, so this goes on as {owner.name}\n")


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """The same for a while, as far as files go: for what root reads there and puts somewhere else."""
    owner = _other_owner(folder)
    if owner is None:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups(owner.groups)
    os.setegid(owner.group)
    os.seteuid(owner.user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _other_owner(folder: Path) -> Account | None:
    """Whose a folder is, where this is root and it is not root's; NexusError where it is a link."""
    if os.geteuid() != 0:
        return None
    try:
        owner = folder.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(owner.st_mode):
        raise NexusError(f"{folder} is a link, and root follows none there; make it a folder, or work as its account")
    if owner.st_uid == 0:
        return None
    try:
        entry = pwd.getpwuid(owner.st_uid)
    except KeyError:  # an account without a name, as in a container
        return Account(owner.st_uid, owner.st_gid, [owner.st_gid], str(owner.st_uid), str(folder))
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(owner.st_uid, entry.pw_gid, groups, entry.pw_name, entry.pw_dir)
