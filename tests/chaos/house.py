"""Namespaces of our own, where a machine allows them: a cable to each site that can go dead, disks that can fill up.

A dead cable is what a VPN that drops looks like: nothing is refused and nothing closed, packets are lost in silence.
Everything here goes with the process, whatever ends it.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.processes.volume import Volume

_INSIDE = "NEXUS_CHAOS_INSIDE"
_UNSHARE = ["unshare", "--map-root-user", "--mount", "--net"]
_PROBE = "mount -t tmpfs none /run && ip link add here type veth peer name there"
HOST = "10.99.0.1"
DISK_BYTES = 512 << 20  # versions of half an hour


def enter(module: str) -> bool:
    """Start ``module`` again in namespaces of its own; False where this machine allows none."""
    if _INSIDE in os.environ:
        _run("mount -t tmpfs none /run")
        _run("ip link set lo up")
        _run(f"ip address add {HOST}/32 dev lo")
        return True
    try:
        subprocess.run([*_UNSHARE, "sh", "-c", _PROBE], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    os.environ[_INSIDE] = "1"
    sys.exit(subprocess.run([*_UNSHARE, sys.executable, "-m", module, *sys.argv[1:]], check=False).returncode)


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


class Cable:
    """The one way from a site's own network to the server's."""

    def __init__(self, number: int) -> None:
        self._name, self._ours = f"site{number}", f"cable{number}"
        there = f"ip -n {self._name}"
        for command in (
            f"ip netns add {self._name}",
            f"ip link add {self._ours} type veth peer name eth0 netns {self._name}",
            f"ip address add 10.99.{number}.1/24 dev {self._ours}",
            f"ip link set {self._ours} up",
            f"{there} link set lo up",
            f"{there} address add 10.99.{number}.2/24 dev eth0",
            f"{there} link set eth0 up",
            f"{there} route add default via 10.99.{number}.1",
        ):
            _run(command)
        self.enter = ["ip", "netns", "exec", self._name]  # before the command of a process that is to run there

    def dead(self) -> None:
        """Nothing passes, and nobody is told."""
        _run(f"ip link set {self._ours} down")

    def mend(self) -> None:
        """It passes again."""
        _run(f"ip link set {self._ours} up")


def disk(folder: Path) -> Volume:
    """A small disk under a folder that is not there yet."""
    folder.mkdir(mode=0o700, parents=True)
    _run(f"mount -t tmpfs -o size={DISK_BYTES},mode=0700 none {folder}")
    return Volume(folder)


def take_away(one: Volume) -> None:
    """Take a disk away whose users have ended."""
    subprocess.run(["umount", "--lazy", str(one.path)], check=False)
