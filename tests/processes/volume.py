"""A small disk of its own under a folder, which a test fills: a tmpfs, which root may mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts small file systems, which takes root")


class Volume:
    """A mounted file system, and the file that fills it."""

    def __init__(self, path: Path) -> None:
        self.path, self._ballast = path, path / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes of it free; others may take or free some meanwhile."""
        with self._ballast.open("ab") as ballast:
            while (free := self.free) > leave:
                size = ballast.seek(0, os.SEEK_END)
                try:
                    os.posix_fallocate(ballast.fileno(), size, max(1, free - leave))
                except OSError:
                    continue

    def empty(self) -> None:
        """Somebody frees space."""
        self._ballast.unlink(missing_ok=True)

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


@contextmanager
def volume(path: Path, megabytes: int) -> Iterator[Volume]:
    """Mount it; skips the test where that is not allowed here though root asks (a container may forbid it)."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = f"size={megabytes}m,mode=700"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield Volume(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
