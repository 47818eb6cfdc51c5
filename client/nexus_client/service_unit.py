"""The systemd drop-in of a site: it shows the site's service exactly the paths that ``site.toml`` names, read-only.

``deploy/systemd/nexus-client@.service`` hides where people keep their files; a path is opened here, and permissions of
files still count.
"""

import grp
import os
import re
from pathlib import Path
from typing import Final

from nexus_common.disk import write_durably
from nexus_common.errors import NexusError

from nexus_client.site import SiteHome

SYSTEMD: Final = Path("/etc/systemd/system")
SERVICES: Final = ("nexus-client", "nexus-serve")
GROUP: Final = "nexus"
HIDDEN: Final = tuple(map(Path, ("/", "/home", "/root", "/run/user", "/srv", "/mnt", "/media", "/tmp", "/var/tmp")))  # noqa: S108
UNNAMEABLE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
HEAD: Final = """\
# Written by `nexus-client --site {site} unit --write` from {settings};
# once that names other paths, give the command again, and `systemctl daemon-reload`.
[Service]
"""


def drop_in(place: SiteHome) -> str:
    """``data.conf``; NexusError for a path that systemd cannot name or that would open too much."""
    lines = [HEAD.format(site=place.site, settings=place.settings_file)]
    for path in place.settings().paths(place.settings_folder):
        if (target := path.resolve()) != path:
            raise NexusError(f"{path} goes through a link, which the service would not see: name {target} in its place")
        if not path.is_relative_to(place.settings_folder):  # which every service may see
            lines.append(f"BindReadOnlyPaths={quoted(path)}\n")
    return "".join(lines)


def quoted(path: Path) -> str:
    """A path as a value of ``BindReadOnlyPaths=``, which systemd passes over where it does not exist."""
    text = str(path)
    if path in HIDDEN:
        raise NexusError(f"{path} is a whole folder of people's files or programs; name the folder of the text in it")
    if UNNAMEABLE.search(text):
        raise NexusError(
            f"systemd cannot name {text!r}: it holds a control character, or bytes that are no UTF-8; rename it"
        )
    escaped = re.sub(r"([\\:'\"])", r"\\\1", text).replace("%", "%%")
    return f'"-{escaped}"'


def install(place: SiteHome) -> list[Path]:
    """Write ``data.conf`` for the site's services, and let their group read the settings; what was written."""
    text = drop_in(place).encode()
    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        raise NexusError(
            f"there is no group {GROUP} yet: deploy/systemd/nexus.sysusers, as /etc/sysusers.d/nexus.conf, and "
            "`systemd-sysusers` make it"
        ) from None
    for path, mode in ((place.settings_folder, 0o750), (place.settings_file, 0o640), (place.policy_file, 0o640)):
        os.chown(path, 0, group)
        path.chmod(mode)
    written = [SYSTEMD / f"{service}@{place.site}.service.d" / "data.conf" for service in SERVICES]
    for path in written:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_durably(path, text)
        path.chmod(0o644)
    return written
