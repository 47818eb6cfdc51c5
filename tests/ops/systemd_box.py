"""A real systemd as process 1 of namespaces of its own, over a copy-on-write view of this machine.

Nothing of it reaches the machine: files go to an overlay in memory, /sys and /proc/sys are read-only, the network
is a loopback of its own, and of this machine's own units none is started but the journal.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.ops.tools import ROOT, tool

SYSTEMD: Final = "/lib/systemd/systemd"
SECONDS: Final = 280
BEGIN: Final = """
set -e
mount --make-rprivate /
mkdir -p {box}/up {box}/root
mount -t tmpfs tmpfs {box}/up
mkdir {box}/up/upper {box}/up/work
mount -t overlay overlay -o lowerdir=/,upperdir={box}/up/upper,workdir={box}/up/work {box}/root
cd {box}/root
rm -rf etc/systemd/system etc/fstab lib/systemd/system/*.wants usr/local/lib/systemd
mkdir -p etc/systemd/system opt/nexus/bin opt/nexus/src opt/nexus/packages opt/box
touch etc/fstab
cp -r {box}/bin/. opt/nexus/bin/
cp {box}/lab.target {box}/lab.service etc/systemd/system/
mount --bind {source} opt/nexus/src
mount --bind {installed} opt/nexus/packages
mount --bind {box}/out opt/box
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for one in run tmp dev; do mount -t tmpfs tmpfs $one; done
mkdir dev/pts dev/shm
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx dev/ptmx
for one in null zero full random urandom tty; do touch dev/$one; mount --bind /dev/$one dev/$one; done
mkdir opt/old
pivot_root . opt/old
umount -l opt/old
mount --make-rshared / # as systemd finds it on a machine: credentials reach a service that way
exec chroot . /usr/bin/env -i container=box PATH=/opt/nexus/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  {systemd} --system --unit=lab.target --show-status=0
"""
TARGET: Final = """
[Unit]
DefaultDependencies=no
Requires=systemd-journald.service lab.service
"""
SERVICE: Final = """
[Unit]
DefaultDependencies=no
After=systemd-journald.service
[Service]
Type=oneshot
TimeoutStartSec={seconds}
ExecStart=/bin/bash -x /opt/box/script
ExecStopPost=/bin/systemctl exit 0 --force
StandardOutput=append:/opt/box/log
StandardError=append:/opt/box/log
Environment=PATH=/opt/nexus/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
PROGRAM: Final = """#!/bin/sh
export PYTHONPATH={path} PYTHONDONTWRITEBYTECODE=1
exec {python} -c 'import sys; from {package}.cli import main; sys.exit(main())' "$@"
"""


def everybodys_python() -> str:
    """A Python like this one that every account can run: systemd hides /root and /home from services."""
    found = shutil.which(f"python{sys.version_info.major}.{sys.version_info.minor}", path="/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"no python{sys.version_info.major}.{sys.version_info.minor} in /usr/bin for a service to run")
    return found


def boot(folder: Path, script: str) -> Path:
    """Run a Bash script in the box; ``folder/out``, which it sees as /opt/box, with its trace in ``log``."""
    if os.geteuid() != 0:
        pytest.skip("only root can boot a systemd in namespaces of its own")
    if not Path(SYSTEMD).exists():
        pytest.skip(f"{SYSTEMD} is not installed (apt-get install systemd)")
    unshare, out = tool("unshare", "util-linux"), folder / "out"
    for one in (out, folder / "bin"):
        one.mkdir(exist_ok=True)
    (out / "script").write_text(script)
    source = Path("/opt/nexus/src")
    packages = [str(source / room) for room in ("server", "client", "common")]
    installed = next(path for path in sys.path if path.endswith("site-packages"))  # /tmp and /root are hidden there
    for program in ("nexus-server", "nexus-client"):
        text = PROGRAM.format(
            path=":".join([*packages, "/opt/nexus/packages"]),
            python=everybodys_python(),
            package=program.replace("-", "_"),
        )
        (folder / "bin" / program).write_text(text)
        (folder / "bin" / program).chmod(0o755)
    (folder / "lab.target").write_text(TARGET)
    (folder / "lab.service").write_text(SERVICE.format(seconds=SECONDS))
    (folder / "begin").write_text(BEGIN.format(box=folder, source=ROOT, installed=installed, systemd=SYSTEMD))
    command = [unshare, "-m", "-p", "-f", "-u", "-i", "-n", "-C", "--kill-child", "sh", str(folder / "begin")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 15, check=False)
    if not (out / "log").exists():
        pytest.skip(f"no systemd can be booted in namespaces here: {done.stderr[-500:]}")
    return out
