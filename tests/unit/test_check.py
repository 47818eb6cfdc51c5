"""``check`` against real files and a real TLS server: each fault has its line and remedy, and none hides the next."""

import contextlib
import datetime as dt
import email.utils
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_client.check import check_site
from nexus_client.policy import change_policy, write_policy
from nexus_client.site import SiteHome
from nexus_client.status import status
from nexus_common import certs
from nexus_common.audit import AuditLog
from nexus_common.authorities import Authorities
from nexus_common.checks import CheckLine
from nexus_common.plan import hash_of

from tests.plans import make_plan, of_another_release

NOW = dt.datetime.now(dt.UTC)
CA_KEY, SITE_KEY = certs.new_transport_key(), certs.new_transport_key()
CA = certs.make_authority(CA_KEY, "demo", NOW)
OTHER_KEY = certs.new_transport_key()
OTHER_CA = certs.make_authority(OTHER_KEY, "demo", NOW)
IDENTITY = certs.raw_identity(Ed25519PrivateKey.generate())


def site_certificate(made: dt.datetime) -> bytes:
    return certs.pem(certs.issue_site(CA_KEY, CA, SITE_KEY.public_key(), "a", IDENTITY, made))


def serve(
    folder: Path, authority: tuple, trusted: object, ahead: dt.timedelta, linked: bytes, status: str
) -> socket.socket:
    """A TLS server that takes certificates of ``trusted``, shows one of ``authority``, says ``status`` and the time.

    Below its own it shows ``linked``.
    """
    ca_key, ca = authority
    key = certs.new_transport_key()
    certs.save_key(folder / "server.key", key)
    shown = certs.pem(certs.issue_server(ca_key, ca, key.public_key(), ["127.0.0.1"], NOW))
    (folder / "server.crt").write_bytes(shown + linked)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    context.load_verify_locations(cadata=certs.pem(trusted).decode())  # type: ignore[arg-type]
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            plain.settimeout(5)
            with contextlib.suppress(OSError), plain.dup() as spare:  # keeps the connection when TLS gives it up
                try:
                    with context.wrap_socket(plain, server_side=True) as tls:
                        tls.recv(4096)
                        date = email.utils.format_datetime(dt.datetime.now(dt.UTC) + ahead)
                        tls.sendall(f"HTTP/1.1 {status}\r\nDate: {date}\r\n\r\n".encode())
                finally:
                    while spare.recv(4096):
                        pass

    threading.Thread(target=answer, daemon=True).start()
    return listener


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a server; its address."""
    listeners = []

    def run(
        authority: tuple = (CA_KEY, CA),
        trusted: object = CA,
        ahead: dt.timedelta = dt.timedelta(),
        linked: bytes = b"",
        status: str = "401 Unauthorized",
    ) -> str:
        listeners.append(serve(tmp_path, authority, trusted, ahead, linked, status))
        return f"127.0.0.1:{listeners[-1].getsockname()[1]}"

    yield run
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def place(tmp_path: Path) -> SiteHome:
    made = SiteHome.of(tmp_path, "a")
    made.keys.mkdir(parents=True)
    certs.save_key(made.keys / "transport.key", SITE_KEY)
    (made.keys / "ca.crt").write_bytes(certs.pem(CA))
    (made.keys / "site.crt").write_bytes(site_certificate(NOW))
    rows = "".join(f'{{"query": "question {i}", "passage": "answer {i}"}}\n' for i in range(60))
    (tmp_path / "rows.jsonl").write_text(rows)
    write(made, "127.0.0.1:1")
    write_policy(made.policy_file, "a")
    return made


def write(place: SiteHome, server: str, more: str = "") -> None:
    data = place.settings_folder.parent / "rows.jsonl"
    text = f'site = "a"\nserver = "{server}"\nbase_model = "{place.state}"\n{more}\n[[data]]\npath = "{data}"\n'
    place.settings_file.write_text(text)
    (place.state / "x.safetensors").write_bytes(b"")  # a base model that is hashed at once


def lines(place: SiteHome, name: str) -> list[CheckLine]:
    return [line for line in check_site(place).lines if line.name == name]


def test_a_site_in_order_has_no_fault(place: SiteHome, start: Callable[..., str]) -> None:
    write(place, start())
    report = check_site(place)
    assert not report.faults
    assert {line.name for line in report.lines if line.state == "ok"} >= {"settings", "data", "disk", "server", "clock"}


def test_a_policy_that_cannot_be_read_is_a_fault_and_one_that_allows_no_plan_a_warning(place: SiteHome) -> None:
    assert [line.state for line in lines(place, "policy")] == ["ok", "warning"]
    place.policy_file.write_text("accept_no_record_privacy = maybe")
    (found,) = lines(place, "policy")
    assert (found.state, "policy-invalid" in found.found) == ("fault", True)


def test_an_audit_log_that_broke_is_told_from_one_that_cannot_be_read(place: SiteHome) -> None:
    AuditLog(place.audit_file).append("sent", bytes=1)
    assert [line.state for line in lines(place, "audit log")] == ["ok"]
    place.audit_file.write_bytes(b"{}\n")
    (broken,) = lines(place, "audit log")
    place.audit_file.unlink()
    place.audit_file.mkdir()
    (unread,) = lines(place, "audit log")
    assert (broken.state, unread.state) == ("fault", "fault")
    assert "whoever audits you" in str(broken.remedy)
    assert "chown" in str(unread.remedy)


def test_one_fault_does_not_hide_the_next(place: SiteHome) -> None:
    (place.keys / "site.crt").unlink()
    write(place, "127.0.0.1:1", "holdout_share = 0.9")
    report = check_site(place)
    assert report.faults
    assert {line.name for line in report.lines if line.state == "fault"} == {"certificate", "server"}
    assert all(line.remedy for line in report.lines if line.state == "fault")


def test_keys_that_do_not_belong_together_are_told_with_the_way_out(place: SiteHome) -> None:
    (place.keys / "transport.key").unlink()
    certs.save_key(place.keys / "transport.key", OTHER_KEY)
    (line,) = lines(place, "server")
    assert "transport.key in" in line.found
    assert "cannot be used (" in line.found
    assert "join again" in (line.remedy or "")


def test_something_at_the_proxys_address_that_is_no_proxy_is_told(place: SiteHome) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"220 mail.example ESMTP\r\n")).start()
        write(place, "127.0.0.1:1", f'proxy = "http://127.0.0.1:{listener.getsockname()[1]}"')
        (line,) = lines(place, "server")
    assert "what answers there is no proxy (BadStatusLine)" in line.found
    assert "is `proxy` in site.toml right" in (line.remedy or "")


def test_a_certificate_that_cannot_be_read_is_a_problem_of_status_and_ends_nothing(place: SiteHome) -> None:
    (place.keys / "site.crt").write_text("nothing")
    found = status(place)
    assert found.certificate_days_left is None
    assert "site.crt cannot be read; `nexus-client check` says what to do" in (found.problem or "")


def test_an_approval_that_an_update_ended_is_told_by_check_and_by_status(place: SiteHome) -> None:
    old = of_another_release(make_plan("abc", name="winter"))
    (place.state / "plans").mkdir()
    (place.state / "plans" / f"{hash_of(old).hex()}.json").write_bytes(old)
    change_policy(place.policy_file, approved_plans=[hash_of(old).hex()])
    (line,) = lines(place, "plan")
    assert (line.state, "winter was approved here under another release" in line.found) == ("warning", True)
    assert "nexus-client plan approve`" in (line.remedy or "")
    assert "nexus-client plan approve`" in (status(place).problem or "")


def test_broken_settings_are_the_only_line(place: SiteHome) -> None:
    place.settings_file.write_text("site = ")
    (line,) = check_site(place).lines
    assert (line.name, line.state, line.remedy) == ("settings", "fault", "correct site.toml")


def test_a_missing_state_folder_is_told(place: SiteHome) -> None:
    place.state.rename(place.settings_folder.parent / "gone")
    assert lines(place, "disk")


def test_a_missing_data_file_is_a_fault_with_the_place_to_mend(place: SiteHome) -> None:
    (place.settings_folder.parent / "rows.jsonl").unlink()
    (line,) = lines(place, "data")
    assert line.state == "fault"
    assert line.remedy == f"see [[data]] in {place.settings_file}"


def test_more_texts_than_salience_rows_are_a_warning(place: SiteHome) -> None:
    write(place, "127.0.0.1:1", "salience_rows = 10")
    assert any(line.state == "warning" and "salience_rows = 10" in line.found for line in lines(place, "hold-out"))


def test_a_missing_certificate_says_to_join_again(place: SiteHome) -> None:
    (place.keys / "site.crt").unlink()
    (line,) = lines(place, "certificate")
    assert line.state == "fault"
    assert "cannot be read" in line.found
    assert "join again" in (line.remedy or "")


@pytest.mark.parametrize(
    ("days_old", "state", "found"),
    [
        (0, "ok", "364 days left"),
        (240, "ok", "124 days left"),
        (250, "warning", "114 days left"),
        (370, "fault", "valid until"),
        (-3, "fault", "valid only from"),
    ],
)
def test_a_certificates_dates_are_told(place: SiteHome, days_old: int, state: str, found: str) -> None:
    (place.keys / "site.crt").write_bytes(site_certificate(NOW - dt.timedelta(days=days_old)))
    (line,) = lines(place, "certificate")
    assert line.state == state
    assert found in line.found


def test_nobody_listening_is_told(place: SiteHome) -> None:
    (line,) = lines(place, "server")
    assert (line.state, line.found) == ("fault", "127.0.0.1 answers, but nothing listens on port 1")


@pytest.mark.parametrize(
    ("fault", "found", "remedy"),
    [
        (socket.gaierror(-2, "Name or service not known"), "no machine is known by the name 127.0.0.1", "DNS"),
        (TimeoutError("timed out"), "does not answer at all", "a firewall drops it"),
        (OSError(101, "Network is unreachable"), "nobody answers at 127.0.0.1:1: Network is unreachable", "network"),
    ],
    ids=["DNS", "firewall", "network"],
)
def test_dns_firewall_and_network_are_told_apart(
    place: SiteHome, monkeypatch: pytest.MonkeyPatch, fault: OSError, found: str, remedy: str
) -> None:
    def fails(*_: object) -> None:
        raise fault

    monkeypatch.setattr(socket, "create_connection", fails)
    (line,) = lines(place, "server")
    assert found in line.found
    assert remedy in (line.remedy or "")


def test_a_server_of_another_authority_is_told(place: SiteHome, start: Callable[..., str]) -> None:
    write(place, start(authority=(OTHER_KEY, OTHER_CA)))
    (line,) = lines(place, "server")
    assert f"came from {certs.issuer_of(OTHER_CA)!r}, not from the consortium: this network inspects TLS" in line.found
    assert "no switch" in (line.remedy or "")


def test_the_consortiums_certificate_for_another_host_is_told(place: SiteHome, start: Callable[..., str]) -> None:
    write(place, start().replace("127.0.0.1", "localhost"))
    (line,) = lines(place, "server")
    assert "is the consortium's, but" in line.found


def test_after_a_rotation_that_the_site_has_not_followed_yet_it_is_still_the_consortiums(
    place: SiteHome, start: Callable[..., str]
) -> None:
    rotated = Authorities((CA,)).rotated(CA_KEY, OTHER_KEY, NOW)
    write(place, start(authority=(OTHER_KEY, rotated.newest), linked=rotated.linked))
    assert [line.state for line in lines(place, "server")] == ["ok"]
    write(place, place.settings().server.replace("127.0.0.1", "localhost"))
    (line,) = lines(place, "server")
    assert "is the consortium's, but" in line.found


def test_a_server_that_refuses_the_sites_certificate_is_told(place: SiteHome, start: Callable[..., str]) -> None:
    write(place, start(trusted=OTHER_CA))
    (line,) = lines(place, "server")
    assert "refuses this site's certificate" in line.found


def test_a_clock_that_is_ahead_is_told_from_the_servers_answer(place: SiteHome, start: Callable[..., str]) -> None:
    write(place, start(ahead=dt.timedelta(minutes=-2)))
    (line,) = lines(place, "clock")
    assert line.state == "warning"
    assert "ahead of the server" in line.found
