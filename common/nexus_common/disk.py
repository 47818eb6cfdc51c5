"""Writing files so that after a crash each is there whole or not at all."""

import fcntl
import os
import secrets
import stat
from pathlib import Path
from typing import IO

from nexus_common.errors import NexusError


def write_durably(path: Path, data: bytes) -> None:
    """Write, sync, rename, sync the folder: after a crash the file is there whole or not at all.

    A file that takes the place of another has its mode, and, where root writes it, its owner.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            if path.exists():
                old = path.stat()
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
                if os.geteuid() == 0:
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # who tries again each second must not fill the folder
        raise
    sync_folder(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Delete what ``write_durably`` had begun when its process was killed; for the one process that owns the folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def single_process(path: Path, program: str) -> IO[str]:
    """Hold the lock file for this process's life; NexusError where another process holds it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise NexusError(f"another {program} already runs on {path.parent}; stop it first") from None
    return file
