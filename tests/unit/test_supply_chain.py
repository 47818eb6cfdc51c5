"""What is installed is what was looked at: reasons, pinned versions, hashes for each machine, licences."""

import ast
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = ROOT / "deploy" / "lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES, OUTSIDE = (
    [package for package in tomllib.loads(file.read_text())["package"] if "registry" in package["source"]]
    for file in (ROOT / "uv.lock", LOCK / "outside" / "uv.lock")
)
SETS = sorted(path.stem for path in LOCK.glob("*.txt"))
GLIBC = range(5, 29)  # manylinux_2_28 and older: Debian 10 and Ubuntu 20.04, so JetPack 5 too
PLACES = [(machine, minor) for machine in ("x86_64", "aarch64") for minor in (11, 12, 13, 14)]


@cache
def program(name: str) -> dict[str, Any]:
    """A program of ``deploy/lock``, which is in no package."""
    sys.path.insert(0, str(LOCK))
    try:
        return runpy.run_path(str(LOCK / f"{name}.py"))
    finally:
        sys.path.remove(str(LOCK))


@cache
def pins(name: str) -> list[tuple[Requirement, set[str]]]:
    """A requirement file's pins and their hashes."""
    found = re.findall(r"^(\w\S+.*?)(?: \\)?\n((?:[ \t].*\n)*)", (LOCK / f"{name}.txt").read_text(), re.MULTILINE)
    return [(Requirement(head), set(re.findall("sha256:([0-9a-f]{64})", hashes))) for head, hashes in found]


def declared() -> Iterator[tuple[str, str]]:
    """Every requirement of pyproject.toml, and where it stands."""
    project = PROJECT["project"]
    yield from (("build", line) for line in PROJECT["build-system"]["requires"])
    yield from (("dependencies", line) for line in project["dependencies"])
    for table in (project["optional-dependencies"], PROJECT["dependency-groups"]):
        yield from ((name, line) for name, lines in table.items() for line in lines if isinstance(line, str))


def place(machine: str, minor: int) -> dict[str, str]:
    """What markers see there."""
    here = {"sys_platform": "linux", "platform_machine": machine, "extra": ""}
    return {**default_environment(), **here, "python_version": f"3.{minor}", "python_full_version": f"3.{minor}.1"}


@cache
def tags(machine: str, minor: int) -> set[Tag]:
    """The wheels that install there."""
    platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in GLIBC] + [f"manylinux2014_{machine}", f"linux_{machine}"]
    return {*cpython_tags((3, minor), platforms=platforms), *compatible_tags((3, minor), f"cp3{minor}", platforms)}


def wheels() -> dict[str, str]:
    """File names by their hashes."""
    files = [file for package in (*PACKAGES, *OUTSIDE) for file in package.get("wheels", ())]
    found = {file["hash"].removeprefix("sha256:"): unquote(file["url"].rsplit("/", 1)[1]) for file in files}
    return found | dict(line.split("  ") for line in (LOCK / "torch-cpu.sha256").read_text().splitlines())


def test_every_dependency_says_why_it_is_there() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for where, requirement in declared():
        reasons = [line.partition("#")[2].strip() for line in lines if f'"{requirement}"' in line]
        assert all(len(reason) > 3 for reason in reasons), f"{requirement} of {where} has no reason behind it"
        assert reasons, requirement


@pytest.mark.parametrize("room", ["server", "client", "common"])
def test_what_is_imported_is_declared(room: str) -> None:
    """A package that only another one brings along can go with any version of that."""
    sets = {"server": ("dependencies", "server"), "client": ("dependencies", "client", "pai")}
    wanted = {
        canonicalize_name(Requirement(line).name)
        for where, line in declared()
        if where in sets.get(room, sets["client"])
    }
    distributions, undeclared = packages_distributions(), set()
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for root in {module.split(".")[0] for module in modules} - sys.stdlib_module_names:
                names = {canonicalize_name(name) for name in distributions.get(root, [root])}
                if not root.startswith("nexus_") and not names & wanted:
                    undeclared.add(root)
    assert not undeclared


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    groups = {"dependencies": ("server", "client"), "client": ("client", "torch-cpu", "torch-cuda")}
    for where, line in declared():
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        locked = [package["version"] for package in PACKAGES if package["name"] == name]
        assert locked, line
        if not (wanted.marker and name == "torch"):  # which has another version for each kind of machine
            assert all(wanted.specifier.contains(each) for each in locked), f"{line}: {locked}"
        for file in groups.get(where, (where,)):
            places = (file, "client") if file in ("pai", "dev") else (file,)  # which come on top of the client's
            found = [each for one in places for each in pins(one) if canonicalize_name(each[0].name) == name]
            assert all(hashes for _, hashes in found)
            assert found or file.startswith("torch") or name == "torch", f"{line} is not in {file}.txt"


def test_torch_is_within_its_bounds_on_each_kind_of_machine() -> None:
    bounds = [Requirement(line) for _, line in declared() if line.startswith("torch>")]
    for machine, minor in PLACES:
        here = place(machine, minor)
        (bound,) = [each for each in bounds if each.marker and each.marker.evaluate(here)]
        found = [pin for file in ("torch-cpu", "torch-cuda") for pin, _ in pins(file) if pin.name == "torch"]
        there = [next(iter(pin.specifier)).version for pin in found if pin.marker and pin.marker.evaluate(here)]
        assert len(there) == (2 if machine == "x86_64" else 1)
        assert all(bound.specifier.contains(each) for each in there)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("machine", "minor"), PLACES)
def test_every_pin_has_a_wheel_for_each_machine_and_python(name: str, machine: str, minor: int) -> None:
    names, here, fit = wheels(), place(machine, minor), tags(machine, minor)
    for pin, hashes in pins(name):
        if pin.marker and not pin.marker.evaluate(here):
            continue
        files = [names[each] for each in hashes if each in names]
        assert any(parse_wheel_filename(file)[3] & fit for file in files), f"{pin.name}: none of {files}"


def test_no_wheel_of_another_machine_or_python_would_pass_for_one() -> None:
    for file in ("a-1-cp311-cp311-manylinux_2_28_aarch64.whl", "a-1-cp312-cp312-linux_x86_64.whl",
                 "a-1-cp311-cp311-musllinux_1_2_x86_64.whl", "a-1-cp311-cp311-manylinux_2_39_x86_64.whl"):  # fmt: skip
        assert not parse_wheel_filename(file)[3] & tags("x86_64", 11)
    assert parse_wheel_filename("a-1-cp38-abi3-manylinux2014_x86_64.whl")[3] & tags("x86_64", 11)


@pytest.mark.parametrize("name", SETS)
def test_the_requirement_files_are_those_of_the_lock(name: str) -> None:
    packages = OUTSIDE if name == "outside" else PACKAGES
    locked = {(package["name"], Version(package["version"])) for package in packages}
    for pin, _ in pins(name):
        (bound,) = pin.specifier
        assert bound.operator == "=="
        assert (canonicalize_name(pin.name), Version(Version(bound.version).public)) in locked


def test_a_server_needs_no_torch_and_only_pypis_torch_needs_cuda() -> None:
    assert not {pin.name for pin, _ in pins("server")} & {"torch", "transformers", "sentence-transformers"}
    names = {pin.name for name in SETS if name != "torch-cuda" for pin, _ in pins(name)}
    assert not [name for name in names if program("lock")["CUDA"].fullmatch(name)]


def test_a_locked_environment_holds_just_these_versions() -> None:
    if not (Path(sys.prefix) / ".locked").exists():
        pytest.skip("this environment was not installed from the lock")
    here = place(default_environment()["platform_machine"], sys.version_info.minor)
    pai = ("pai",) if default_environment()["platform_machine"] == "x86_64" else ()
    for name in ("build", "server", "client", *pai, "demo", "dev"):
        for pin, _ in pins(name):
            if pin.marker is None or pin.marker.evaluate(here):
                assert pin.specifier.contains(version(pin.name)), pin.name
    torch = {Version(package["version"]) for package in PACKAGES if package["name"] == "torch"}
    assert Version(Version(version("torch")).public) in torch


def test_a_torch_without_known_hashes_is_not_locked() -> None:
    (torch,) = [Version(next(iter(pin.specifier)).version) for pin, _ in pins("torch-cuda") if pin.name == "torch"]
    assert f"torch=={torch}+cpu " in program("lock")["cpu_build"](str(torch))
    with pytest.raises(ValueError, match=r"https://download\.pytorch\.org"):
        program("lock")["cpu_build"](f"{torch.major}.{torch.minor + 1}.0")


def test_every_locked_package_has_a_licence_that_may_come_in() -> None:
    licences = program("licences")
    rows = [line.strip("| ").split(" | ") for line in licences["FILE"].read_text().splitlines() if " | " in line]
    listed = {name: (versions, licence) for name, versions, licence, _ in rows[2:]}
    assert {name: ", ".join(each) for name, each in licences["packages"]().items()} == {
        name: versions for name, (versions, _) in listed.items()
    }
    for name, (_, licence) in listed.items():
        assert not licences["unknown"](name, licence), f"{name}: {licence} is not allowed by deploy/lock/licences.toml"


def test_the_licence_list_is_what_installed_packages_say() -> None:
    licences = program("licences")
    text = licences["FILE"].read_text()
    for name, versions in licences["packages"]().items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if Version(installed).public in versions:
            assert f"| {name} | {', '.join(versions)} | {licences['licence'](name)} |" in text


def test_a_licence_that_may_not_come_in_is_seen() -> None:
    unknown = program("licences")["unknown"]
    assert unknown("x", "GPL-3.0-only") == {"GPL-3.0-only"}
    assert unknown("x", "MIT AND AGPL-3.0-only") == {"AGPL-3.0-only"}
    assert unknown("x", "LicenseRef-NVIDIA-Proprietary")
    assert not unknown("nvidia-x", "LicenseRef-NVIDIA-Proprietary")
    assert not unknown("x", "GPL-3.0-only OR MIT")
    assert not unknown("x", "(GPL-3.0-only OR MIT)")
    for expression in (
        "GPL-3.0-only AND (MIT OR Apache-2.0)",
        "(MIT OR Apache-2.0) AND GPL-3.0-only",
        "(MIT OR Apache-2.0) AND (GPL-3.0-only OR AGPL-3.0-only)",
    ):
        assert unknown("x", expression), expression
