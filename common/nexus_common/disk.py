"""Writing files so that after a crash each is there whole or not at all."""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from nexus_common.account import as_owner
from nexus_common.errors import NexusError

LEAST_FREE_BYTES: Final = 8_000_000  # for logs, records and a version or two
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def write_durably(path: Path, data: bytes) -> None:
    """Write, sync, rename, sync the folder: after a crash the file is there whole or not at all.

    A file that takes the place of another has its mode, and, where root writes it, its owner; a new one of root's goes
    to the account that has the folder, for the program that works there.  NexusError where the disk is full, and
    OSError for any other fault; nothing is left of what was begun.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            if path.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            give_away(file.fileno(), path if path.exists() else path.parent)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)  # or each try on a full disk would leave less for the next
        if problem.errno not in FULL:
            raise
        raise NexusError(
            f"{path} cannot be written ({problem.strerror}): {len(data)} bytes, and {room(path.parent)}; free some "
            "space"
        ) from None
    sync_folder(path.parent)


def give_away(descriptor: int, like: Path) -> None:
    """Where root works, a file becomes that of the account that has another file or folder."""
    if os.geteuid() == 0:
        owner = like.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def free_bytes(folder: Path) -> int:
    """What this account may still write in a folder."""
    return shutil.disk_usage(folder).free


def room(folder: Path) -> str:
    """How much that is, for an error of a library that seldom tells when a full disk is its cause."""
    try:
        return f"{free_bytes(folder) / 1e6:.1f} MB are free there"
    except OSError:
        return "the folder cannot be entered"


def shortage(folder: Path, need: int = LEAST_FREE_BYTES) -> str | None:
    """That less than ``need`` bytes are free in a folder, with the remedy; None where there is enough."""
    if (free := free_bytes(folder)) >= need:
        return None
    return (
        f"{free / 1e6:.1f} MB free in {folder}, and {need / 1e6:.1f} MB are needed; free some space there, and it goes "
        "on by itself"
    )


def remove_unfinished(folder: Path) -> None:
    """Delete what ``write_durably`` had begun when its process was killed; for the one process that owns the folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def make_above(folder: Path) -> None:
    """Make what is missing above a folder so that every account may pass, whatever the umask: a service's must."""
    for missing in reversed([one for one in folder.absolute().parents if not one.exists()]):
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755)


def sync_folder(path: Path) -> None:
    """Make renames in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """One change in a folder at a time, whichever process or thread makes it: the others wait.

    What is locked is a file that its owner alone may open.  A lock on the folder itself could be held for ever by
    whoever may read it: a hijacked agent would keep root from withdrawing a plan.
    """
    folder = folder.resolve()
    with as_owner(folder):  # or a command of root's would lock the owner out
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
