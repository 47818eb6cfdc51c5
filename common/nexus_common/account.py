"""Whose account a command works under: in a site's state folder that of the service, also where root gives the command.

``evaluate`` asks the running agent, so what it writes is the service's own.  Commands that write there in their own
process become that account, or they would leave files that the service cannot read; and root that writes where another
account may lay links can be led anywhere.
"""

import os
import pwd
import stat
import sys
from pathlib import Path

from nexus_common.errors import NexusError


def act_as_owner(folder: Path) -> None:
    """Where this is root and the folder another account's, go on as that account, for good, and say so on stderr."""
    if os.geteuid() != 0:
        return
    try:
        owner = folder.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(owner.st_mode):
        raise NexusError(f"{folder} is a link, and root follows none there; make it a folder, or work as its account")
    if owner.st_uid == 0:
        return
    try:
        entry = pwd.getpwuid(owner.st_uid)
        name, home, group = entry.pw_name, entry.pw_dir, entry.pw_gid
        groups = os.getgrouplist(name, group)
    except KeyError:  # an account without a name, as in a container
        name, home, group = str(owner.st_uid), str(folder), owner.st_gid
        groups = [group]
    os.setgroups(groups)
    os.setgid(group)
    os.setuid(owner.st_uid)
    for variable in [one for one in os.environ if one.startswith("XDG_")]:  # root's own folders
        del os.environ[variable]
    os.environ.update(HOME=home, USER=name, LOGNAME=name)
    sys.stderr.write(f"note: {folder} belongs to {name}, so this goes on as {name}\n")
