"""`make bundle`: one file from which NEXUS is installed where there is no network.

It holds a wheel of everything that deploy/lock names for a machine and a Python, taken by the locked hashes, and of
NEXUS itself; the base model is one of them.  For each role `ROLE.txt` pins every file by its one hash and
`ROLE.cdx.json` lists them for a scanner (CycloneDX 1.6).  SHA256SUMS covers every file; `--sign KEY` signs that.
"""

import argparse
import datetime as dt
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cyclonedx.contrib.hash.factories import HashTypeFactory
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.utils import parse_wheel_filename

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "lock"))
from pins import pins, wheels_for  # noqa: E402  the folder of a script is not a package

ROLES: Final = {"server": ("server",), "client": ("torch-cpu", "client", "pai")}
TAKEN: Final = (
    *("README.md", "LICENSE", "common/PROTOCOL.md"),
    *(f"deploy/{name}" for name in ("systemd", "prometheus", "grafana", "jetson")),
    *(f"deploy/{name}.md" for name in ("README", "LIFECYCLE", "METRICS", "LICENCES")),
)
"""With the folders that it has in the repository, so that what a document says to type works in the bundle too; but for
making images (deploy/docker, and `build` of nexus-jetson.sh), which takes a clone: it compiles from the source."""
NAMESPACE: Final = "nexus-bundle"  # of the signature: what `ssh-keygen -Y verify -n` is told
OURS: Final = "nexus-federated"


def pip(*arguments: str | Path) -> None:
    """Run it, and end with its own words where it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], check=False)
    if done.returncode:
        raise SystemExit(
            "a wheel could not be had (see above). Where your index lacks torch's CPU build, name one that has it: "
            "TORCH_INDEX=URL make bundle"
        )


def fetch(lines: Iterable[str], folder: Path, machine: str, python: str) -> list[Path]:
    """The wheels of these pins, in this folder."""
    with tempfile.TemporaryDirectory(dir=folder) as there:
        wanted, beside = Path(there) / "pins.txt", Path(there) / "wheels"
        wanted.write_text("".join(lines))
        index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
        pip("download", *wheels_for(machine, python), *index, "--dest", beside, "--requirement", wanted)
        return [one.replace(folder / one.name) for one in sorted(beside.glob("*.whl"))]


def digest(file: Path) -> str:
    """SHA-256, hex."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def bill(role: str, wheels: list[Path], made: dt.datetime) -> str:
    """The software bill of materials of a role: name, version, licence and hash of each file that it installs."""
    licences = dict(re.findall(r"^\| (\S+) \| [^|]+ \| ([^|]+) \|", (HERE.parent / "LICENCES.md").read_text(), re.M))
    licences[OURS] = "Apache-2.0"
    parts = []
    for wheel in wheels:
        name, version, *_ = parse_wheel_filename(wheel.name)
        link = PackageURL("pypi", None, name, str(version))
        parts.append(Component(
            name=name, version=str(version), type=ComponentType.LIBRARY, purl=link, bom_ref=link.to_string(),
            hashes=[HashTypeFactory().from_hashlib_alg("sha256", digest(wheel))],
            licenses=[LicenseFactory().make_from_string(licences[name])],
        ))  # fmt: skip
    whole = Component(name=f"nexus-{role}", type=ComponentType.APPLICATION, bom_ref=f"nexus-{role}")
    serial = uuid.uuid5(uuid.NAMESPACE_URL, " ".join(map(digest, wheels)))
    bom = Bom(components=parts, metadata=BomMetaData(component=whole, timestamp=made), serial_number=serial)
    bom.register_dependency(whole, parts)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def fill(folder: Path, version: str, machine: str, python: str, made: dt.datetime) -> None:
    """Everything but the checksums."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    fetch((pin for pin in pins(("build",), machine, python) if pin.startswith("pip=")), wheels, machine, python)
    with tempfile.TemporaryDirectory() as source:  # of a copy: a build folder in the tree would go into the next wheel
        for part in ("server", "client", "common", "pyproject.toml", "README.md", "LICENSE"):
            take(ROOT / part, Path(source) / part)
        pip(
            "wheel",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            wheels,
            source,
        )
    (ours,) = wheels.glob(f"{OURS.replace('-', '_')}-*.whl")
    for role, names in ROLES.items():
        theirs = [ours, *fetch(pins(names, machine, python), wheels, machine, python)]
        lines = ("{}=={} --hash=sha256:{}\n".format(*parse_wheel_filename(one.name)[:2], digest(one)) for one in theirs)
        (folder / f"{role}.txt").write_text("".join(lines))
        (folder / f"{role}.cdx.json").write_text(bill(role, theirs, made))
    for name in TAKEN:
        take(ROOT / name, folder / name)
    take(HERE / "install.sh", folder / "install.sh")
    (folder / "about.sh").write_text(f"VERSION={version}\nMACHINE={machine}\nPYTHON={python}\n")


def take(source: Path, to: Path) -> None:
    """Copy a file or a folder, without what Python leaves."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, to)


def seal(folder: Path, key: Path | None) -> None:
    """SHA256SUMS over every file, and its signature."""
    sums = folder / "SHA256SUMS"
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    sums.write_text("".join(f"{digest(one)}  {one.relative_to(folder)}\n" for one in files))
    if key is not None:
        subprocess.run(["ssh-keygen", "-Y", "sign", "-q", "-n", NAMESPACE, "-f", key, sums], check=True)


def pack(folder: Path, to: Path, made: dt.datetime) -> None:
    """One plain tar (wheels are compressed), the same bytes for the same files."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime, info.mode = int(made.timestamp()), 0o755 if info.isdir() else 0o644
        return info

    with tarfile.open(to, "w") as tar:
        for one in [folder, *sorted(folder.rglob("*"))]:
            tar.add(one, one.relative_to(folder.parent), recursive=False, filter=plain)


def when() -> dt.datetime:
    """The time of the commit, so that it makes the same bundle twice; now, where this is no checkout."""
    asked = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = int(asked.stdout) if asked.returncode == 0 and asked.stdout.strip() else None
    return dt.datetime.now(dt.UTC) if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)


def main() -> None:
    """Make it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist", help="folder to put it in")
    parser.add_argument("--machine", choices=("x86_64", "aarch64"), default=platform.machine())
    parser.add_argument("--python", default="{}.{}".format(*sys.version_info), help="of the machines it is for")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="an SSH key of yours that signs SHA256SUMS")
    given = parser.parse_args()
    version, made = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"], when()
    name = f"nexus-{version}-{given.machine}-python{given.python}"
    given.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.output) as there:
        folder = Path(there) / name
        fill(folder, version, given.machine, given.python, made)
        seal(folder, given.sign)
        beside = Path(there) / f"{name}.tar"
        pack(folder, beside, made)
        done = beside.replace(given.output / beside.name)
    print(f"{done}: {done.stat().st_size / 1e6:.0f} MB, SHA-256 {digest(done)}")
    print(
        f"there: tar xf {done.name} && cd {name} && sha256sum -c --strict --quiet SHA256SUMS && sudo sh install.sh ROLE"
    )


if __name__ == "__main__":
    main()
