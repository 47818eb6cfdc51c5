"""What systemd is told of a service of ``Type=notify``, as sd_notify(3) says: one datagram, where one is asked for.

And whether it runs this machine at all, since people are told to start a service by it and not as root by hand.
"""

import logging
import os
import socket
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)
SYSTEMD: Final = Path("/run/systemd/system")


def booted() -> bool:
    """Whether systemd runs this machine, as sd_booted(3) says; in a container it does not."""
    return SYSTEMD.is_dir()


def notify(state: str) -> None:
    """Tell the service manager ``READY=1`` or ``STOPPING=1``; nothing where NOTIFY_SOCKET is not set."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract one
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
            told.connect(address)
            told.sendall(state.encode())
    except OSError as problem:  # the work goes on; the service manager says that it heard nothing
        log.error("NOTIFY_SOCKET cannot be reached to say %s: %s", state, problem.strerror)
