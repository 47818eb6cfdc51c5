"""``nexus-server check``: each fault is named with its remedy, and a good server has none."""

import json
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nexus_common import audit
from nexus_common.checks import CheckLine
from nexus_common.errors import NexusError
from nexus_server import ca
from nexus_server.backup import back_up
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.check import check_server
from nexus_server.cli import main
from nexus_server.registry import Registry

from tests.plans import make_plan
from tests.processes.harness import free_ports

YEAR = 365 * 86_400.0
PLAN = make_plan(("bank-a", "bank-b", "hospital-a"))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A server that does not run, with a run and a backup."""
    home = tmp_path / "server"
    main_port, enrol_port, metrics_port = free_ports(3)
    addresses = ["--address", f"127.0.0.1:{main_port}", "--enrol-address", f"127.0.0.1:{enrol_port}"]
    assert main(["init", "--home", str(home), *addresses]) == 0
    settings = home / "server.toml"
    settings.write_text(re.sub("metrics = .*", f'metrics = "127.0.0.1:{metrics_port}"', settings.read_text()))
    CertificateAuthority(CertificateFiles(home / "keys")).ensure_server_certificate(["127.0.0.1"])
    registry = Registry(home / "state")
    registry.propose(PLAN)
    registry.create_run(PLAN, PLAN.adapter.layout.first_vector(PLAN.adapter.seed_bytes))
    registry.close()
    back_up(home, tmp_path / "backup.tar")
    yield home


def found(home: Path, name: str, later: float = 0.0) -> list[CheckLine]:
    return [one for one in check_server(home, lambda: time.time() + later).lines if one.name == name]


def fault(home: Path, name: str, later: float = 0.0) -> str:
    (one,) = [line for line in found(home, name, later) if line.state == "fault"]
    assert one.remedy
    return f"{one.found} -> {one.remedy}"


def test_a_good_server_has_no_fault_and_ends_with_0(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["check", "--home", str(home), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {one["state"] for one in report["lines"] if one["name"] != "disk"} == {"ok"}
    names = [one["name"] for one in report["lines"]]
    assert names == [
        "settings", "keys", "CA certificate", "server certificate", "port", "enrolment port", "metrics port", "disk",
        "database", "audit log", "clock", "backup",
    ]  # fmt: skip
    assert report["running"] is False


def test_a_fault_ends_with_1_and_shows_its_remedy(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "keys" / "server.key").unlink()
    assert main(["check", "--home", str(home)]) == 1
    said = capsys.readouterr()
    assert "FAULT  keys: " in said.out
    assert "-> restore keys/ from the newest backup" in said.out
    assert "fault(s) to mend" in said.err


def test_no_server_and_faulty_settings_are_told(home: Path, tmp_path: Path) -> None:
    assert "nexus-server restore FILE" in fault(tmp_path / "nowhere", "settings")
    (home / "server.toml").write_text("nam = 1")
    assert "nam: unknown key" in fault(home, "settings")


def test_keys_that_others_can_read_are_told(home: Path) -> None:
    (home / "keys" / "ca.key").chmod(0o640)
    assert "has mode 640: others on this machine can use it -> chmod 600" in fault(home, "keys")


def test_a_key_of_another_backup_is_told(home: Path, tmp_path: Path) -> None:
    assert main(["init", "--home", str(tmp_path / "other")]) == 0
    (tmp_path / "other" / "keys" / "ca.key").replace(home / "keys" / "ca.key")
    assert "is not the certificate of" in fault(home, "keys")


def test_a_port_that_another_program_has_is_told(home: Path) -> None:
    port = int(re.findall(r'listen = "127.0.0.1:(\d+)"', (home / "server.toml").read_text())[0])
    with socket.create_server(("127.0.0.1", port)):
        assert f"cannot listen on 127.0.0.1 port {port}" in fault(home, "port")
        (line,) = [one for one in check_server(home).lines if one.name == "port"]
        assert line.remedy.endswith("or change listen in server.toml")


def test_a_name_that_is_loopback_on_this_machine_is_told(home: Path) -> None:
    settings = home / "server.toml"
    settings.write_text(re.sub("^address = .*", 'address = "nexus.example.org:8443"', settings.read_text(), flags=re.M))
    settings.write_text(re.sub('"127.0.0.1:', '"localhost:', settings.read_text(), flags=re.M))
    told = [one for one in found(home, "port") if one.state == "warning"]
    assert [(one.found.partition(": ")[2], (one.remedy or "")[:18]) for one in told] == [
        ("this machine alone reaches it, and sites dial nexus.example.org:8443", 'listen = "0.0.0.0:')
    ]
    assert [one.state for one in found(home, "enrolment port")] == ["ok"], "loopback is what sites dial there"


def test_a_damaged_and_a_newer_database_are_told(home: Path) -> None:
    path = home / "state" / "registry.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    assert "has schema 99" in fault(home, "database")
    path.write_bytes(b"SQLite format 3\0" + bytes(5000))
    assert "restore the newest backup" in fault(home, "database")
    path.unlink()
    assert "is missing" in fault(home, "database")


def test_a_version_whose_file_is_gone_is_told(home: Path) -> None:
    next((home / "state" / "versions").iterdir()).unlink()
    assert "safetensors is missing" in fault(home, "database")


def test_a_broken_chain_and_a_clock_behind_the_log_are_told(home: Path) -> None:
    assert "the audit log's last line is of" in fault(home, "clock", -3600.0)
    path = home / "audit.jsonl"
    audit.AuditLog(path).append("more")
    path.write_bytes(path.read_bytes().replace(b"backed up", b"backed op"))
    assert "was changed" in (said := fault(home, "audit log"))
    assert "whoever audits you" in said


def test_an_audit_log_that_cannot_be_read_or_was_cut_off_in_a_line_is_not_called_broken(home: Path) -> None:
    path = home / "audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n":')
    (one,) = found(home, "audit log")
    assert (one.state, "is unfinished" in one.found) == ("warning", True)
    assert found(home, "backup")[0].state == "ok"
    path.unlink()
    path.mkdir()
    said = fault(home, "audit log")
    assert "cannot be read" in said
    assert "chown" in said
    assert "whoever audits you" not in said


def test_a_backup_from_before_the_cas_new_key_is_a_fault_and_an_old_one_a_warning(home: Path) -> None:
    assert [one.state for one in found(home, "backup", 9 * 86_400)] == ["warning"]
    audit.AuditLog(home / "audit.jsonl").append("authority replaced")
    assert "the CA has another key since" in fault(home, "backup")
    audit.AuditLog(home / "audit.jsonl").append("restored", made=1_700_000_000)
    assert "was made on 2023-11-14T22:13Z" in found(home, "backup")[0].found
    (home / "audit.jsonl").unlink()
    assert found(home, "backup")[0].found == "the audit log knows of none"


def test_a_certificate_that_runs_out_is_told(home: Path) -> None:
    assert [one.state for one in found(home, "CA certificate", 9 * YEAR)] == ["warning"]
    assert "start the server" in fault(home, "CA certificate", 11 * YEAR)
    assert "timedatectl" in fault(home, "server certificate", -YEAR)


def test_a_database_of_an_older_program_is_no_fault(home: Path) -> None:
    with sqlite3.connect(home / "state" / "registry.sqlite") as db:
        db.execute("PRAGMA user_version = 8")
    (one,) = found(home, "database")
    assert (one.state, "brought up to it at the next start" in one.found) == ("ok", True)


def test_check_changes_nothing(home: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = [path for path in home.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}

    before = state()
    check_server(home)
    assert state() == before


def test_a_rotation_that_was_cut_short_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise NexusError("the machine stops here")

    authority = CertificateAuthority(CertificateFiles(home / "keys"))
    monkeypatch.setattr(ca, "write_durably", die)
    with pytest.raises(NexusError):
        authority.rotate(["127.0.0.1"])
    assert "rotate-ca" in str([one.remedy for one in found(home, "CA certificate") if one.state == "warning"])
    assert (home / "keys" / "ca-next.key").exists()
