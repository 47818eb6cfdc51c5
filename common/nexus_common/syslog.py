"""The machine's own system log, which the owner of an audit log cannot rewrite: heads are noted there."""

import socket
from contextlib import suppress
from logging.handlers import SysLogHandler
from typing import Final

from nexus_common.audit import Head

SYSLOG: Final = "/dev/log"


def announce(program: str, head: Head) -> bool:
    """Send an audit log's head to the local syslog; whether it was taken.

    A socket of our own, since ``syslog.syslog`` does not tell and ``SysLogHandler`` blocks while the queue is full.
    """
    priority = SysLogHandler.LOG_AUTHPRIV << 3 | SysLogHandler.LOG_NOTICE
    text = f"<{priority}>{program}: audit log of {program}: {head.lines} lines, head {head.hash}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.setblocking(False)
        syslog.connect(SYSLOG)
        return syslog.send(text.encode()) > 0
    return False
