"""The CA's key is replaced: who still pins an older one gets in over the links, and no kill leaves it half done."""

import datetime as dt
import errno
import itertools
import os
import socket
import ssl
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nexus_client.tls import tls_context
from nexus_common import certs
from nexus_common.authorities import MOST
from nexus_common.errors import NexusError
from nexus_server import ca
from nexus_server.ca import CertificateAuthority, CertificateFiles
from nexus_server.tls import DoorTls

HOSTS, NOW = ["127.0.0.1"], dt.datetime.now


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    made = CertificateAuthority.create(CertificateFiles(tmp_path / "server"), "demo")
    assert made.ensure_server_certificate(HOSTS)
    return made


def site(authority: CertificateAuthority, folder: Path) -> Path:
    """A site's keys and certificates, as joining now leaves them."""
    folder.mkdir()
    certs.save_key(folder / "transport.key", key := certs.new_transport_key())
    identity = certs.raw_identity(Ed25519PrivateKey.generate())
    (folder / "site.crt").write_bytes(certs.pem(authority.issue("hospital-a", key.public_key(), identity)))
    (folder / "ca.crt").write_bytes(certs.pem(authority.certificate))
    return folder


def meets(door: DoorTls, keys: Path) -> bool:
    """Whether a site with these keys and the door accept each other, over a real connection."""
    near, far = socket.socketpair()
    answers: list[bool] = []

    def serve() -> None:
        try:
            with door.context.wrap_socket(far, server_side=True) as tls:
                tls.sendall(b"in")
                answers.append(tls.recv(2) == b"in")
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with tls_context(keys).wrap_socket(near, server_hostname="127.0.0.1") as tls:
            good = tls.recv(2) == b"in"  # TLS 1.3 tells a refused client only now
            tls.sendall(b"in")
    except (ssl.SSLError, ConnectionError):
        good = False
    near.close()
    thread.join(10)
    return good and answers == [True]


def rotated(authority: CertificateAuthority, *, distrust: bool = False) -> None:
    authority.rotate(HOSTS, distrust=distrust)
    assert not authority.ensure_server_certificate(HOSTS)


def test_sites_of_every_generation_are_let_in_until_the_old_keys_are_forgotten(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    door, sites = DoorTls(authority.files), [site(authority, tmp_path / "0")]
    assert meets(door, sites[0])
    for generation in (1, 2):
        rotated(authority)
        sites.append(site(authority, tmp_path / str(generation)))
        assert [meets(door, keys) for keys in sites] == [True] * (generation + 1)
    restarted = CertificateAuthority(authority.files)
    assert not restarted.ensure_server_certificate(HOSTS)
    assert [meets(DoorTls(authority.files), keys) for keys in sites] == [True] * 3
    assert authority.forget_older(authority.authorities)
    assert authority.ensure_server_certificate(HOSTS)
    assert [meets(door, keys) for keys in sites] == [False, False, True]


def test_each_side_is_refused_without_the_links_and_without_the_older_keys(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    old = site(authority, tmp_path / "old")
    door = DoorTls(authority.files)
    rotated(authority)
    assert meets(door, old)
    leaf = x509.load_pem_x509_certificate(authority.files.server.read_bytes())
    authority.files.server.write_bytes(certs.pem(leaf))
    assert not meets(DoorTls(authority.files), old)  # the site knows nobody who issued this
    assert authority.ensure_server_certificate(HOSTS)
    (old / "ca.crt").write_bytes(certs.pem(authority.certificate))
    assert meets(DoorTls(authority.files), old)  # half-way: the new key pinned, the old certificate shown
    authority.files.ca.write_bytes(certs.pem(authority.certificate))
    assert not meets(DoorTls(authority.files), old)  # the server no longer trusts who issued that


def test_a_distrusted_key_vouches_for_nobody(authority: CertificateAuthority, tmp_path: Path) -> None:
    old, door = site(authority, tmp_path / "old"), DoorTls(authority.files)
    rotated(authority, distrust=True)
    assert not meets(door, old)
    assert meets(door, site(authority, tmp_path / "new"))


def test_the_old_private_key_is_gone(authority: CertificateAuthority) -> None:
    before = authority.files.ca_key.read_bytes()
    authority.rotate(HOSTS)
    keys = {path.name: path.read_bytes() for path in authority.files.folder.iterdir()}
    assert sorted(keys) == ["ca.crt", "ca.key", "server.crt", "server.key"]
    assert before not in keys.values()
    assert authority.files.ca_key.stat().st_mode & 0o777 == 0o600


def killed_at(step: int, rotate: Callable[[], None]) -> bool:
    """Whether a process that rotates was killed right before its n-th change of the disk."""
    if (child := os.fork()) == 0:
        done = itertools.count()

        def dying(change: Callable[..., Any]) -> Callable[..., Any]:
            def changed(*args: Any, **options: Any) -> Any:
                if next(done) == step:
                    os._exit(9)
                return change(*args, **options)

            return changed

        for module, name in ((os, "link"), (os, "fsync"), (Path, "replace"), (Path, "unlink")):
            setattr(module, name, dying(getattr(module, name)))
        try:
            rotate()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("distrust", [False, True])
def test_a_rotation_that_is_killed_anywhere_has_happened_or_not(tmp_path: Path, *, distrust: bool) -> None:
    seen = set()
    for step in itertools.count():
        authority = CertificateAuthority.create(CertificateFiles(tmp_path / f"server{step}"), "demo")
        authority.ensure_server_certificate(HOSTS)
        old, before = site(authority, tmp_path / f"old{step}"), authority.certificate
        killed = killed_at(step, partial(authority.rotate, HOSTS, distrust=distrust))
        restarted = CertificateAuthority(authority.files)
        restarted.ensure_server_certificate(HOSTS)
        happened, door = restarted.certificate != before, DoorTls(authority.files)
        seen.add(happened)
        assert meets(door, old) == (not (happened and distrust)), f"killed at {step}"
        assert meets(door, site(restarted, tmp_path / f"new{step}")), f"killed at {step}"
        restarted.rotate(HOSTS)
        assert meets(door, old) == (not (happened and distrust)), f"killed at {step}, then rotated"
        if not killed:
            break
    assert seen == {False, True}
    assert step > 15


def test_an_older_key_out_of_a_backup_is_not_in_force_again_unnoticed(authority: CertificateAuthority) -> None:
    before = authority.files.ca_key.read_bytes()
    authority.rotate(HOSTS)
    authority.files.ca_key.write_bytes(before)
    with pytest.raises(NexusError, match="restore both from the same backup"):
        CertificateAuthority(authority.files)


def test_the_server_too_has_another_key(authority: CertificateAuthority) -> None:
    before = authority.files.server_key.read_bytes()
    authority.rotate(HOSTS, distrust=True)
    assert authority.files.server_key.read_bytes() != before, "it lay beside the key that others may have"


def test_a_distrusted_key_cannot_come_back_by_a_fault_of_the_door(
    authority: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(_: DoorTls) -> ssl.SSLContext:
        raise OSError(errno.EMFILE, "too many open files")

    old, door = site(authority, tmp_path / "old"), DoorTls(authority.files)
    authority.rotate(HOSTS, distrust=True)
    with monkeypatch.context() as patched:
        patched.setattr(DoorTls, "_made", no_descriptor)
        assert not meets(door, old)
    assert not meets(door, old)
    assert meets(door, site(authority, tmp_path / "new"))


def test_a_rotation_under_a_clock_that_was_years_ahead_shuts_nobody_out(
    authority: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return NOW(tz) + dt.timedelta(days=3000)

    old, door = site(authority, tmp_path / "old"), DoorTls(authority.files)
    with monkeypatch.context() as patched:
        patched.setattr(ca, "dt", SimpleNamespace(datetime=Ahead, timedelta=dt.timedelta, UTC=dt.UTC))
        assert authority.days_left < ca.ROTATE_DAYS
        authority.rotate(HOSTS)
    assert not meets(door, old), "the server's certificate begins years from now"
    assert authority.ensure_server_certificate(HOSTS)
    assert meets(door, old)


@pytest.mark.parametrize("damage", ["certificate", "key"])
def test_a_server_certificate_that_cannot_be_used_is_issued_again(
    authority: CertificateAuthority, tmp_path: Path, damage: str
) -> None:
    if damage == "certificate":
        authority.files.server.write_bytes(b"torn")
    else:
        authority.files.server_key.unlink()
        certs.save_key(authority.files.server_key, certs.new_transport_key())
    assert CertificateAuthority(authority.files).ensure_server_certificate(HOSTS)
    assert meets(DoorTls(authority.files), site(authority, tmp_path / "site"))


@pytest.mark.parametrize("host", ["2001:DB8::1", "0:0:0:0:0:0:0:1", "Server.Example", "127.0.0.1"])
def test_a_host_that_is_written_in_another_way_is_certified_once(authority: CertificateAuthority, host: str) -> None:
    authority.ensure_server_certificate([host])
    assert not authority.ensure_server_certificate([host])


def test_a_key_without_its_certificate_is_said_at_the_start(authority: CertificateAuthority) -> None:
    certs.save_key(other := authority.files.folder / "other.key", certs.new_transport_key())
    other.replace(authority.files.ca_key)
    with pytest.raises(NexusError, match="is not the certificate of"):
        CertificateAuthority(authority.files)


def test_the_chain_stays_bounded(authority: CertificateAuthority) -> None:
    for _ in range(MOST + 2):
        authority.rotate(HOSTS)
    assert len(CertificateAuthority(authority.files).authorities.generations) == MOST


def test_the_servers_certificate_is_renewed_under_a_running_server(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    keys, door = site(authority, tmp_path / "site"), DoorTls(authority.files)
    a_year_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=400)
    server_key = certs.load_transport_key(authority.files.server_key).public_key()
    ca_key = certs.load_transport_key(authority.files.ca_key)
    expired = certs.issue_server(ca_key, authority.certificate, server_key, HOSTS, a_year_ago)
    authority.files.server.write_bytes(certs.pem(expired))
    assert not meets(door, keys)
    assert authority.ensure_server_certificate(HOSTS)
    assert meets(door, keys)
