"""Ports that a program opens for people and programs of its own side."""

import os
import socket
from typing import Final

from nexus_common.errors import NexusError

BACKLOG: Final = 256


def listen(host: str, port: int, remedy: str) -> socket.socket:
    """An open port; NexusError with the cause and ``remedy`` where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as problem:
        told = os.strerror(problem.errno) if problem.errno and problem.errno > 0 else str(problem)
        raise NexusError(f"cannot listen on {host} port {port}: {told}; {remedy}") from None
    return listener
