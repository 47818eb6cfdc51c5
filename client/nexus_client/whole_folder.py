"""A folder that appears whole or not at all: filled beside its place, put on the disk, then renamed.

What a killed process left half-made is removed by the next one that writes to the same place; a folder that takes
another's place is exchanged with it in one step of the kernel.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from nexus_common.disk import FULL, room, sync_folder
from nexus_common.errors import NexusError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def whole_folder(target: Path, marker: str, *, force: bool) -> Iterator[Path]:
    """An empty folder to fill, which at the end of the block becomes ``target``; where the block fails, it is gone.

    NexusError where ``target`` is anything but missing or empty, where its parent is missing, and where the disk is
    full.  ``force`` lets it take the place of a folder that holds a file ``marker``: of one made in the same way.
    """
    replaced = _refused(target, marker, force)
    _remove_unfinished(target)
    made = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    made.mkdir(mode=0o700)
    held = os.open(made, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # told apart from what a killed process left
        yield made
        _sync(made)
        _refused(target, marker, force)  # once more: it took a while
        _exchange(made, target) if replaced else made.rename(target)
        sync_folder(target.parent)
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        raise NexusError(
            f"{target} cannot be written ({problem.strerror}): {room(target.parent)}; free some space; nothing was left"
        ) from None
    finally:
        os.close(held)
        shutil.rmtree(made, ignore_errors=True)  # after an exchange it holds what was there before


def _refused(target: Path, marker: str, force: bool) -> bool:
    """Whether a folder is there that may be replaced; NexusError where something is there that may not."""
    if not target.parent.is_dir():
        raise NexusError(f"there is no folder {target.parent}; make it first, or name another place")
    if target.is_dir() and not any(target.iterdir()):
        return False
    if not os.path.lexists(target):
        return False
    if not target.is_dir():
        raise NexusError(f"{target} is no folder; name another place")
    if not force:
        raise NexusError(f"{target} is not empty; --force replaces an earlier export, or name another place")
    if not (target / marker).is_file():
        raise NexusError(f"{target} holds something else than an export, which --force does not delete")
    return True


def _remove_unfinished(target: Path) -> None:
    for left in target.parent.glob(f".{_literal(target.name)}.????????.tmp"):
        with suppress(OSError):
            held = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a living process holds its own
                shutil.rmtree(left)
            finally:
                os.close(held)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _exchange(new: Path, old: Path) -> None:
    """Both names change places at one instant (renameat2)."""
    libc: Final = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE):
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS):
            raise NexusError(f"the file system of {old} cannot exchange folders; delete the old export first")
        raise OSError(number, os.strerror(number), str(old))
