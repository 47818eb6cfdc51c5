"""Every system call of a whole demo is watched: no connection leads to anywhere but this machine's own loopback."""

import ipaddress
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nexus_client.embed import default_base

ROOT = Path(__file__).resolve().parents[2]
INET = re.compile(r"sa_family=AF_INET6?,.*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"([0-9a-f.:]+)\"")
pytestmark = [
    pytest.mark.long,
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"),
]


def is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def test_the_encoders_runtime_tells_nobody_that_it_runs(tmp_path: Path, graphs: Path) -> None:
    log, home = tmp_path / "calls", tmp_path / "home"
    home.mkdir()
    program = (
        "import pathlib, sys, time; from nexus_client.light import LightEncoder; "
        "LightEncoder(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 1).base_embeddings(['x']); time.sleep(10)"
    )
    watched = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg", "-e", "signal=none"]
    asked = [sys.executable, "-c", program, str(graphs / "encoder-int8.onnx"), str(default_base())]
    env = {"HOME": str(home), "PYTHONPATH": str(ROOT)}  # not CI, where it would be silent by itself
    subprocess.run([*watched, "-o", str(log), *asked], timeout=120, check=True, env=env)
    assert not INET.search(log.read_text(errors="replace"))
    assert not list(home.iterdir()), "nothing was written into the home folder"


@pytest.mark.timeout(600)
def test_the_demo_connects_to_loopback_only_every_byte_is_logged_and_every_site_gains(tmp_path: Path) -> None:
    log, home, folder = tmp_path / "calls", tmp_path / "home", tmp_path / "demo"
    home.mkdir()
    watched = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg", "-e", "signal=none"]
    demo = [sys.executable, str(ROOT / "deploy" / "demo" / "demo.py"), "--home", str(folder)]
    command = [*watched, "-o", str(log), *demo]
    done = subprocess.run(command, capture_output=True, text=True, timeout=590, check=False, env={"HOME": str(home)})
    assert done.returncode == 0, done.stdout + done.stderr
    lines = log.read_text(errors="replace").splitlines()
    addresses = {found[1] for line in lines if (found := INET.search(line))}
    assert "127.0.0.1" in addresses, "the demo's own connections were seen"
    assert all(is_loopback(address) for address in addresses), addresses
    assert not any("htons(53)" in line for line in lines), "no name was looked up"
    assert not list(home.iterdir()), "nothing was written into the home folder"
    summary = json.loads((folder / "summary.json").read_text())
    assert [site["site"] for site in summary["sites"]] == ["hospital-a", "hospital-b", "bank-a"]
    assert summary["rounds"] == 10
    for log in summary["audit"]:
        assert log["bytes_logged"] == log["bytes_counted"] > 1e6, "the log names every byte that the server received"
    for site in summary["sites"]:
        assert site["ndcg10_after"] > site["ndcg10_before"] > site["ndcg10_bm25"] > 0
        assert site["rows"] >= 300
