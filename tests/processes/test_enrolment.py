"""Joining in real processes: one pasted line, and everything that can be wrong with it."""

import datetime as dt
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from nexus_common import certs
from nexus_common.certs import site_and_identity
from nexus_common.enrolment import Invite

from tests.processes.harness import Federation, free_ports, until, write_rows

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as made:
        made.found()
        yield made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 20, "box")


def sql(federation: Federation, statement: str) -> None:
    """Change the server's database as time would."""
    with sqlite3.connect(federation.home / "server" / "state" / "registry.sqlite", timeout=10) as database:
        database.execute(statement)
    database.close()


def test_a_site_joins_and_its_certificate_names_site_and_identity(federation: Federation, data: Path) -> None:
    federation.join("hospital-a", data)
    keys = federation.home / "sites" / "hospital-a" / "state" / "keys"
    certificate = x509.load_pem_x509_certificate((keys / "site.crt").read_bytes())
    assert site_and_identity(certificate)[0] == "hospital-a"
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in keys.glob("*.key")} == {
        "transport.key": "0o600",
        "identity.key": "0o600",
    }
    listed = federation.ask("nexus-server", "sites")["sites"]
    assert [line["certificate_days_left"] >= 363 for line in listed if line["site"] == "hospital-a"] == [True]


def test_the_same_machine_may_paste_the_line_again_and_another_key_may_not(federation: Federation, data: Path) -> None:
    line = federation.ask("nexus-server", "invite", "bank-a")["line"]
    federation.ask("nexus-client", "join", line)
    certificate = federation.home / "sites" / "bank-a" / "state" / "keys" / "site.crt"
    first = certificate.read_bytes()
    federation.ask("nexus-client", "join", line)
    assert certificate.read_bytes() == first
    (certificate.parent / "identity.key").unlink()
    again = federation.call("nexus-client", "join", line)
    assert again.returncode == 1
    assert "invite-used" in again.stderr
    assert "Kim, ext. 12" in again.stderr
    assert certificate.read_bytes() == first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work in another account's folder")
def test_root_renews_for_a_service_and_leaves_nothing_of_roots_in_its_folder(federation: Federation) -> None:
    line, service = federation.ask("nexus-server", "invite", "bank-s")["line"], 65534
    federation.home.chmod(0o711)
    federation.ask("nexus-client", "join", line)
    (folder := federation.home / "sites" / "bank-s").chmod(0o711)
    for path in (folder / "state", *(folder / "state").rglob("*")):
        os.chown(path, service, service)
    (folder / "state" / "keys" / "site.crt").unlink()
    federation.ask("nexus-client", "join", line)
    assert (folder / "state" / "keys" / "site.crt").exists()
    assert {path.stat().st_uid for path in (folder / "state").rglob("*")} == {service}


def test_a_machine_that_was_enrolled_elsewhere_is_told_what_changes_and_what_to_change(
    federation: Federation, data: Path
) -> None:
    folder, server = federation.home / "sites" / "bank-k", f'server = "127.0.0.1:{federation.port}"'
    line = federation.ask("nexus-server", "invite", "bank-k")["line"]
    assert f"name your text in {folder / 'site.toml'}" in federation.call("nexus-client", "join", line).stdout
    key = certs.new_transport_key()
    elsewhere = certs.make_authority(key, "elsewhere", dt.datetime.now(dt.UTC))
    (folder / "state" / "keys" / "ca.crt").write_bytes(certs.pem(elsewhere))
    settings = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text(settings.replace(server, 'server = "elsewhere:8443"'))
    told = federation.call("nexus-client", "join", line, "--data", str(data)).stdout
    assert f"the consortium's key was {certs.key_hash(elsewhere).hex()[:16]}… here" in told
    assert f'put into it: {server} in place of "elsewhere:8443", a [[data]] table for {data}' in told
    (folder / "site.toml").write_text("site = ")
    told = federation.call("nexus-client", "join", line)
    assert told.returncode == 0
    assert "was there and is kept, but cannot be used: " in told.stdout


def test_an_expired_invitation_says_when_and_whom_to_ask_and_keeps_the_keys(federation: Federation) -> None:
    line = federation.ask("nexus-server", "invite", "bank-b")["line"]
    federation.ask("nexus-server", "invite", "bank-c")  # keeps the listener open
    sql(federation, f"UPDATE invitations SET expires = {time.time() - 60} WHERE site = 'bank-b'")
    refused = federation.call("nexus-client", "join", line)
    assert refused.returncode == 1
    assert "invite-expired" in refused.stderr
    assert "Kim, ext. 12" in refused.stderr
    key = federation.home / "sites" / "bank-b" / "state" / "keys" / "identity.key"
    kept = key.read_bytes()
    federation.ask("nexus-client", "join", federation.ask("nexus-server", "invite", "bank-b")["line"])
    assert key.read_bytes() == kept


def test_a_line_for_another_consortium_is_refused_before_the_secret_leaves(federation: Federation) -> None:
    line = federation.ask("nexus-server", "invite", "bank-d")["line"]
    invite = Invite.parse(line)
    forged = Invite(invite.address, invite.site, bytes(32), invite.secret).line
    refused = federation.call("nexus-client", "join", forged)
    assert refused.returncode == 1
    assert "wrong-authority" in refused.stderr
    assert "bank-d" not in [line["site"] for line in federation.ask("nexus-server", "sites")["sites"]]


def test_a_wrong_secret_is_unknown(federation: Federation) -> None:
    invite = Invite.parse(federation.ask("nexus-server", "invite", "bank-e")["line"])
    refused = federation.call("nexus-client", "join", Invite(invite.address, "bank-e", invite.ca_hash, bytes(16)).line)
    assert refused.returncode == 1
    assert "invite-unknown" in refused.stderr


@pytest.mark.parametrize("line", ["", "hello", "nexus://x@127.0.0.1:1/?ca=AA", "nexus://a:b@c", "\x00"])
def test_what_is_no_invitation_is_called_that(federation: Federation, line: str) -> None:
    refused = federation.call("nexus-client", "join", stdin=line + "\n")
    assert refused.returncode == 1
    assert "not an invitation line" in refused.stderr


def test_nobody_listening_is_said_with_the_remedy(federation: Federation) -> None:
    (port,) = free_ports(1)
    refused = federation.call("nexus-client", "join", Invite(f"127.0.0.1:{port}", "bank-f", bytes(32), bytes(16)).line)
    assert refused.returncode == 1
    assert "no enrolment listener answers" in refused.stderr


def test_an_address_that_nobody_can_dial_makes_no_consortium() -> None:
    with Federation() as other:
        refused = other.call("nexus-server", "init", "--address", "0.0.0.0:8443")
        assert refused.returncode == 1
        assert "cannot be dialled by other machines" in refused.stderr


def test_the_listener_is_there_only_while_an_invitation_is_open() -> None:
    with Federation() as federation:
        federation.init()
        federation.start("server")
        nobody = Invite(f"127.0.0.1:{federation.enrol_port}", "bank-f", bytes(32), bytes(16)).line
        assert "no enrolment listener" in federation.call("nexus-client", "join", nobody).stderr
        federation.ask("nexus-server", "invite", "bank-f")
        assert "wrong-authority" in federation.call("nexus-client", "join", nobody).stderr
        sql(federation, "UPDATE invitations SET expires = 0")
        until("the listener closes", lambda: "listener closed" in federation.log("server"), 10)
        assert "no enrolment listener" in federation.call("nexus-client", "join", nobody).stderr


def test_init_twice_changes_nothing(federation: Federation) -> None:
    before = (federation.home / "server" / "keys" / "ca.key").read_bytes()
    again = federation.call("nexus-server", "init")
    assert again.returncode == 1
    assert "already initialised" in again.stderr
    assert (federation.home / "server" / "keys" / "ca.key").read_bytes() == before


def test_a_second_server_on_the_same_folder_or_port_says_so(federation: Federation) -> None:
    second = federation.call("nexus-server")
    assert second.returncode == 1
    assert "another nexus-server already runs" in second.stderr
    with Federation() as other:
        other.port, other.enrol_port = federation.port, federation.enrol_port
        other.init()
        taken = other.call("nexus-server")
        assert taken.returncode == 1
        assert f"port {federation.port}" in taken.stderr
