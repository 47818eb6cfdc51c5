"""Every system call of a whole demo is watched: no connection leads to anywhere but this machine's own loopback."""

import ipaddress
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INET = re.compile(r"sa_family=AF_INET6?,.*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"([0-9a-f.:]+)\"")
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"),
]


@pytest.mark.timeout(600)
def test_the_demo_connects_to_loopback_only_and_every_site_gains(tmp_path: Path) -> None:
    log, home = tmp_path / "calls", tmp_path / "home"
    home.mkdir()
    demo = [sys.executable, str(ROOT / "deploy" / "demo" / "demo.py"), "--home", str(tmp_path / "d")]
    watched = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-e", "signal=none", "-o", str(log), *demo]
    done = subprocess.run(watched, capture_output=True, text=True, timeout=590, check=False, env={"HOME": str(home)})
    assert done.returncode == 0, done.stdout + done.stderr
    lines = log.read_text(errors="replace").splitlines()
    addresses = {found[1] for line in lines if (found := INET.search(line))}
    assert addresses, "the demo's own connections were seen"
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses
    assert not any("53)" in line and "htons(53)" in line for line in lines), "no name was looked up"
    assert not list(home.iterdir()), "nothing was written into the home folder"
