"""Whose account a command works under: in a site's state folder that of the service, also where root gives the command.

``evaluate`` asks the running agent, so what it writes is the service's own.  What works in its own process becomes that
account, or it would leave files that the service cannot read; and root that writes where another account may lay links
can be led anywhere.
"""

import os
import pwd
import sys
from pathlib import Path


def act_as_owner(folder: Path) -> None:
    """Where this is root and the folder another account's, go on as that account, for good, and say so on stderr."""
    if os.geteuid() != 0 or not folder.exists() or (owner := folder.stat()).st_uid == 0:
        return
    try:
        entry = pwd.getpwuid(owner.st_uid)
        name, home, groups = entry.pw_name, entry.pw_dir, os.getgrouplist(entry.pw_name, owner.st_gid)
    except KeyError:  # an account without a name, as in a container
        name, home, groups = str(owner.st_uid), str(folder), [owner.st_gid]
    os.setgroups(groups)
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
    os.environ["HOME"] = home  # where libraries look for settings; root's own cannot be read any more
    sys.stderr.write(f"note: {folder} belongs to {name}, so this goes on as {name}\n")
