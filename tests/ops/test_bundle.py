"""The bundle of `make bundle`: what is in it, and that it installs both programs where there is no network."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ops.tools import DEPLOY, told, tool

pytestmark = [pytest.mark.processes, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A signed one, unpacked as at the machine that it is for."""
    here = tmp_path_factory.mktemp("bundle")
    told(tool("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-C", "packer", "-f", here / "key")
    made = [sys.executable, DEPLOY / "bundle" / "bundle.py", "-o", here, "--sign", here / "key"]
    subprocess.run(made, check=True, timeout=1200)
    (packed,) = here.glob("*.tar")
    with tarfile.open(packed) as tar:
        tar.extractall(here, filter="data")
    packed.unlink()
    (folder,) = here.glob("nexus-*")
    yield folder
    shutil.rmtree(here)


def install(bundle: Path, role: str, prefix: Path) -> subprocess.CompletedProcess[str]:
    """Run its script in a network namespace of its own, which has no interface that is up, without pip's settings."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    command = [
        tool("unshare", "util-linux"),
        "--map-root-user",
        "--net",
        "sh",
        bundle / "install.sh",
        role,
        "--prefix",
        prefix,
    ]
    return subprocess.run(command, env=plain, capture_output=True, text=True, timeout=1200, check=False)


def small(bundle: Path, folder: Path, version: str) -> Path:
    """A bundle whose server is one package."""
    (folder / "wheels").mkdir(parents=True)
    for wheel in (*bundle.glob("wheels/pip-*"), *bundle.glob("wheels/click-*")):
        shutil.copy(wheel, folder / "wheels")
    pins = (bundle / "server.txt").read_text().splitlines(keepends=True)
    (folder / "server.txt").write_text("".join(pin for pin in pins if pin.startswith("click==")))
    (folder / "about.sh").write_text((bundle / "about.sh").read_text().replace("VERSION=", f"VERSION={version}-"))
    shutil.copy(bundle / "install.sh", folder)
    files = [str(one.relative_to(folder)) for one in sorted(folder.rglob("*")) if one.is_file()]
    (folder / "SHA256SUMS").write_text(told("sha256sum", *files, cwd=folder))
    return folder


def run(program: Path, *arguments: str | Path) -> str:
    """What an installed program prints, without a network and without this checkout."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = ["unshare", "--map-root-user", "--net", program, *arguments]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pins(bundle: Path, role: str) -> set[str]:
    return {line.rpartition("sha256:")[2] for line in (bundle / f"{role}.txt").read_text().split("\n") if line}


def test_both_programs_are_installed_with_the_network_off_and_work(bundle: Path, tmp_path: Path) -> None:
    for role in ("server", "client"):
        done = install(bundle, role, tmp_path / "nexus")
        assert done.returncode == 0, done.stdout + done.stderr
    programs = tmp_path / "nexus" / "bin"
    assert (tmp_path / "nexus" / "roles").read_text().split() == ["client", "server"]
    run(programs / "nexus-server", "--home", tmp_path / "server", "init")
    assert (tmp_path / "server" / "server.toml").exists()
    report = json.loads(run(programs / "nexus-client", "--home", tmp_path, "--json", "bench", "--seconds", "0.1"))
    assert all(one["queries_per_second"] > 0 for one in report["measured"])


def test_after_an_update_the_restart_of_every_role_of_the_machine_is_named(tmp_path: Path) -> None:
    folder, stubs = tmp_path / "bundle", tmp_path / "bin"
    shutil.copytree(DEPLOY / "systemd", folder / "deploy" / "systemd")
    shutil.copy(DEPLOY / "bundle" / "install.sh", folder)
    python = ".".join(map(str, sys.version_info[:2]))
    (folder / "about.sh").write_text(f"VERSION=1 MACHINE={platform.machine()} PYTHON={python}\n")
    files = [str(one.relative_to(folder)) for one in sorted(folder.rglob("*")) if one.is_file()]
    (folder / "SHA256SUMS").write_text(told("sha256sum", *files, cwd=folder))
    stubs.mkdir()
    for name in ("systemctl", "systemd-sysusers"):
        (stubs / name).write_text("#!/bin/sh\n")
        (stubs / name).chmod(0o755)
    release = f"/opt/nexus-1-{hashlib.sha256((folder / 'SHA256SUMS').read_bytes()).hexdigest()[:8]}"
    machine = (  # where both roles are installed, and systemd runs; nothing of it is this machine's
        "for one in /opt /etc /run /usr/local/bin; do mount -t tmpfs none $one; done; "
        f"mkdir -p /etc/systemd/system /run/systemd/system {release}; printf 'client\nserver\n' > {release}/roles; "
        f"ln -s {release} /opt/nexus; exec sh {folder}/install.sh client"
    )
    alone = [tool("unshare", "util-linux"), "--map-root-user", "--mount", "sh", "-euc", machine]
    path = f"{stubs}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(alone, env={"PATH": path}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("systemctl restart nexus-server\n") == 1
    assert done.stdout.count("systemctl restart 'nexus-client@*' 'nexus-serve@*'\n") == 1


def test_a_changed_byte_is_refused_before_anything_is_installed(bundle: Path, tmp_path: Path) -> None:
    wheel = next(bundle.glob("wheels/click-*.whl"))
    whole = wheel.read_bytes()
    wheel.write_bytes(whole + b"\0")
    try:
        done = install(bundle, "server", tmp_path / "nexus")
    finally:
        wheel.write_bytes(whole)
    assert done.returncode == 1
    assert wheel.name in done.stdout + done.stderr
    assert "nothing was installed" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_listed_is_refused_before_anything_runs(bundle: Path, tmp_path: Path) -> None:
    folder = small(bundle, tmp_path / "bundle", "1")
    (folder / "venv.py").write_text("open('ran', 'w')")
    done = install(folder, "server", tmp_path / "nexus")
    assert done.returncode == 1
    assert "does not name" in done.stderr
    assert not (folder / "ran").exists()
    assert not (tmp_path / "nexus").exists()


def test_an_update_comes_beside_the_release_before_it_and_one_that_was_cut_off_is_made_anew(
    bundle: Path, tmp_path: Path
) -> None:
    first, second = (small(bundle, tmp_path / f"bundle {n}", str(n)) for n in (1, 2))
    prefix = tmp_path / "opt" / "a nexus"
    prefix.parent.mkdir()
    assert install(first, "server", prefix).returncode == 0
    before = prefix.resolve()
    cut_off = install(second, "client", prefix)  # it has no client.txt
    assert cut_off.returncode != 0
    assert prefix.resolve() == before
    done = install(second, "server", prefix)
    assert done.returncode == 0, done.stderr
    assert f"stays in {before}" in done.stdout
    assert prefix.resolve() != before
    assert before.exists()
    assert run(prefix / "bin" / "python", "-c", "import click; print(click.__name__)") == "click\n"
    again = install(second, "server", prefix)
    assert "installing" not in again.stdout


def test_shellcheck_finds_nothing_in_the_script() -> None:
    told(tool("shellcheck", "shellcheck"), DEPLOY / "bundle" / "install.sh")


def test_the_bill_of_materials_has_the_hash_of_every_file_that_a_role_installs(bundle: Path) -> None:
    told("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS", cwd=bundle)
    there = {line.split()[0] for line in told("sha256sum", *bundle.glob("wheels/*")).splitlines()}
    for role in ("server", "client"):
        bill = json.loads((bundle / f"{role}.cdx.json").read_text())
        assert bill["specVersion"] == "1.6"
        assert {part["hashes"][0]["content"] for part in bill["components"]} == pins(bundle, role) <= there
        assert all(part["licenses"] for part in bill["components"])


def test_the_signature_holds_for_these_sums_and_no_others(bundle: Path, tmp_path: Path) -> None:
    signers = tmp_path / "signers"
    signers.write_text(f"packer {(bundle.parent / 'key.pub').read_text()}")
    verify = ["ssh-keygen", "-Y", "verify", "-n", "nexus-bundle", "-f", signers, "-I", "packer", "-s",
              bundle / "SHA256SUMS.sig"]  # fmt: skip
    sums = (bundle / "SHA256SUMS").read_bytes()
    assert subprocess.run(verify, input=sums, capture_output=True, check=False).returncode == 0
    assert subprocess.run(verify, input=sums + b"\n", capture_output=True, check=False).returncode != 0


def test_what_stands_in_the_way_is_not_touched(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "nexus").mkdir()
    done = install(bundle, "server", tmp_path / "nexus")
    assert done.returncode == 1
    assert "not from a bundle" in done.stderr
    assert list((tmp_path / "nexus").iterdir()) == []
